"""The output folder of a run: objects, store, lease, progress, readers."""
