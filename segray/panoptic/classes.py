"""Which classes of the maps are stuff, and the ids of all categories.

Categories of things keep their ids. A stuff class gets `stuff_ids_from` plus its index in the maps: the ids
do not depend on what was found, and the two runs may number their classes as they like.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segray.errors import SettingsError
from segray.palette import palette
from segray.panoptic.settings import PanopticSettings


@dataclass(frozen=True, slots=True)
class Classes:
    """Categories of a panoptic output."""

    things: Mapping[int, str]
    """category_id -> name, of the instances."""
    stuff: Mapping[int, tuple[int, str]]
    """Index in the maps -> (category_id, name)."""
    never_stuff: Sequence[str]
    """Classes of the maps that are things."""

    def coco(self) -> list[dict[str, Any]]:
        """Return the list of COCO-panoptic's categories."""
        named = [(number, name, 1) for number, name in sorted(self.things.items())]
        named += [(number, name, 0) for number, name in sorted(self.stuff.values())]
        colours = palette(255)[1:255].tolist()
        return [
            {
                "id": number,
                "name": name,
                "supercategory": "thing" if is_thing else "stuff",
                "isthing": is_thing,
                "color": colours[place % len(colours)],
            }
            for place, (number, name, is_thing) in enumerate(named)
        ]


def classes_of(things: Mapping[int, str], maps: Sequence[str], settings: PanopticSettings) -> Classes:
    """Return the categories; things: of the instances; maps: names of the maps' classes, from 0 up.

    Raises SettingsError for names that no map has, and where ids collide.
    """
    known = {_plain(name) for name in maps}
    lines = [
        f"{setting}: the maps have no class {name}; they have {', '.join(maps)}"
        for setting, names in (("things", settings.things), ("void", settings.void))
        for name in names
        if _plain(name) not in known
    ]
    instances = {_plain(name) for name in things.values()} | set(map(_plain, settings.things))
    nothing = set(map(_plain, settings.void))
    first = settings.stuff_ids_from
    stuff = {
        index: (first + index, name)
        for index, name in enumerate(maps)
        if _plain(name) not in instances | nothing
    }
    if clash := sorted(things.keys() & {number for number, _ in stuff.values()}):
        most = max(things)
        lines.append(
            f"stuff_ids_from: category {clash[0]} of the instances, {things[clash[0]]}, has an id of the "
            f"stuff; set it above {most}"
        )
    if lines:
        raise SettingsError(*lines)
    return Classes(things, stuff, [name for name in maps if _plain(name) in instances])


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()
