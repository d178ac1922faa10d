"""What a picture goes through before it is learnt from, its labels with it."""
