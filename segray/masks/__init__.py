"""Masks: COCO run lengths, vertical spans, outlines along pixel edges."""
