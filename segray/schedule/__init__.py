"""A job of another verb, again and again: the text that tells a scheduler, of which this is none."""
