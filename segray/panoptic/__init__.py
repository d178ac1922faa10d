"""Instances and a label map of the same image -> one segment a pixel."""
