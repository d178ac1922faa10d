"""Description of a scene, found before its first window is read; stored as JSON with each of its tiles.

It contains everything that determines a tile's pixels, computed once a scene: two workers that read the same
tile give the model the same pixels.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from segray.tile_overlap import OVERLAP, TILE, Grid

Transform = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): x = a * col + b * row + c, y = d * col + e * row + f, at the corners of pixels."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Settings for scenes; part of a run's identity."""

    tile: int = TILE
    overlap: int = OVERLAP
    bands: tuple[int, ...] | None = None
    """One or three band numbers from 1; None: red, green and blue where they are named, else the first."""
    resolution: float | None = None
    """Minimum metres a pixel: a finer scene is downsampled."""
    scaling: str = "auto"
    """`auto`: uint8 unchanged, other types by `ranges` or percentiles; `percentiles`; or `LOW,HIGH`."""
    picture_pixels: int = 40_000_000
    """Ordinary images with more pixels than this are tiled, too."""
    ranges: Sequence[tuple[float, float]] | None = None
    """For each band the values that were 0 and 255 in training, where the model file has them; `auto` uses
    them instead of percentiles."""
    location: bool = True
    """Whether the time at which a scene was taken is read."""
    volumes: bool = False
    """Whether files are volumes: no scene and no image, see `sources.volume`."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene, in pixels of the resolution that is annotated."""

    height: int
    width: int
    tile: int
    overlap: int
    bands: tuple[int, ...] = ()
    """Numbers from 1 of the bands that become red, green and blue, one or three; empty for an image."""
    scaling: tuple[tuple[float, float], ...] | None = None
    """For each band the values that become 0 and 255; None: uint8 already."""
    crs: str | None = None
    """WKT; None without georeference."""
    transform: Transform | None = None
    """Affine transform from pixels to the CRS; None where `crs` is."""
    note: str | None = None
    """Why it is not georeferenced, where a user would expect it."""
    masked: bool = True
    """Whether pixels with alpha 0 have no data; False: its alpha band is not a mask, or is read as values."""
    told: str | None = None
    """A message for the user about how it was read."""
    taken_at: int | None = None
    """Microseconds since 1970, UTC, at which it was taken; None where the file does not say."""

    @property
    def grid(self) -> Grid:
        """Return the grid of its tiles."""
        return Grid(self.height, self.width, self.tile, self.overlap)

    def to_json(self) -> str:
        """Return one line of JSON; newer fields with default values are omitted, as in earlier versions."""
        values = asdict(self)
        for name, usual in (("masked", True), ("told", None), ("taken_at", None)):
            if values[name] == usual:
                del values[name]
        return json.dumps(values, separators=(",", ":"))


@lru_cache(maxsize=64)
def scene_from(text: str) -> Scene:
    """Return the scene that `Scene.to_json` wrote."""
    values = json.loads(text)
    for name in ("bands", "transform"):
        values[name] = None if values[name] is None else tuple(values[name])
    if values["scaling"] is not None:
        values["scaling"] = tuple((low, high) for low, high in values["scaling"])
    return Scene(**values)


def patches(grid: Grid, done: Sequence[bool] | None, side: int) -> list[list[int]]:
    """Group the tiles left to do in squares of `side` x `side` tiles: neighbours share blocks of the file.

    done: whether each tile has a result; None: none has.
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
