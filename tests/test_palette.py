"""The colours of classes against the table that PASCAL VOC published."""

import numpy as np
import pytest

from segray.palette import VOID, palette

VOC = """0 0 0, 128 0 0, 0 128 0, 128 128 0, 0 0 128, 128 0 128, 0 128 128, 128 128 128, 64 0 0, 192 0 0,
64 128 0, 192 128 0, 64 0 128, 192 0 128, 64 128 128, 192 128 128, 0 64 0, 128 64 0, 0 192 0, 128 192 0,
0 64 128"""
"""Background, aeroplane ... tvmonitor (VOC 2012)."""
VOC_VOID = [224, 224, 192]


def test_the_classes_of_voc_have_their_colours() -> None:
    published = [[int(level) for level in colour.split()] for colour in VOC.split(",")]
    colours = palette(21)
    assert colours.shape == (256, 3)
    assert colours.dtype == np.uint8
    assert colours[:21].tolist() == published
    assert colours[21:].tolist() == [VOC_VOID] * 235


def test_more_classes_go_on_by_the_same_bits() -> None:
    """182 is 0b10110110: bits 0, 3, 6 are red's, 1, 4, 7 green's, 2, 5 blue's, each from the highest down."""
    assert palette(200)[182].tolist() == [0b000_00000, 0b111_00000, 0b110_00000]


def test_no_two_classes_look_alike_and_none_like_void() -> None:
    colours = palette(255)
    assert len({tuple(colour) for colour in colours.tolist()}) == 256
    assert colours[VOID].tolist() == VOC_VOID


@pytest.mark.parametrize("classes", [0, 256])
def test_numbers_without_colours_are_refused(classes: int) -> None:
    with pytest.raises(ValueError, match=f"{classes} classes"):
        palette(classes)
