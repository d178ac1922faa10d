"""Text drawn into images: one font, the same on all machines, without characters that it lacks."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import ImageFont

LONGEST = 40
"""Maximum characters of a name that are drawn."""


def font_path() -> Path:
    """Return the path of DejaVu Sans, which comes with matplotlib."""
    import matplotlib  # lazy: only needed for drawing

    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font for Pillow; `size` in pixels."""
    return ImageFont.truetype(font_path(), size)


def lettered(text: str, otherwise: str) -> str:
    """Return the text on one line; `otherwise` if it is empty or the font lacks one of its characters."""
    line = " ".join(text.split())
    return line if line and _characters().issuperset(map(ord, line)) else otherwise


def class_names(names: Sequence[str]) -> list[str]:
    """Return names of classes as they are drawn, shortened; `class 3` for one that cannot be drawn."""
    lines = [lettered(name, f"class {index}") for index, name in enumerate(names)]
    return [line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…" for line in lines]


def end_of(text: str, size: int, room: int) -> str:
    """Return the text, or `…` and as much of its end as fits into `room` pixels."""
    if font(size).getlength(text) <= room:
        return text
    text = text[-room:]  # no character is narrower than a pixel
    while len(text) > 1 and font(size).getlength(f"…{text}") > room:
        text = text[1:]
    return f"…{text}"


@cache
def _characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(font_path())).get_charmap())
