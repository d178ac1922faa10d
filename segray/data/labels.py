"""The bytes of a label image -> uint8 (height, width): the class of each pixel, 255 where it is void.

What a pixel means, by the format of the file (EXIF orientation is applied, as to images; alpha is dropped,
and of several pages the first is read):

    grey of 2, 4, 8 or 16 bits, integers   the number that is stored, not the brightness that is shown
    grey of 1 bit                          black 0, white 1
    palette of PNG, TIFF or BMP            the index, whatever its colour
    colour, GIF                            the value, if red, green and blue are equal everywhere (GIF has no
                                           grey, and its encoders renumber the palette in each file)
    JPEG (in TIFF too), AVIF, HEIC, lossy WebP  binary only, cut at 128: compression changes the values

What a number means is decided for the data set, never for one image:

    indices   0 to classes - 1 are classes, 255 is void
    binary    0 is 0; 255 (or 65535, or the white of a shallower depth) is 1; images of 0 and 1 stay as
              they are. 255 is not void, and an image with 1 and 255 is refused

The rules may name further values that are void. With `colours`, the colour decides instead, in any
format. Everything else is an ItemError that names the value: a wrong class costs more than a missing image.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from segray.errors import ItemError, SettingsError
from segray.palette import VOID
from segray.sources.label_image import Stored, read_stored

ASPECT = 0.02
"""Relative tolerance of a label's width / height to its image's. Of 157 real masks stored at another scale
than their photograph the worst was 0.0017 off, by rounding; a small crop or another image differs more."""
_WHITE = 128
"""Threshold from which a lossy image is white."""
_POLAR = 0.05
"""Maximum share of a lossy image's pixels between black and white, 64 to 191, that edges explain."""

Labels = NDArray[np.uint8]
Values = Literal["indices", "binary"]
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class LabelRules:
    """How the label images of one data set are read."""

    classes: int
    """1 to 255; class indices begin with 0."""
    values: Values = "indices"
    """What the numbers mean; see `decide_values` for a data set that does not define it."""
    void: tuple[int, ...] = ()
    """Values besides 255 that belong to no class (CamVid: 11)."""
    colours: Mapping[Colour, int] | None = None
    """(red, green, blue) -> class or 255; None where label images hold numbers."""
    unknown_is_void: bool = False
    """Read unknown values as void instead of refusing the image: for predictions, whose pixels count."""

    def __post_init__(self) -> None:
        """Raise SettingsError for rules that contradict each other."""
        if not 1 <= self.classes <= VOID:
            raise SettingsError(f"classes {self.classes}: a label holds 1 to {VOID} classes")
        if self.values not in ("indices", "binary"):
            raise SettingsError(f"values {self.values!r}: choose indices or binary")
        if self.values == "binary" and self.classes != 2:
            raise SettingsError(f"classes {self.classes}: binary labels have 2, background and foreground")
        if self.values == "binary" and VOID in self.void:
            raise SettingsError("void 255: it is the foreground of binary labels; choose values indices")
        if self.colours is not None:
            self._check_colours(self.colours)

    def _check_colours(self, colours: Mapping[Colour, int]) -> None:
        if not colours:
            raise SettingsError("colours: none is given; leave colours out where label images hold numbers")
        for colour, name in colours.items():
            if len(colour) != 3 or not all(0 <= each <= 255 for each in colour):
                raise SettingsError(f"colours: {colour} is not (red, green, blue) of 0 to 255")
            if name != VOID and not 0 <= name < self.classes:
                raise SettingsError(
                    f"colours: {colour} is class {name}; there are 0 to {self.classes - 1}, and 255"
                )


@dataclass(frozen=True, slots=True)
class Decision:
    """What the values of a data set mean, and why."""

    values: Values
    reason: str
    """The reason, in one line for a person."""


class ReadStored(Protocol):
    """`read_stored`, or a sandbox's `stored`, which is safe with hostile files."""

    def __call__(self, data: bytes, max_pixels: int, *, coloured: bool = False) -> Stored: ...


def colour_rules(
    given: Mapping[str, int | str],
    classes: Sequence[str],
    values: str = "auto",
    void: Sequence[int] = (),
    *,
    unknown_is_void: bool = False,
) -> LabelRules:
    """Return the rules for label images in colour, with the other settings of labels.

    Raises SettingsError.
    """
    if values != "auto" or void:
        raise SettingsError(
            'colours: values and void are for numbers; a colour without a class is "void" in colours'
        )
    return LabelRules(len(classes), colours=colours_of(given, classes), unknown_is_void=unknown_is_void)


def colours_of(given: Mapping[str, int | str], classes: Sequence[str]) -> dict[Colour, int] | None:
    """Return `given`, colour -> class as settings name both, for LabelRules; None where it is empty.

    A colour is `red,green,blue` or `#rrggbb`; a class is its name or number, or `void` or 255 for none.
    Raises SettingsError for anything else, and for a colour with two classes.
    """
    numbers: dict[object, int] = {"void": VOID, **{name: number for number, name in enumerate(classes)}}
    found = dict[Colour, int]()
    for written, name in given.items():
        colour, number = _colour(written), numbers.get(name)
        if number is None and str(name).isdecimal():
            number = int(name)
        if number is None:
            raise SettingsError(
                f"colours: {name!r} is neither one of the classes {', '.join(classes)} nor void"
            )
        if found.setdefault(colour, number) != number:
            raise SettingsError(f"colours: {written} is class {found[colour]} and class {number}")
    return found or None


def _colour(written: str) -> Colour:
    if re.fullmatch(r"#[0-9a-fA-F]{6}", written):
        red, green, blue = bytes.fromhex(written[1:])
        return red, green, blue
    parts = written.strip("()[] ").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise SettingsError(
            f"colours: {written!r} is not a colour: write red,green,blue of 0 to 255, or #rrggbb"
        )
    red, green, blue = map(int, parts)
    return red, green, blue


def read_label(data: bytes, rules: LabelRules, max_pixels: int, read: ReadStored = read_stored) -> Labels:
    """Return the classes (height, width) uint8 in the encoded image `data` of at most `max_pixels` pixels.

    Raises ItemError: as `decode_rgb` for what cannot be decoded; `unsupported` for a number or colour that
    the rules do not know, and for a format that holds no classes.
    """
    stored = read(data, max_pixels, coloured=rules.colours is not None)
    if rules.colours is not None:
        return _by_colour(stored, rules.colours, rules)
    if stored.lossy:
        return _halved(stored, rules)
    return by_number(stored, rules)


def decide_values(
    sample: Iterable[bytes], max_pixels: int, void: tuple[int, ...] = (), read: ReadStored = read_stored
) -> Decision:
    """Decide whether label images hold indices or 0 and 255, from some encoded images of the data set.

    Binary if 255 occurs in them and all other values are 0; values in `void` are ignored. Images of 1 bit
    fit both, and those that cannot be read are skipped.
    """
    seen: set[int] = set()
    looked, failed = 0, list[str]()
    for data in sample:
        try:
            seen |= _numbers(read(data, max_pixels))
            looked += 1
        except ItemError as error:
            failed.append(error.reason)
    what = f"{looked} label images" + (f" ({len(failed)} could not be read: {failed[0]})" if failed else "")
    if VOID in void:
        return Decision("indices", "255 is declared void")
    if not seen - {0, *void}:
        return Decision("indices", f"{what} hold only 0")
    if seen - {0, *void} == {VOID}:
        return Decision("binary", f"{what} hold 255 and otherwise only {_listed({0, *void})}")
    return Decision("indices", f"{what} hold {_listed(seen)}")


def fit_to(label: Labels, height: int, width: int) -> Labels:
    """Return the label (height, width) uint8 at its image's size: each pixel takes the class under its
    centre.

    A label of another shape (width / height more than `ASPECT` off, and more than one pixel) is refused with
    ItemError.
    """
    if label.shape == (height, width):
        return label
    _check_shape(label, height, width)
    rows, cols = nearest_pixels(label.shape[0], height), nearest_pixels(label.shape[1], width)
    fitted: Labels = label.take(rows, axis=0).take(cols, axis=1)
    return fitted


def nearest_pixels(source: int, length: int) -> NDArray[np.int64]:
    """Return (length,) int64: for each of `length` pixels, the nearest of an axis of `source` pixels.

    OpenCV's INTER_NEAREST_EXACT and torch's `nearest-exact`, except for ties: alternately the first and the
    second, where always the second would be half a pixel off on an image that is halved.
    """
    places = np.arange(length)
    middles = (2 * places + 1) * source  # in units of 1 / (2 * length)
    ties = (middles % (2 * length) == 0) & (places % 2 == 0)
    found: NDArray[np.int64] = middles // (2 * length) - ties
    return found


def _check_shape(label: Labels, height: int, width: int) -> None:
    label_height, label_width = label.shape
    if _same_shape(label_height, label_width, height, width):
        return
    turned = _same_shape(label_width, label_height, height, width)
    hint = "; rotated by 90 degrees it would fit: only one of the two was rotated" if turned else ""
    raise ItemError(
        "unsupported",
        f"the label has {label_width} x {label_height} pixels, its image {width} x {height}: "
        f"another shape, not another scale{hint}",
    )


def _same_shape(label_height: int, label_width: int, height: int, width: int) -> bool:
    """Return whether both shapes are equal up to `ASPECT`, or up to a pixel of a side of the smaller."""
    one, other = label_height * width, label_width * height
    pixel = max(height, width, label_height, label_width)
    return abs(one - other) <= max(ASPECT * min(one, other), pixel)


def by_number(stored: Stored, rules: LabelRules) -> Labels:
    """Return the classes uint8 of stored numbers, of the same shape. Raises ItemError for unknown ones."""
    values = stored.values
    void = np.zeros(values.shape, bool)
    for each in rules.void:
        void |= values == each
    if rules.values == "binary":
        on = next((each for each in (stored.white, VOID, 1) if (values == each).any()), 1)
        labels: NDArray[Any] = values == on
        known = (values == 0) | labels
    else:
        labels, known = values, (values >= 0) & (values < rules.classes)
        void |= values == VOID
    unknown = ~(known | void)
    if unknown.any() and not rules.unknown_is_void:
        raise _unknown(values[unknown], rules)
    return np.where(known & ~void, labels, VOID).astype(np.uint8)


def _unknown(values: NDArray[Any], rules: LabelRules) -> ItemError:
    found, pixels = np.unique(values, return_counts=True)
    most = int(pixels.argmax())
    others = f" and {len(found) - 1} other values" if len(found) > 1 else ""
    binary = rules.values == "binary"
    known = "0 and 255, or 0 and 1" if binary else f"0 to {rules.classes - 1}, and 255 for void"
    ask = "name others that are void" if binary else "name more --classes, or what is void"
    void = f", besides {_listed(set(rules.void))} for void" if rules.void else ""
    return ItemError(
        "unsupported",
        f"value {found[most]} in {pixels[most]:,} pixels{others}: labels hold {known}{void}; "
        f"{ask} with --void",
    )


def _halved(stored: Stored, rules: LabelRules) -> Labels:
    if rules.values != "binary" or rules.void:
        raise ItemError(
            "unsupported",
            f"{stored.form} changes the values it stores; only binary masks can be read from it. "
            "Store other labels as PNG",
        )
    return (stored.values >= _WHITE).astype(np.uint8)


def _by_colour(stored: Stored, colours: Mapping[Colour, int], rules: LabelRules) -> Labels:
    if stored.lossy:
        raise ItemError("unsupported", f"{stored.form} changes the colours it stores; store labels as PNG")
    wide = stored.values.astype(np.uint32)
    codes = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    keys = sorted((red << 16 | green << 8 | blue, name) for (red, green, blue), name in colours.items())
    known = np.array([code for code, _ in keys], np.uint32)
    place = np.searchsorted(known, codes).clip(max=len(known) - 1)
    unknown = known[place] != codes
    if unknown.any() and not rules.unknown_is_void:
        colour = tuple(stored.values[unknown][0].tolist())
        raise ItemError(
            "unsupported",
            f"colour {colour} is not one of {len(known)} given; {int(unknown.sum()):,} pixels have no class",
        )
    return np.where(unknown, VOID, np.array([name for _, name in keys], np.uint8)[place])


def _numbers(stored: Stored) -> set[int]:
    """Return an image's values as the data set means them: white of 8 and 16 bits is 255; none for 1 bit."""
    values = stored.values
    if stored.white == 1:
        return set()
    if stored.lossy and ((values >= 64) & (values < 192)).mean() < _POLAR:
        return {VOID} if (values >= 192).any() else {0}
    found = set(np.unique(values).tolist())
    return {VOID if each == stored.white >= VOID else each for each in found}


def _listed(values: set[int]) -> str:
    """Return text such as `0, 3, 7 and 12 others`."""
    first = ", ".join(map(str, sorted(values)[:8]))
    return f"{first} and {len(values) - 8} others" if len(values) > 8 else first
