"""The bytes of a label image -> its stored values: numbers, or colours on request.

Decoded with the limits and the messages of `sources.decode`, but never to RGB: there a palette becomes its
colours, shallow grey is stretched and deep grey is cut.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segray.errors import ItemError
from segray.sources.decode import upright, with_image

_STRETCHED = {"L;2": 85, "L;4": 17}
"""The factor by which Pillow multiplies the samples of shallow grey."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A label image as it is stored, upright."""

    values: NDArray[Any]
    """(height, width) uint8, uint16 or int32, or (height, width, 3) uint8 where colours were requested."""
    white: int
    """Maximum value of its bit depth."""
    lossy: bool
    """Lossy compression has changed the values; grey then is Pillow's conversion to 8 bits."""
    form: str
    """Pillow's name of the format."""


def read_stored(data: bytes, max_pixels: int, *, coloured: bool = False) -> Stored:
    """Decode `data`, of at most `max_pixels` (height * width), to stored numbers (height, width), or to RGB.

    Raises ItemError as `decode_rgb` does, and `unsupported` for an image that holds no numbers.
    """
    return with_image(data, max_pixels, lambda image: _stored(image, _is_lossy(image, data), coloured))


def _is_lossy(image: Image.Image, data: bytes) -> bool:
    if image.format == "WEBP":
        chunk = re.search(rb"VP8[ L]", data)  # RFC 9649: the first of the two holds the image
        return chunk is not None and chunk[0] == b"VP8 "
    if image.format == "TIFF":
        return image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")
    return image.format in ("JPEG", "MPO", "AVIF", "HEIF")


def _stored(image: Image.Image, lossy: bool, coloured: bool) -> Stored:
    form, packing = image.format or "", _packing(image)
    image.load()
    turned = upright(image, image)
    if coloured:
        if turned.mode[0] in "IF":
            raise ItemError("unsupported", f"{form} of mode {turned.mode} has numbers, not colours")
        return Stored(np.asarray(turned.convert("RGB")), 255, lossy, form)
    if lossy:
        return Stored(np.asarray(turned.convert("L")), 255, lossy, form)
    values, white = _numbers(turned, packing, form)
    return Stored(values, white, lossy, form)


def _packing(image: Image.Image) -> str:
    """Return Pillow's raw mode: how the file packs its samples; empty where the plugin does not report it.

    It is known only before the pixels are loaded.
    """
    tiles: list[Any] = getattr(image, "tile", [])
    args = tiles[0][3] if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _numbers(image: Image.Image, packing: str, form: str) -> tuple[NDArray[Any], int]:
    """Return the stored numbers (height, width), and the maximum of their depth."""
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8), 1
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16), (1 << 16) - 1
    if form == "GIF" and image.mode == "P":
        return _grey(np.asarray(image.convert("RGB"))), 255
    if image.mode in ("L", "P", "I"):
        stretch = _STRETCHED.get(packing, 1)
        return np.asarray(image) // stretch, 255 // stretch
    if re.search(";16[BLN]", packing):  # Pillow keeps the upper eight bits
        raise ItemError("unsupported", f"{form} with several channels of 16 bits; store one channel")
    if image.mode in ("LA", "PA"):
        return np.asarray(image.getchannel(0)), 255
    if image.mode in ("RGB", "RGBA", "RGBX"):
        return _grey(np.asarray(image)[..., :3]), 255
    raise ItemError("unsupported", f"{form} of mode {image.mode} holds no class indices")


def _grey(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    coloured = (rgb != rgb[..., :1]).any(axis=-1)
    if coloured.any():
        colour = tuple(rgb[coloured][0].tolist())
        raise ItemError(
            "unsupported",
            f"a colour picture, with {colour} for one: say with `colours` which class each colour is",
        )
    return rgb[..., 0]
