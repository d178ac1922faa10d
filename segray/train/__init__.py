"""Training: batches, augmentation, the loop, its checkpoint."""
