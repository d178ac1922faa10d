"""Augmentation of training images, together with their labels."""
