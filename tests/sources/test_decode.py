"""The pixel rule, against Pillow and against arithmetic where Pillow has no 8-bit form."""

import re
import struct
import warnings
import zlib

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from segray.errors import ItemError
from segray.sources.decode import decode_rgb
from tests.sources.pictures import encoded, grey_tiff, jpeg, picture, pillow_rgb

PLENTY = 10**8
FILES = [
    *[("JPEG", mode) for mode in ("RGB", "L", "CMYK")],
    *[("PNG", mode) for mode in ("RGB", "L", "1", "P", "RGBA", "LA")],
    *[("WEBP", mode) for mode in ("RGB", "RGBA")],
    *[("TIFF", mode) for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "LAB")],
    *[("BMP", mode) for mode in ("RGB", "L", "1", "P")],
    *[("DIB", "RGB"), ("GIF", "P"), ("GIF", "L"), ("MPO", "RGB")],
    *[("JPEG2000", mode) for mode in ("RGB", "L", "RGBA", "LA")],
    *[("AVIF", mode) for mode in ("RGB", "RGBA")],
]


def refused(data: bytes, max_pixels: int = PLENTY) -> ItemError:
    """The error of a file that must not decode, whose words must be for people."""
    with pytest.raises(ItemError) as caught:
        decode_rgb(data, max_pixels)
    assert "<_io" not in caught.value.reason
    assert "b'" not in caught.value.reason
    return caught.value


@pytest.mark.parametrize(("form", "mode"), FILES)
def test_pixels_are_pillows(form: str, mode: str) -> None:
    data = encoded(picture(mode), form)
    decoded = decode_rgb(data, PLENTY)
    assert np.array_equal(decoded.pixels, pillow_rgb(data))
    assert decoded.pixels.flags.c_contiguous
    assert decoded.pixels.dtype == np.uint8
    assert decoded.frames == 1


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(picture(), form, exif=exif)
    decoded = decode_rgb(data, PLENTY).pixels
    assert np.array_equal(decoded, pillow_rgb(data))
    assert decoded.shape[:2] == ((40, 24) if orientation > 4 else (24, 40))


def test_transparency_is_dropped_over_the_stored_colour() -> None:
    image = Image.new("RGBA", (2, 1), (200, 100, 50, 0))
    assert decode_rgb(encoded(image, "PNG"), PLENTY).pixels.tolist() == [[[200, 100, 50]] * 2]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    data = encoded(palette, "PNG", transparency=1)
    assert decode_rgb(data, PLENTY).pixels.tolist() == [[[200, 100, 50]] * 2]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("bits", [12, 16])
def test_deep_grey_is_shifted(bits: int, orientation: int) -> None:
    samples = np.random.default_rng(bits).integers(0, 1 << bits, (6, 10), np.uint16)
    decoded = decode_rgb(grey_tiff(samples, bits, orientation), PLENTY).pixels
    stored = (samples >> (bits - 8)).astype(np.uint8)
    upright = stored if orientation == 1 else np.rot90(stored, -1)  # 6: turn 90 degrees clockwise
    assert np.array_equal(decoded, np.repeat(upright[..., None], 3, axis=-1))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG2000"])
def test_sixteen_bit_grey_files(form: str) -> None:
    samples = np.random.default_rng(1).integers(0, 1 << 16, (24, 40), np.uint16)
    decoded = decode_rgb(encoded(Image.fromarray(samples), form), PLENTY).pixels
    assert np.array_equal(decoded[..., 1], (samples >> 8).astype(np.uint8))


@pytest.mark.parametrize("coloured", [False, True])
@pytest.mark.parametrize(("high", "dark"), [(1 << 12, True), (1 << 13, True), (1 << 16, False)])
def test_deep_pictures_that_come_out_nearly_black_are_told(coloured: bool, high: int, dark: bool) -> None:
    """As cameras of 12 bits store them in 16."""
    shape = (24, 40, 3) if coloured else (24, 40)
    samples = np.random.default_rng(1).integers(0, high, shape, np.uint16)
    samples.flat[0] = high - 1
    decoded = decode_rgb(cv2.imencode(".png", samples)[1].tobytes(), PLENTY)
    assert decoded.pixels.max() == high - 1 >> 8
    assert ("nearly black" in (decoded.note or "")) == dark


def test_a_dark_picture_of_eight_bits_is_as_it_is() -> None:
    image = Image.new("RGB", (40, 24), (3, 3, 3))
    assert all(decode_rgb(encoded(image, form), PLENTY).note is None for form in ("PNG", "TIFF", "BMP"))


def test_sixteen_bit_png_with_orientation() -> None:
    samples = np.random.default_rng(1).integers(0, 1 << 16, (24, 40), np.uint16)
    exif = Image.Exif()
    exif[274] = 8
    decoded = decode_rgb(encoded(Image.fromarray(samples), "PNG", exif=exif), PLENTY).pixels
    assert np.array_equal(decoded[..., 0], np.rot90((samples >> 8).astype(np.uint8)))


def test_other_numbers_are_unsupported() -> None:
    for mode, kind in (("F", "floating point"), ("I", "32-bit")):
        error = refused(encoded(Image.new(mode, (4, 4)), "TIFF"))
        assert error.error_type == "unsupported"
        assert kind in error.reason


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG", "AVIF", "MPO"])
def test_first_frame_and_their_number(form: str) -> None:
    pages = [picture(), Image.new("RGB", (40, 24), "red"), Image.new("RGB", (40, 24), "blue")]
    data = encoded(pages[0], form, save_all=True, append_images=pages[1:])
    decoded = decode_rgb(data, PLENTY)
    assert decoded.frames == 3
    assert np.array_equal(decoded.pixels, pillow_rgb(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "AVIF"])
def test_pixel_limit(form: str) -> None:
    data = encoded(picture(), form)
    assert decode_rgb(data, 960).pixels.shape == (24, 40, 3)
    error = refused(data, 959)
    assert error.error_type == "too_large"
    assert "40 x 24" in error.reason


def test_pixel_limit_is_read_from_the_header() -> None:
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0" * 2  # 16,384 squared
    webp = b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas
    assert refused(webp).error_type == "too_large"
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0))
    assert refused(png + chunk(b"IDAT", b"")).error_type == "too_large"


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_off(form: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, form)
    error = refused(data[: int(len(data) * share)])
    assert error.error_type == "truncated"


def test_damaged_pixels_are_corrupt() -> None:
    whole = encoded(picture(width=200, height=200), "PNG")
    middle = whole.index(b"IDAT") + 40
    error = refused(whole[:middle] + b"\xff" * 200 + whole[middle + 200 :])
    assert error.error_type == "corrupt"


@pytest.mark.parametrize(
    ("data", "error_type", "words"),
    [
        (b"", "truncated", "empty"),
        (b"hello, world", "corrupt", "not an image"),
        (b"<!DOCTYPE html><html>404</html>", "unsupported", "HTML"),
        (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", "corrupt", "HEIC"),
        (b"P6 1 1 255\nabc", "unsupported", "PPM"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "unsupported", "git lfs pull"),
        (b"\n\n<!DOCTYPE html>\n<title>404</title>", "unsupported", "HTML"),
        (b"\xef\xbb\xbf<html>", "unsupported", "HTML"),
        (b'{"error": "not found"}', "unsupported", "JSON"),
        (b'  [{"error": 404}]', "unsupported", "JSON"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "unsupported", "AppleDouble"),
        (b"GIF89a\0\0\1\0\0\0\0;", "corrupt", "no more images"),
    ],
)
def test_what_is_no_picture_of_ours(data: bytes, error_type: str, words: str) -> None:
    error = refused(data)
    assert error.error_type == error_type
    assert words in error.reason


@pytest.mark.parametrize("kind", [2, 7, 10, 11, 12])
def test_fields_of_another_type_are_told_in_words(kind: int) -> None:
    data = grey_tiff(np.zeros((4, 4), np.uint16), 16)
    for tag in (0, 1, 2, 3, 5, 7):  # width, height, bits, compression, strip offsets, samples
        entry = 10 + 12 * tag
        error = refused(data[: entry + 2] + struct.pack("<H", kind) + data[entry + 4 :])
        assert not re.search(r": [\d.e'-]+$|instances of|indices|object", error.reason), error.reason
        assert (error.error_type == "unsupported") == ("unknown pixel mode" in error.reason)


def iccp(size: int) -> bytes:
    """A colour profile of so many bytes that do not shrink."""
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    return chunk(b"iCCP", b"profile\0\0" + zlib.compress(noise))


def broken(whole: bytes) -> bytes:
    """A chunk with another checksum."""
    return whole[:-1] + bytes([whole[-1] ^ 1])


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(80 << 20))),
        iccp(2 << 20),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2 << 20))),
        chunk(b"iCCP", b"profile\0\0no zlib stream"),
        chunk(b"gAMA", b"\0\1"),
        chunk(b"pHYs", b"\0"),
        chunk(b"tRNS", b"\0"),
        chunk(b"cHRM", b""),
        chunk(b"sRGB", b""),
        broken(chunk(b"tEXt", b"Software\0something")),
        broken(chunk(b"eXIf", b"MM\0*")),
    ],
)
def test_what_a_png_says_besides_its_pixels_is_no_matter(extra: bytes) -> None:
    """Too much of it, none where some should be, a wrong checksum: browsers show all of them."""
    whole = encoded(picture(), "PNG")
    assert np.array_equal(decode_rgb(whole[:33] + extra + whole[33:], PLENTY).pixels, pillow_rgb(whole))


@pytest.mark.parametrize("form", ["RGB", "P", "L", "I;16"])
def test_a_png_of_any_kind_is_read_without_its_metadata(form: str) -> None:
    image = picture().convert("L").convert("I").convert("I;16") if form == "I;16" else picture().convert(form)
    whole = encoded(image, "PNG")
    found = decode_rgb(whole[:33] + chunk(b"gAMA", b"\0\1") + whole[33:], PLENTY)
    assert np.array_equal(found.pixels, decode_rgb(whole, PLENTY).pixels)


def test_a_png_without_its_metadata_keeps_orientation_and_frames() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [picture(), picture().rotate(180)]
    whole = encoded(frames[0], "PNG", exif=exif, save_all=True, append_images=frames[1:])
    found = decode_rgb(whole[:33] + chunk(b"gAMA", b"\0\1") + whole[33:], PLENTY)
    assert found.frames == 2
    assert np.array_equal(found.pixels, decode_rgb(whole, PLENTY).pixels)
    assert found.pixels.shape[:2] == frames[0].size


def test_a_png_with_broken_pixels_stays_broken() -> None:
    """And its error is the first one, with all of the file."""
    whole = encoded(picture(width=200, height=200), "PNG")
    middle = whole.index(b"IDAT") + 40
    damaged = whole[:33] + chunk(b"tIME", bytes(7)) + whole[33:middle] + b"\xff" * 200 + whole[middle + 200 :]
    assert refused(damaged).error_type == "corrupt"


def test_broken_exif_turns_nothing() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(decode_rgb(data, PLENTY).pixels, pillow_rgb(encoded(picture(), "JPEG")))


def test_pixels_lie_where_they_are_wanted() -> None:
    """Of a JPEG that libjpeg-turbo puts there, of one that Pillow turns, and of another format."""
    turned = Image.Exif()
    turned[274] = 6
    for data in (jpeg(), encoded(picture("L"), "JPEG"), encoded(picture(), "JPEG", exif=turned)):
        places: list[npt.NDArray[np.uint8]] = []

        def place(size: int) -> npt.NDArray[np.uint8]:
            places.append(np.zeros(size, np.uint8))  # noqa: B023 - called in this turn
            return places[-1]  # noqa: B023

        pixels = decode_rgb(data, PLENTY, place).pixels
        (given,) = places
        assert np.shares_memory(pixels, given)
        assert np.array_equal(pixels, pillow_rgb(data))


def test_jpeg_that_ends_early_or_is_wrong_inside() -> None:
    """libjpeg-turbo goes on after a warning; whether there is a picture, Pillow says."""
    whole = jpeg()
    for cut in range(len(whole) // 2, len(whole)):
        assert refused(whole[:cut]).error_type == "truncated"
    scan = whole.index(b"\xff\xda") + 20
    damaged = whole[:scan] + b"\xff\xd0" + whole[scan + 2 :]
    assert np.array_equal(decode_rgb(damaged, PLENTY).pixels, pillow_rgb(damaged))


def test_warnings_stay_inside() -> None:
    palette = picture("P")
    data = encoded(palette, "PNG", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_rgb(data, PLENTY)
        decode_rgb(jpeg(), PLENTY)


def test_pillow_is_left_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS
    refused(encoded(picture(), "PNG"), 24 * 40 - 1)
    decode_rgb(encoded(picture(), "PNG"), 24 * 40)
    assert before == Image.MAX_IMAGE_PIXELS
