"""One output folder: objects, store, lease, progress, readers."""
