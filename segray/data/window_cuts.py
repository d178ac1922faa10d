"""Scene -> parts that are in one split each -> their windows; pure arithmetic.

    semantic         squares of `tile` pixels from the part's first pixel on, the last ones moved back to end
                     with it; where two share pixels, each has a label for its own half
    instance         to train: squares that overlap, so that an object at the edge of one is whole in another;
                     to score: as few windows as may be, which share no pixel, so no object is counted twice

A part is a block of `block` x `block` squares of the whole scene, or what lies in an area (`split_areas`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from segray.data.split_areas import AreaPart
from segray.scenes.scene import Scene
from segray.tile_overlap import Grid, Window

Cut = tuple[Window, Window]
"""A window, and the part of it that is labelled."""


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle of a scene whose windows are in one split."""

    frame: Window
    split: str | None
    """As the data name it."""
    key: str
    """What distinguishes it in the scene, to draw its split."""
    area: AreaPart | None = None


@dataclass(frozen=True, slots=True)
class InstanceCuts:
    """How the windows of instance models are cut."""

    overlap: int
    """Pixels that neighbouring windows to train with share at least."""
    scored: int
    """Longest side of a window to score: as large as the model takes at the scale of training."""


def blocks_of(scene: Scene, block: int, split: str | None) -> Iterator[Part]:
    """Yield the blocks of a scene; a window that was moved back stays with the neighbour it overlaps."""
    rows, cols = (_edges(length, scene.tile, block) for length in (scene.height, scene.width))
    for row, (top, bottom) in enumerate(rows):
        for col, (left, right) in enumerate(cols):
            yield Part(Window(top, bottom, left, right), split, str([row, col]))


def parts_of(areas: list[AreaPart]) -> Iterator[Part]:
    """Yield the parts of a scene that lie in areas."""
    return (Part(each.frame, each.split, f"area {number}", each) for number, each in enumerate(areas))


def cuts_of(part: Part, split: str, tile: int, instances: InstanceCuts | None) -> tuple[list[Cut], int]:
    """Return the windows of a part, which is in `split`, and how many others cross its area's edge."""
    if instances is None:
        found = list(_cut(part.frame, tile, 0))
    elif split == "train":
        found = [(window, window) for window, _ in _cut(part.frame, tile, min(instances.overlap, tile - 1))]
    else:
        is_whole = part.area is None or part.area.is_upright
        found = [(core, core) for _, core in _cut(part.frame, instances.scored if is_whole else tile, 0)]
    if part.area is None:
        return found, 0
    inside = part.area.holds([window for window, _ in found])
    return [each for each, is_in in zip(found, inside, strict=True) if is_in], inside.count(False)


def _edges(length: int, tile: int, block: int) -> list[tuple[int, int]]:
    starts = list(range(0, max(length // tile, 1) * tile, block * tile))
    return list(zip(starts, [*starts[1:], length], strict=True))


def _cut(frame: Window, side: int, overlap: int) -> Iterator[Cut]:
    grid = Grid(frame.height, frame.width, side, overlap)
    for index, window in enumerate(grid):
        yield _moved(window, frame), _moved(grid.core(index), frame)


def _moved(window: Window, frame: Window) -> Window:
    rows, cols = frame.row_start, frame.col_start
    return Window(
        window.row_start + rows, window.row_stop + rows, window.col_start + cols, window.col_stop + cols
    )
