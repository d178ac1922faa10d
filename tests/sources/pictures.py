"""Pictures made in code for the tests of the sources, and what Pillow makes of them."""

import io
import struct
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps


def picture(mode: str = "RGB", width: int = 40, height: int = 24) -> Image.Image:
    """A picture without symmetry, so that no rotation of it is another's."""
    row, column = np.mgrid[0:height, 0:width]
    channels = (row * 9 + column, column * 5, (row + 1) * (column + 2), row * 7 + 30)
    rgba = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8), "RGBA")
    if mode in ("L", "1", "P"):
        return rgba.convert("RGB").convert(mode)
    return (
        rgba if mode == "RGBA" else rgba.convert(mode) if mode == "LA" else rgba.convert("RGB").convert(mode)
    )


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The picture as a file of Pillow's format `form`."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def jpeg(seed: int = 0, width: int = 40, height: int = 24) -> bytes:
    """A small JPEG that differs with `seed`."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return encoded(Image.fromarray(noise), "JPEG")


def pillow_rgb(data: bytes) -> npt.NDArray[np.uint8]:
    """The rule's other side: (height, width, 3) uint8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def grey_tiff(samples: npt.NDArray[np.uint16], bits: int, orientation: int = 1) -> bytes:
    """An uncompressed little-endian TIFF 6.0 with one strip of 12 or 16 bits a sample (even width)."""
    height, width = samples.shape
    if bits == 12:  # two samples in three bytes, most significant bits first
        first, second = samples.reshape(-1, 2).T.astype(np.uint32)
        joined = first << 12 | second
        strip = np.stack([joined >> 16, joined >> 8, joined], axis=-1).astype(np.uint8).tobytes()
    else:
        strip = samples.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 274: orientation, 277: 1, 278: height}
    tags[279] = len(strip)
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + strip
