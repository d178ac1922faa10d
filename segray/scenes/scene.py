"""What is known of a scene before its first window is read; travels as JSON beside each of its tiles.

Everything that decides a tile's pixels is in here, found once a scene: two workers that read the same tile
give the model the same pixels.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from segray.tiles import OVERLAP, TILE, Grid

Transform = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): x = a * col + b * row + c, y = d * col + e * row + f, at the corners of pixels."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """What the settings say about scenes; part of a run's identity."""

    tile: int = TILE
    overlap: int = OVERLAP
    bands: tuple[int, ...] | None = None
    """One or three numbers from 1; None: red, green and blue where they are named, else the first."""
    resolution: float | None = None
    """Metres a pixel at least: a finer scene is read coarser."""
    scaling: str = "auto"
    """`auto`: bytes as they are, other numbers by `ranges` or percentiles; `percentiles`; or `LOW,HIGH`."""
    picture_pixels: int = 40_000_000
    """Ordinary pictures above this are tiled, too."""
    ranges: Sequence[tuple[float, float]] | None = None
    """For each band the values that were 0 and 255 when the model learned, where its file says so; `auto`
    takes them instead of percentiles."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene, in pixels of the size that is annotated."""

    height: int
    width: int
    tile: int
    overlap: int
    bands: tuple[int, ...] = ()
    """Numbers from 1 of the bands that become red, green and blue, one or three; empty for a picture."""
    scaling: tuple[tuple[float, float], ...] | None = None
    """For each band the values that become 0 and 255; None: they are bytes already."""
    crs: str | None = None
    """WKT; None where the pixels have no place on Earth."""
    transform: Transform | None = None
    """Pixels to the CRS; None with `crs`."""
    note: str | None = None
    """Why its pixels have no place on Earth, where a user would expect one."""
    masked: bool = True
    """Where its alpha band is 0, there is no data; False: that band is none, or is read."""
    told: str | None = None
    """What a user should know of how it was read."""

    @property
    def grid(self) -> Grid:
        """Its tiles."""
        return Grid(self.height, self.width, self.tile, self.overlap)

    def to_json(self) -> str:
        """One line; without what is as in most scenes, so that it is the line of before there was that."""
        values = asdict(self)
        for name, usual in (("masked", True), ("told", None)):
            if values[name] == usual:
                del values[name]
        return json.dumps(values, separators=(",", ":"))


@lru_cache(maxsize=64)
def scene_from(text: str) -> Scene:
    """What `Scene.to_json` wrote."""
    values = json.loads(text)
    for name in ("bands", "transform"):
        values[name] = None if values[name] is None else tuple(values[name])
    if values["scaling"] is not None:
        values["scaling"] = tuple((low, high) for low, high in values["scaling"])
    return Scene(**values)


def patches(grid: Grid, done: Sequence[bool] | None, side: int) -> list[list[int]]:
    """The tiles that are left, in squares of `side` tiles: neighbours share blocks of the file.

    `done`: of each tile, whether it has an answer; None: of none.
    """
    found = []
    for row in range(0, grid.rows, side):
        for col in range(0, grid.cols, side):
            square = [
                each_row * grid.cols + each_col
                for each_row in range(row, min(row + side, grid.rows))
                for each_col in range(col, min(col + side, grid.cols))
            ]
            left = [index for index in square if done is None or not done[index]]
            found += [left] if left else []
    return found
