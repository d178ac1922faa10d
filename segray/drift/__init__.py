"""Whether what a model sees, and what it answers, is still what it was."""
