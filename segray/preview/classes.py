"""Classes as the pages show them: names, colours, counts."""

from collections.abc import Mapping, Sequence
from typing import Any

from segray.palette import VOID, palette

_DARKEST, _LIGHTEST, _POWER = 60, 255, 0.5
"""VOC's colours go from 0 to 224 in each band; outlines must be seen on dark pictures too."""


def coloured(names: Sequence[str], counts: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """Return each class with its colour: VOC's by its position from 1, made lighter; all differ up to 254."""
    table = palette(VOID)
    return [
        {
            "name": name,
            "colour": lighter(table[1 + index % (VOID - 1)].tolist()),
            "count": (counts or {}).get(name, 0),
        }
        for index, name in enumerate(names)
    ]


def lighter(colour: Sequence[int]) -> list[int]:
    """Return a colour without dark bands, as different from others as before."""
    return [round(_DARKEST + (_LIGHTEST - _DARKEST) * (value / 224) ** _POWER) for value in colour]
