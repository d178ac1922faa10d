"""Label pictures of every form: what is stored, what it means, and that the rest is refused by name."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from segray.data.labels import (
    LabelRules,
    colour_rules,
    colours_of,
    decide_values,
    fit_to,
    nearest_pixels,
    read_label,
)
from segray.errors import ItemError, SettingsError

PLENTY = 10**7
ELEVEN = LabelRules(classes=11)
BINARY = LabelRules(classes=2, values="binary")
RED_GREEN = LabelRules(classes=3, colours={(0, 0, 0): 0, (255, 0, 0): 1, (0, 255, 0): 2, (9, 9, 9): 255})
Bytes = NDArray[np.uint8]


def random_map(values: list[int], height: int = 13, width: int = 22, seed: int = 0) -> Bytes:
    """Each value at least once; no rotation of it is another's."""
    random = np.random.default_rng(seed)
    label = random.choice(values, (height, width)).astype(np.uint8)
    label.ravel()[: len(values)] = values
    return label


def file(pixels: Any, form: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def paletted(label: Bytes, colours: list[int]) -> Image.Image:
    image = Image.fromarray(label).copy()
    image.putpalette(colours)
    return image


def png(samples: NDArray[np.integer[Any]], depth: int, colour_type: int) -> bytes:
    """A PNG of any depth, by hand (W3C PNG, third edition): samples (height, width * channels)."""
    height, width = samples.shape
    width //= {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    bits = np.unpackbits(samples.astype(">u2").view(np.uint8).reshape(height, -1, 2), axis=-1)[..., -depth:]
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits.reshape(height, -1))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def refused(data: bytes, rules: LabelRules, max_pixels: int = PLENTY) -> str:
    with pytest.raises(ItemError) as caught:
        read_label(data, rules, max_pixels)
    return f"{caught.value.error_type}: {caught.value.reason}"


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF", "JPEG2000"])
def test_numbers_are_classes_in_every_lossless_form(form: str) -> None:
    label = random_map([*range(11), 255])
    read = read_label(file(label, form), ELEVEN, PLENTY)
    assert read.dtype == np.uint8
    assert np.array_equal(read, label)


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_grey_in_several_channels_and_alpha_left_out(form: str, mode: str) -> None:
    label = random_map([*range(11), 255])
    image = Image.fromarray(label).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(random_map([0, 7, 255], seed=1)))
    options: dict[str, Any] = {"lossless": True, "exact": True} if form == "WEBP" else {}
    assert np.array_equal(read_label(file(image, form, **options), ELEVEN, PLENTY), label)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_of_a_palette_the_index_counts(form: str) -> None:
    label = random_map([*range(11), 255])
    colours = np.random.default_rng(1).integers(0, 256, 768).tolist()
    assert np.array_equal(read_label(file(paletted(label, colours), form), ELEVEN, PLENTY), label)


def test_of_a_gif_the_grey_counts_for_its_index_is_the_encoders() -> None:
    label = random_map([3, 7])
    data = file(label, "GIF")
    assert set(np.unique(np.asarray(Image.open(io.BytesIO(data))))) == {0, 1}
    assert np.array_equal(read_label(data, ELEVEN, PLENTY), label)
    coloured = paletted(random_map([0, 1]), [9, 9, 9, 200, 0, 0])
    assert "with (200, 0, 0) for one" in refused(file(coloured, "GIF"), ELEVEN)


def test_of_a_palette_with_alpha_the_index_counts() -> None:
    label = random_map([0, 1, 2, 3])
    image = paletted(label, [9, 9, 9, 200, 0, 0, 0, 200, 0, 5, 6, 7])
    assert np.array_equal(read_label(file(image, transparency=1), ELEVEN, PLENTY), label)
    assert np.array_equal(read_label(file(image.convert("PA"), "TIFF"), ELEVEN, PLENTY), label)


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_shallow_and_deep_grey_are_neither_stretched_nor_cut(depth: int) -> None:
    label = random_map(list(range(min(11, 1 << depth))))
    assert np.array_equal(read_label(png(label, depth, 0), ELEVEN, PLENTY), label)
    assert np.array_equal(read_label(file(label.astype(np.uint16), "TIFF"), ELEVEN, PLENTY), label)
    assert np.array_equal(read_label(file(label.astype(np.int32), "TIFF"), ELEVEN, PLENTY), label)


def test_one_bit_is_black_0_and_white_1_whatever_is_declared() -> None:
    label = random_map([0, 1])
    for rules in (LabelRules(classes=2), BINARY, ELEVEN):
        assert np.array_equal(read_label(png(label, 1, 0), rules, PLENTY), label)
        for form in ("PNG", "TIFF", "BMP"):
            assert np.array_equal(read_label(file(label * 255, form, "1"), rules, PLENTY), label)


@pytest.mark.parametrize("values", [[0, 255], [0], [255], [0, 1], [1]])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "GIF"])
def test_binary_masks(form: str, values: list[int]) -> None:
    mask = random_map(values)
    expected = (mask > 0).astype(np.uint8)
    assert np.array_equal(read_label(file(mask, form), BINARY, PLENTY), expected)
    as_indices = read_label(file(mask, form), LabelRules(classes=2), PLENTY)
    assert np.array_equal(as_indices, mask)  # 255 is void there


def test_binary_masks_of_every_depth_and_colour() -> None:
    on = random_map([0, 1])
    for depth in (1, 2, 4, 8, 16):
        assert np.array_equal(
            read_label(png(on.astype(np.uint16) * ((1 << depth) - 1), depth, 0), BINARY, PLENTY), on
        )
    assert np.array_equal(read_label(png(on.astype(np.uint16) * 255, 16, 0), BINARY, PLENTY), on)
    assert np.array_equal(read_label(file(on * 255, mode="RGB"), BINARY, PLENTY), on)


def test_binary_masks_with_declared_void() -> None:
    trimap = random_map([0, 127, 255])
    rules = LabelRules(classes=2, values="binary", void=(127,))
    expected = np.select([trimap == 0, trimap == 255], [0, 1], 255)
    assert np.array_equal(read_label(file(trimap), rules, PLENTY), expected)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF", "TIFF"])
def test_lossy_masks_are_cut_at_half(form: str) -> None:
    row, col = np.mgrid[:48, :64]
    mask = (128 + 60 * (15 - np.hypot(row - 20, col - 30))).clip(0, 255).astype(np.uint8)  # soft edges
    options: dict[str, Any] = {"compression": "jpeg"} if form == "TIFF" else {}
    data = file(mask, form, "RGB", quality=50, **options)
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(data))))) > 2  # so there is something to cut
    assert (read_label(data, BINARY, PLENTY) != (mask >= 128)).mean() < 0.02
    assert "store other labels as png" in refused(data, ELEVEN).lower()
    assert "unsupported" in refused(data, LabelRules(classes=2, values="binary", void=(127,)))
    assert "store labels as PNG" in refused(data, RED_GREEN)


def test_declared_void_comes_before_classes() -> None:
    label = random_map([*range(12), 255])
    read = read_label(file(label), LabelRules(classes=11, void=(11, 3)), PLENTY)
    assert np.array_equal(read, np.where(np.isin(label, [3, 11]), 255, label))


def test_colours_of_a_map() -> None:
    label = random_map([0, 1, 2, 255])
    rgb = np.zeros((*label.shape, 3), np.uint8)
    for colour, name in (RED_GREEN.colours or {}).items():
        rgb[label == name] = colour
    image = Image.fromarray(rgb)
    for data in (
        file(image),
        file(image, mode="RGBA"),
        file(image, "TIFF"),
        file(image, "WEBP", lossless=True),
        file(image.quantize(4)),  # with colours, palettes go by colour too
    ):
        assert np.array_equal(read_label(data, RED_GREEN, PLENTY), label)
    assert np.array_equal(
        read_label(file(np.full((4, 5), 9, np.uint8)), RED_GREEN, PLENTY), np.full((4, 5), 255)
    )


def test_unknown_colours_are_named() -> None:
    rgb = np.zeros((4, 5, 3), np.uint8)
    rgb[1, 2:4] = 1, 2, 3
    last = np.full((2, 2, 3), 255, np.uint8)
    assert "colour (255, 255, 255) is not one of 4 given; 4 pixels" in refused(file(last), RED_GREEN)
    assert "colour (1, 2, 3) is not one of 4 given; 2 pixels" in refused(file(rgb), RED_GREEN)
    loose = LabelRules(classes=3, colours=RED_GREEN.colours, unknown_is_void=True)
    expected = np.zeros((4, 5))
    expected[1, 2:4] = 255
    assert np.array_equal(read_label(file(rgb), loose, PLENTY), expected)
    assert "with (1, 2, 3) for one: say with `colours` which" in refused(file(rgb), ELEVEN)
    assert "numbers, not colours" in refused(file(rgb[..., 0].astype(np.uint16)), RED_GREEN)


def test_colours_as_settings_name_them() -> None:
    given: dict[str, int | str] = {
        "0,0,255": "sky",
        "(255, 0, 0)": 1,
        "#00fF00": "1",
        "0,0,0": "void",
        "1,1,1": 255,
    }
    found = {(0, 0, 255): 0, (255, 0, 0): 1, (0, 255, 0): 1, (0, 0, 0): 255, (1, 1, 1): 255}
    assert colours_of(given, ("sky", "road")) == found
    assert colours_of({"0,0,0": "void"}, ("sky", "void")) == {(0, 0, 0): 1}
    assert colours_of({}, ("sky",)) is None


def test_colours_and_numbers_exclude_each_other() -> None:
    given, classes = {"0,0,255": "sky", "0,0,0": "void"}, ("sky", "road")
    assert colour_rules(given, classes) == LabelRules(2, colours={(0, 0, 255): 0, (0, 0, 0): 255})
    for values, void in (("indices", []), ("auto", [11])):
        with pytest.raises(SettingsError, match="colours: values and void are for numbers"):
            colour_rules(given, classes, values, void)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"0,0": 0}, "'0,0' is not a colour: write red,green,blue of 0 to 255, or #rrggbb"),
        ({"#fff": 0}, "'#fff' is not a colour"),
        ({"blue": 0}, "'blue' is not a colour"),
        ({"0,0,256": 0}, r"\(0, 0, 256\) is no"),
        ({"0,0,0": "tree"}, "'tree' is neither one of the classes sky, road nor void"),
        ({"0,0,0": -1}, "-1 is neither one of the classes"),
        ({"0,0,0": 2}, "is class 2; there are 0 to 1"),
        ({"0,0,255": 0, "#0000ff": 1}, "#0000ff is class 0 and class 1"),
    ],
)
def test_colours_that_cannot_be_used(given: dict[str, int | str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        LabelRules(2, colours=colours_of(given, ("sky", "road")))


ELEVEN_AND_VOID = LabelRules(classes=11, void=(11,))


@pytest.mark.parametrize(
    ("values", "kind", "rules", "words", "loosely"),
    [
        ([0, 10, 11], np.uint8, ELEVEN, "value 11 in 14 pixels: labels hold 0 to 10, and 255", [0, 10, 255]),
        ([0, 254, 255], np.uint8, ELEVEN, "value 254 in 14", [0, 255, 255]),
        (
            [0, 12, 11],
            np.uint8,
            ELEVEN_AND_VOID,
            "value 12 in 14 pixels: .*, besides 11 for void",
            [0, 255, 255],
        ),
        (
            [0, 1, 255],
            np.uint8,
            BINARY,
            "value 1 in 14 pixels: labels hold 0 and 255, or 0 and 1",
            [0, 255, 1],
        ),
        ([0, 2], np.uint8, BINARY, "value 2 in 21", [0, 255]),
        ([0, 1, 2], np.uint8, BINARY, "value 2 in 14", [0, 1, 255]),
        ([0, 1, 300], np.uint16, ELEVEN, "value 300 in 14", [0, 1, 255]),  # 44 in its lower byte
        ([0, 1, 65535], np.uint16, ELEVEN, "value 65535 in 14", [0, 1, 255]),
        ([0, 1, -1], np.int32, ELEVEN, "value -1 in 14", [0, 1, 255]),
        ([0, 1, 65536], np.int32, ELEVEN, "value 65536 in 14", [0, 1, 255]),
        (
            [0, 40, 41, 42, 42, 42],
            np.uint8,
            ELEVEN,
            "value 42 in 21 pixels and 2 other values",
            [0, *[255] * 5],
        ),
    ],
)
def test_values_that_are_no_class_are_named(
    values: list[int], kind: type, rules: LabelRules, words: str, loosely: list[int]
) -> None:
    data = file(np.resize(np.array(values, kind), (6, 7)), "TIFF")
    assert re.match(f"unsupported: {words}", refused(data, rules))
    loose = LabelRules(rules.classes, rules.values, rules.void, unknown_is_void=True)
    assert np.array_equal(read_label(data, loose, PLENTY), np.resize(loosely, (6, 7)))


@pytest.mark.parametrize("colour_type", [2, 4, 6])
def test_deep_colour_is_refused_for_pillow_would_cut_it(colour_type: int) -> None:
    assert "several channels of 16 bits" in refused(png(np.full((4, 12), 5), 16, colour_type), ELEVEN)


def test_forms_without_classes_are_refused() -> None:
    assert "mode F" in refused(file(np.zeros((4, 4), np.float32), "TIFF"), ELEVEN)
    assert "mode CMYK" in refused(file(np.zeros((4, 4), np.uint8), "TIFF", "CMYK"), ELEVEN)


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "RGB", "RGBA", "colours"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_turn_as_their_pictures_do(orientation: int, mode: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    label = random_map([0, 1])
    turns: list[Callable[[Bytes], Bytes]] = [
        lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, np.transpose,
        lambda a: np.rot90(a, -1), lambda a: np.rot90(a, 2).T, np.rot90,
    ]  # fmt: skip
    stored = Image.fromarray(label)
    if mode == "P":
        stored = paletted(label, [9, 9, 9, 200, 0, 0])
    elif mode == "1":
        stored = Image.fromarray(label * 255).convert("1")
    elif mode == "I;16":
        stored = Image.fromarray(label.astype(np.uint16))
    elif mode.startswith("RGB"):
        stored = stored.convert(mode)
    rules = ELEVEN
    if mode == "colours":
        stored = stored.convert("RGB")
        rules = LabelRules(classes=2, colours={(0, 0, 0): 0, (1, 1, 1): 1})
    read = read_label(file(stored, exif=exif), rules, PLENTY)
    assert np.array_equal(read, turns[orientation - 1](label))


def test_limits_and_damage_are_told_as_of_images() -> None:
    data = file(random_map([0, 1], 20, 30))
    assert refused(data, ELEVEN, 599).startswith("too_large: 30 x 20 pixels")
    assert read_label(data, ELEVEN, 600).shape == (20, 30)
    noise = file(random_map(list(range(11)), 90, 90))
    assert refused(noise[: len(noise) // 2], ELEVEN).startswith("truncated")
    assert refused(b"", ELEVEN) == "truncated: the file is empty"
    assert refused(b"no picture", ELEVEN).startswith("corrupt: not an image")
    before = Image.MAX_IMAGE_PIXELS
    refused(data, ELEVEN, 10)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": 0}, "classes 0"),
        ({"classes": 256}, "classes 256"),
        ({"classes": 3, "values": "binary"}, "binary labels have 2"),
        ({"classes": 2, "values": "auto"}, "values 'auto'"),
        ({"classes": 2, "values": "binary", "void": (255,)}, "void 255"),
        ({"classes": 2, "colours": {(0, 0, 0): 2}}, "is class 2"),
        ({"classes": 2, "colours": {(0, 0, 256): 1}}, "(0, 0, 256)"),
        ({"classes": 2, "colours": {}}, "none is given"),
    ],
)
def test_rules_that_contradict_each_other(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        LabelRules(**settings)
    assert words in caught.value.lines[0]


def masks(*values: list[int]) -> list[bytes]:
    return [file(random_map(each, seed=seed)) for seed, each in enumerate(values)]


@pytest.mark.parametrize(
    ("sample", "values", "words"),
    [
        (masks([0, 255], [0], [255]), "binary", "3 label images hold 255 and otherwise only 0"),
        (masks([255]), "binary", "1 label images hold 255"),
        (masks([0, 255], [0, 1]), "indices", "2 label images hold 0, 1, 255"),
        (masks([0, 1, 255]), "indices", "hold 0, 1, 255"),
        (masks([0], [0]), "indices", "hold only 0"),
        (masks([0, 1]), "indices", "hold 0, 1"),
        (masks(list(range(12))), "indices", "hold 0, 1, 2, 3, 4, 5, 6, 7 and 4 others"),
        ([png(random_map([0, 1]), 1, 0), *masks([0, 255])], "binary", "2 label images"),
        ([png(random_map([0, 1]), 1, 0), *masks([0, 1])], "indices", "hold 0, 1"),
        ([png(random_map([0, 3]), 2, 0)], "indices", "hold 0, 3"),
        ([file(random_map([0, 1]).astype(np.uint16) * 65535)], "binary", "hold 255"),
        ([file(random_map([0, 255]), mode="RGBA")], "binary", "hold 255"),
        ([b"no picture", *masks([0, 255])], "binary", "1 label images (1 could not be read: not an image"),
        ([b"no picture"], "indices", "0 label images (1 could not be read"),
        ([], "indices", "0 label images"),
    ],
)
def test_deciding_for_a_whole_data_set(sample: list[bytes], values: str, words: str) -> None:
    decision = decide_values(sample, PLENTY)
    assert decision.values == values
    assert words in decision.reason


def test_deciding_with_void_and_with_jpeg() -> None:
    sample = masks([0, 127, 255])
    assert decide_values(sample, PLENTY).values == "indices"
    assert decide_values(sample, PLENTY, void=(127,)).values == "binary"
    assert decide_values(masks([0, 255]), PLENTY, void=(255,)).values == "indices"
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 20:50] = 255
    assert decide_values([file(mask, "JPEG")], PLENTY).values == "binary"
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    assert decide_values([file(ramp, "JPEG")], PLENTY).values == "indices"


SIZES = [
    ((454, 551), (1055, 1280)),
    ((20, 31), (7, 11)),
    ((7, 11), (21, 33)),
    ((1, 1), (5, 5)),
    ((9, 8), (8, 7)),
]


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_fitting_takes_the_class_under_the_centre(before: tuple[int, int], after: tuple[int, int]) -> None:
    label = np.random.default_rng(2).integers(0, 255, before).astype(np.uint8)
    fitted = fit_to(label, *after)
    assert fitted.shape == after
    assert fitted.flags.c_contiguous
    for row in range(0, after[0], max(1, after[0] // 40)):
        for col in range(0, after[1], max(1, after[1] // 40)):
            source_row = (2 * row + 1) * before[0] // (2 * after[0])
            source_col = (2 * col + 1) * before[1] // (2 * after[1])
            assert fitted[row, col] == label[source_row, source_col]


def test_fitting_as_torch_does() -> None:
    """Where a centre falls on an edge, floating point decides there; these sizes have no such pixel."""
    label = np.random.default_rng(3).integers(0, 255, (45, 55)).astype(np.uint8)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(label)[None, None], size=(106, 128), mode="nearest-exact"
    )
    assert np.array_equal(fit_to(label, 106, 128), theirs[0, 0].numpy())


@pytest.mark.parametrize(
    ("source", "length"), [(96, 48), (96, 24), (1024, 512), (100, 38), (96, 131), (9, 99)]
)
def test_a_label_is_not_a_part_of_a_pixel_off(source: int, length: int) -> None:
    """Half a pixel of the source, were it always the second of two that are as near."""
    middles = (np.arange(length) + 0.5) * source / length
    off = nearest_pixels(source, length) + 0.5 - middles
    assert np.abs(off).max() <= 0.5
    assert abs(off.mean()) < 0.02


def test_a_label_of_its_pictures_size_is_returned_as_it_is() -> None:
    label = random_map([0, 1])
    assert fit_to(label, *label.shape) is label


@pytest.mark.parametrize(
    ("label", "picture", "fits"),
    [
        ((454, 551), (1055, 1280), True),
        ((375, 667), (449, 800), True),  # the worst of the real ones
        ((1000, 1000), (1019, 1000), True),
        ((1000, 1000), (1021, 1000), False),
        ((1000, 1000), (1000, 1021), False),
        ((6, 10), (639, 1000), True),  # 6.39 rows, cut or rounded up
        ((7, 10), (639, 1000), True),
        ((8, 10), (639, 1000), False),
        ((639, 1000), (7, 10), True),
        ((639, 1000), (8, 10), False),
        ((360, 480), (480, 640), True),
        ((360, 480), (360, 640), False),
        ((500, 500), (480, 640), False),
    ],
)
def test_another_shape_is_refused(label: tuple[int, int], picture: tuple[int, int], fits: bool) -> None:
    blank = np.zeros(label, np.uint8)
    if fits:
        assert fit_to(blank, *picture).shape == picture
        return
    with pytest.raises(ItemError) as caught:
        fit_to(blank, *picture)
    assert f"{label[1]} x {label[0]}" in caught.value.reason
    assert f"{picture[1]} x {picture[0]}" in caught.value.reason
    assert "turned" not in caught.value.reason


def test_a_label_that_lies_on_its_side_is_told() -> None:
    with pytest.raises(ItemError, match="rotated by 90 degrees it would fit"):
        fit_to(np.zeros((30, 40), np.uint8), 80, 60)
