"""Real files that trip a reader: each is decoded by the rule or refused for the right reason."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segray.errors import ItemError
from segray.sources.decode import Decoded
from segray.sources.sandbox import DecodeSandbox
from tests.sources.pictures import pillow_rgb

FOLDER = Path(__file__).parents[1] / "data" / "awkward"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix != ".md")
REFUSED = {
    "10ct_32bit_128.tiff": "unsupported",
    "Bad_shortfile.bmp": "truncated",
    "Bad_width.bmp": "too_large",
    "broken.png": "corrupt",
    "broken_data_stream.png": "corrupt",
    "crash-86214e58da443d2b80820cff9677a38a33dcbbca.tif": "truncated",
    "decompression_bomb.gif": "too_large",
    "decompression_bomb.ico": "unsupported",
    "oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif": "truncated",
    "reallybig.bmp": "too_large",
    "truncated_end_chunk.png": "truncated",
    "truncated_image.png": "truncated",
    "truncated_jpeg.jpg": "truncated",
    "zero_width.gif": "corrupt",
}
SHIFTED = {  # deep grey -> the bits that are dropped
    "12bit.cropped.tif": 4,
    "16bit.MM.cropped.tif": 8,
    "16bit.cropped.tif": 8,
    "basi0g16.png": 8,
    "i_trns.png": 8,
}
NOT_PILLOWS = {"png_decompression_dos.png"}
"""Its text would inflate beyond Pillow's limit; the pixels are sound."""
FRAMES = {"different_transparency.gif": 2, "mode_16bit.png": 3, "multipage.tiff": 3}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Decoded | ItemError]:
    """What one sandbox makes of all files, one after another."""
    found: dict[str, Decoded | ItemError] = {}
    with DecodeSandbox() as sandbox:
        for path in FILES:
            try:
                found[path.name] = sandbox.decode(path.read_bytes(), 10**8)
            except ItemError as error:
                found[path.name] = error
    return found


@pytest.mark.parametrize("name", [path.name for path in FILES])
def test_outcome(name: str, outcomes: dict[str, Decoded | ItemError]) -> None:
    outcome = outcomes[name]
    if isinstance(outcome, ItemError):
        assert REFUSED.get(name) == outcome.error_type
        assert len(outcome.reason) > 15
        return
    assert name not in REFUSED
    assert outcome.frames == FRAMES.get(name, 1)
    if name in SHIFTED:
        grey = (np.asarray(Image.open(FOLDER / name)) >> SHIFTED[name]).astype(np.uint8)
        assert np.array_equal(outcome.pixels, np.repeat(grey[..., None], 3, axis=-1))
    elif name in NOT_PILLOWS:
        assert np.array_equal(outcome.pixels, np.asarray(cv2.imread(str(FOLDER / name)))[..., ::-1])
    else:
        assert np.array_equal(outcome.pixels, pillow_rgb((FOLDER / name).read_bytes()))
