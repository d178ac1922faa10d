"""Labelled data for training and evaluation: pairs, labels, COCO, footprints, splits, statistics."""

from typing import Literal

LookAlikes = Literal["loose", "strict", "off"]
"""How alike two images must be to share a split; settings name it, so nothing heavy is imported here."""
