"""Colour of each class: for panels, label images and the colour tables of GeoTIFFs."""

import numpy as np
from numpy.typing import NDArray

VOID = 255
"""Label value of pixels that belong to no class (ignored in loss and metrics)."""


def palette(classes: int) -> NDArray[np.uint8]:
    """Return a colour table, uint8 (256, 3): row k is the red, green and blue of class k.

    The colours are those of PASCAL VOC (`VOClabelcolormap.m` of the VOC 2012 devkit,
    http://host.robots.ox.ac.uk/pascal/VOC/voc2012/): the bits of k go to red, green, blue in turn, each to
    the most significant bit that is free. All differ, and class 0 is black. Rows from `classes` on have VOC's
    colour of `VOID`, (224, 224, 192).

    Raises ValueError for a number of classes outside 1..255.
    """
    if not 1 <= classes <= VOID:
        raise ValueError(f"{classes} classes: the palette has colours for 1 to {VOID}")
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for band in range(3):
            colours[:, band] |= ((index >> (3 * bit + band) & 1) << (7 - bit)).astype(np.uint8)
    colours[classes:] = colours[VOID]
    return colours
