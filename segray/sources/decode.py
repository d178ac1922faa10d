"""Encoded bytes -> upright 8-bit RGB, by one rule that can be checked against Pillow.

The pixels equal Pillow's `ImageOps.exif_transpose(image).convert("RGB")` wherever Pillow reads the file as
8-bit or palette. So alpha is dropped and the stored colour kept, and the first frame or page is taken. 16-bit
grey is v >> 8 and 12-bit v >> 4, where Pillow's own conversion would clip; a result that is nearly black
gives a warning. Floating point and 32-bit integers have no agreed range and are `unsupported`.
"""

import io
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import (  # the plugins by name, or Pillow imports all forty at the first file
    AvifImagePlugin,
    ExifTags,
    Image,
    Jpeg2KImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from segray.errors import ItemError
from segray.sources.names import one_line
from segray.sources.signature import (
    FORMATS,
    describe_signature,
    ends_early,
    png_without_metadata,
    webp_canvas,
)
from segray.sources.taken import Taken, taken_of

T = TypeVar("T")

_HEIF = ("HEIC", "HEIF")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that undoes it (EXIF 2.32, tag 274; as in Pillow's ImageOps)."""
_BITS_PER_SAMPLE = 258  # TIFF 6.0
_NOISE = re.compile(r"""\s*\(chunk b(['"]).*\1\)|\s*(in )?b(['"]).*?\3""")
"""How Python prints the bytes that a message quotes."""
_BARE = re.compile(
    r"[\d.e+-]*|'.*'|.*(buffer of|index out of|not iterable|NoneType|argument|list index|instances of|operand"
    r"|object (cannot|is not|has no)|values to unpack|indices must|decoder object).*"
)
"""What Python raises for a field that is missing or of another type; useless for a user."""
_FIELD_ERRORS = (TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, struct.error)
_UNSUPPORTED = ("not supported", "unsupported", "unknown pixel mode", "not implemented")
_DARK = 32
"""Of 255; a 13-bit image stored in 16 bits has no value above it."""
_TOO_DEEP = {"I": "32-bit (or signed) integers", "F": "floating point numbers"}


@dataclass(frozen=True, slots=True)
class Decoded:
    """One decoded image, upright."""

    pixels: npt.NDArray[np.uint8]
    """(height, width, 3), RGB, C-contiguous."""
    frames: int
    """Frames or pages in the file; the pixels are the first one's."""
    nodata: str | None = None
    """Pixels of a scene's window without data, (height, width) bool (see `scenes.nodata`), or None."""
    note: str | None = None
    """Warning about the image; empty where there is nothing to report."""
    taken: Taken | None = None
    """Where and when it was taken; None where that is unknown or was not asked for."""
    volume: tuple[int, int] | None = None
    """(height, width) of a volume, whose place and voxels are the `pixels` (see `sources.volume`), and whose
    depth is `frames`; None for an image."""

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width)."""
        height, width = self.volume or self.pixels.shape[:2]
        return height, width


Place = Callable[[int], npt.NDArray[np.uint8]]
"""Allocate an array of so many bytes for pixels."""


def _allocate(size: int) -> npt.NDArray[np.uint8]:
    return np.empty(size, np.uint8)


def decode_rgb(data: bytes, max_pixels: int, place: Place = _allocate, *, location: bool = False) -> Decoded:
    """Decode the image in `data`, of at most `max_pixels` (height * width), into memory that `place`
    allocates.

    location: also read where and when it was taken. Return its pixels (height, width, 3) uint8, RGB. Raises
    ItemError: `too_large` (decided from the header, before a pixel is decoded), `truncated` (the file ends
    early), `corrupt`, `unsupported`, `memory`.
    """
    if not location:
        return with_image(data, max_pixels, lambda image: _decode(data, image, place))
    return with_image(data, max_pixels, lambda image: _with_taken(data, image, place))


def with_image(data: bytes, max_pixels: int, read: Callable[[Image.Image], T]) -> T:
    """Return `read(image)` for Pillow's image of `data`, whose header is read and whose pixels are not yet.

    Faults in a PNG's metadata, or too much of it, are ignored. Raises ItemError as `decode_rgb`, for failures
    of `read` too, which may be called twice. One at a time in a process: Pillow's limits and Python's
    warnings are global to the process.
    """
    try:
        return _with_image(data, max_pixels, read)
    except ItemError as error:
        bare = png_without_metadata(data)
        if bare is None:
            raise
        try:
            return _with_image(bare, max_pixels, read)
        except ItemError:
            raise error from None


def _with_image(data: bytes, max_pixels: int, read: Callable[[Image.Image], T]) -> T:
    with _pillow_set(max_pixels), warnings.catch_warnings(record=True) as refusals:
        warnings.simplefilter("always")
        try:
            canvas = webp_canvas(data)  # Pillow's WebP reader allocates the canvas when it opens the file
            if canvas is not None:
                _check_size(*canvas, max_pixels)
            with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
                _check_size(*image.size, max_pixels)
                return read(image)
        except ItemError:
            raise
        except MemoryError:
            raise ItemError("memory", "decoding it needs more memory than a decoder may have") from None
        except Exception as error:  # plugins fail on hostile bytes with any type
            said = [str(refusal.message) for refusal in refusals]
            raise _rejection(data, error, said, max_pixels) from error


def _formats(data: bytes) -> tuple[str, ...]:
    """Return Pillow's names of the formats that may open it."""
    form, known = describe_signature(data)
    return ("HEIF",) if form in _HEIF and not known and has_heif() else FORMATS


@cache
def has_heif() -> bool:
    """Return whether the extra `heic` is installed; registers its plugin, which applies orientation."""
    try:
        from pi_heif import HeifImagePlugin, options  # noqa: F401
    except ImportError:
        return False
    options.DECODE_THREADS = 1  # many workers share the machine
    return True


@contextmanager
def _pillow_set(max_pixels: int) -> Iterator[None]:
    """Set Pillow's module variables, and restore them for other users of Pillow in this process."""
    ours = [
        (Image, "MAX_IMAGE_PIXELS", (max_pixels + 1) // 2),  # it refuses twice this, wherever it allocates
        (Image, "WARN_POSSIBLE_FORMATS", True),  # the only way to learn why a header was refused
        (AvifImagePlugin, "DEFAULT_MAX_THREADS", 1),  # many workers share the machine
    ]
    before = [getattr(module, name) for module, name, _ in ours]
    try:
        for module, name, value in ours:
            setattr(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(ours, before, strict=True):
            setattr(module, name, value)


def _decode(data: bytes, image: Image.Image, place: Place) -> Decoded:
    if image.mode in _TOO_DEEP:
        raise ItemError("unsupported", f"{image.format} with {_TOO_DEEP[image.mode]} has no 8-bit form")
    if image.format == "JPEG":
        pixels = _straight(data, image, place)
        if pixels is not None:
            return Decoded(pixels, 1)
    bits = _bits(image)  # TIFF: the tags of the first page are gone once frames are counted
    raw = [str(tile[3]) for tile in getattr(image, "tile", ())]  # `RGB;16B` and the like
    deep = bits == 16 and any("16" in each for each in raw)
    image.load()
    turned = upright(_to_rgb(image, bits), image)
    shape = (turned.height, turned.width, 3)
    pixels = place(math.prod(shape)).reshape(shape)
    np.copyto(pixels, np.frombuffer(turned.tobytes(), np.uint8).reshape(shape))
    dark = "16-bit values, nearly black in their upper 8 bits, which are read; store them as 8 bits"
    note = dark if deep and pixels.max(initial=0) < _DARK else None
    return Decoded(pixels, _count_frames(image), note=note)


def _with_taken(data: bytes, image: Image.Image, place: Place) -> Decoded:
    is_tiff = image.format == "TIFF"
    decoded = _decode(data, image, place)  # first: a PNG may have its EXIF behind the pixels
    return replace(decoded, taken=taken_of(data if is_tiff else image.info.get("exif")))


def _straight(data: bytes, image: Image.Image, place: Place) -> npt.NDArray[np.uint8] | None:
    """Decode a sound JPEG directly into its target: Pillow's pixels in less than half its time.

    Both use libjpeg-turbo; Pillow keeps four bytes a pixel and copies them twice. None for an image with an
    EXIF rotation, or where libjpeg-turbo gives any warning: broken files are left to Pillow.
    """
    if image.mode not in ("RGB", "L") or _orientation(image) in _UPRIGHT:
        return None
    shape = (image.height, image.width, 3)
    pixels = place(math.prod(shape))
    try:
        decoded = simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
    except ValueError:
        return None
    return pixels.reshape(shape) if decoded.shape == shape else None


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise too_large(width, height, max_pixels)


def too_large(width: int, height: int, max_pixels: int) -> ItemError:
    """Return the error for an image above the limit."""
    return ItemError("too_large", f"{width} x {height} pixels, above max_pixels {max_pixels:,}; --max-pixels")


def _bits(image: Image.Image) -> int:
    """Return the significant bits of a sample in Pillow's 16-bit modes: 12-bit TIFF samples stay as is."""
    tags: Any = getattr(image, "tag_v2", {})
    return 12 if tuple(tags.get(_BITS_PER_SAMPLE, ())) == (12,) else 16


def _to_rgb(image: Image.Image, bits: int) -> Image.Image:
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)
        return Image.fromarray((samples >> (bits - 8)).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Return `pixels` transposed by the EXIF orientation of `image`."""
    method = _UPRIGHT.get(_orientation(image))
    return pixels if method is None else pixels.transpose(method)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an image that is `upright`."""
    is_turned = _orientation(image) in (5, 6, 7, 8)
    return image.size[::-1] if is_turned else image.size


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 where it is missing or cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return 1
    return orientation if isinstance(orientation, int) else 1


def _count_frames(image: Image.Image) -> int:
    """Return the number of frames, at least 1: broken later pages do not cost the first."""
    try:
        return int(getattr(image, "n_frames", 1))
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, OSError, struct.error):
        return 1


def _rejection(data: bytes, error: Exception, refusals: list[str], max_pixels: int) -> ItemError:
    """Return type and reason for what a plugin raised; the file's structure decides whether it ends early."""
    if not data:
        return ItemError("truncated", "the file is empty")
    form, known = describe_signature(data)
    if not known and not (form in _HEIF and has_heif()):
        return ItemError("unsupported" if form else "corrupt", _not_ours(form))
    words = _words(error, refusals)
    said = words.lower()
    if isinstance(error, Image.DecompressionBombError):
        pixels = int(re.findall(r"\d+", str(error))[0])
        reason = f"{form} of {pixels:,} pixels, above max_pixels {max_pixels:,}; --max-pixels"
        return ItemError("too_large", reason)
    if "out of memory" in said:
        return ItemError("memory", f"{form}: decoding it needs more memory than a decoder may have")
    if "max_text" in said:
        return ItemError("too_large", f"{form}: its text chunks inflate beyond the limit of the decoder")
    if "not identified by this driver" in said:
        return ItemError("corrupt", f"{form}: an image without width or height")
    if any(known in said for known in _UNSUPPORTED):
        return ItemError("unsupported", f"{form}: {words}")
    if "truncated" in said:
        return ItemError("truncated", f"{form}: the file ends early")
    if "bad header checksum" not in said and ends_early(data, form):
        return ItemError("truncated", f"{form}: the file ends early ({words})")
    return ItemError("corrupt", f"{form}: {words}")


def _not_ours(form: str) -> str:
    ours = "JPEG, PNG, WebP, TIFF, BMP, GIF, JPEG 2000, AVIF"
    if form in ("NIfTI", "gzip file"):
        return f"{form} is read only as a volume (.nii, .nii.gz): train and predict with --volumes"
    if form in _HEIF:
        return f"{form} is read with the extra heic: uv sync --extra heic"
    return (
        f"{form} is not among the formats read ({ours})"
        if form
        else f"not an image: it begins as no file of {ours} does"  # not how: it may be a secret
    )


def _words(error: Exception, refusals: list[str]) -> str:
    """Return Pillow's message, without the noise around it."""
    words = "" if isinstance(error, _FIELD_ERRORS) else str(error)
    if isinstance(error, UnidentifiedImageError):
        said = [text.split("opening failed.", 1)[1] for text in refusals if "opening failed." in text]
        words = "; ".join(dict.fromkeys(map(_plain, said))) or "its header cannot be read"
    return _plain(words)


def _plain(words: str) -> str:
    words = one_line(_NOISE.sub("", words))[:300]
    if words.startswith("decoder error"):  # a number of Pillow's own
        return "the pixel data cannot be decoded"
    return "its structure is broken" if _BARE.fullmatch(words) else words
