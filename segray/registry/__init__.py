"""Model registry: immutable versions, and aliases that move between them; see `registry`."""
