"""What a person sees of a training: curves, panels, event files."""
