"""Semantic label maps of images and scenes."""
