"""Models with versions that never change, and names for them that do: see `registry`."""
