"""Labelled data for training and evaluation: pairs, labels, COCO, footprints, splits, statistics."""
