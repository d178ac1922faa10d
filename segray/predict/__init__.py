"""Semantic label maps of pictures and scenes."""
