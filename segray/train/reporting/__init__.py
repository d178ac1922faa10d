"""Reports of a training: curves, panels, event files."""
