"""Scenes and footprints -> windows, which are trained on like pairs: a part of a scene and its rasterised
labels.

A scene is cut into squares of `window` pixels from its first pixel on, the last ones moved back to end with
it. Where two squares share pixels, each has a label for its own half and void for the other, so no pixel is
learned or scored twice. A window's address is that of its scene with `#xywh=x,y,width,height`, in pixels of
the scene as it is read (as in W3C's Media Fragments).

Neighbours look alike, so not windows but blocks of `block` x `block` of them are split into train, val and
test, by a hash of the seed, of the scene's content, and of the block's position in it; no pixel is in two
blocks. A scene's content is identified by its size and its first and last 64 KiB: in most files, they hold
the sizes of all compressed blocks. Scenes below folders `train/`, `val/` or `test/` stay there. Scenes of the
same location are not recognised: put them below one of these folders.

Each footprint that touches a scene takes about 0.3 KB in the driver and, once a machine, in shared memory; a
million of them are fine. Processes that read windows hold none.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import shapely
from numpy.typing import NDArray

from segray.data.footprints import Footprints, areas_of, boxes_around, footprint_table
from segray.data.pair_folders import SPLIT_NAMES, folder_uri
from segray.data.pair_reader import Example, Reading, digest_of
from segray.data.pairs import FRAGMENT, Pair, Pairs, Rejected
from segray.data.splits import SplitRule
from segray.data.vector_files import FeatureFile, find_file, open_features
from segray.errors import ItemError, SettingsError
from segray.palette import VOID
from segray.scenes.crs import can_place
from segray.scenes.nodata import nodata_mask
from segray.scenes.scene import Scene, Tiling, scene_from
from segray.sources.byte_ranges import FileRanges
from segray.sources.file_headers import has_scene_name
from segray.sources.item import Source
from segray.sources.listing import Listing
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings, canonical_uri
from segray.tile_overlap import Window

_ENDS = 64 << 10
"""Bytes at both ends of a scene that identify it."""
_OPEN = 8
"""Files whose ranges a reader keeps cached."""


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """How scenes are cut into windows and labelled."""

    data: str
    """A scene, or a folder of scenes."""
    footprints: str
    layer: str | None
    """CRS, attribute and layer settings of the footprints' file."""
    class_column: str | None
    """Attribute of the footprints that holds the class name; None: all are class 1."""
    tiling: Tiling
    block: int
    """Side, in windows, of a block that stays in one split."""
    shares: tuple[int, float, float]
    """Seed of the split, shares of val and of test."""
    storage: StorageSettings


@dataclass(frozen=True, slots=True)
class Windows(Pairs):
    """All windows that were listed, as pairs, each with the split of its block."""

    scenes: dict[str, str]
    """Address of a scene -> `Scene.to_json`."""
    footprints: pa.Table
    """Schema FOOTPRINTS: those that touch a scene."""
    summary: str
    """One-line summary."""

    def reading(self, usual: Reading) -> "WindowReading":
        """Return how they are read, in any process; what readers need goes to Ray's shared memory."""
        shared = ray.put((self.scenes, self.footprints))
        return WindowReading(usual.rules, usual.max_pixels, usual.storage, shared)


@dataclass(frozen=True)
class WindowReading(Reading):
    """How windows are read, in any process; see `Reading`."""

    shared: Any
    """Reference to the scenes and the footprints."""

    def reader(self) -> "WindowReader":
        """Return a reader for this process."""
        scenes, footprints = ray.get(self.shared)
        return WindowReader(scenes, Footprints(footprints), self.storage)


class WindowReader:
    """Reads windows; scenes are decoded in a child process that a hostile file may kill."""

    def __init__(self, scenes: Mapping[str, str], footprints: Footprints, storage: StorageSettings) -> None:
        self._scenes, self._footprints, self._storage = scenes, footprints, storage
        self._sandbox = DecodeSandbox()
        self._files: dict[str, FileRanges] = {}

    def read(self, pairs: Sequence[Pair]) -> list[Example | ItemError]:
        """Return each window, or why it cannot be used; one without data has neither pixels nor classes."""
        return [self._read(pair.image) for pair in pairs]

    def _read(self, source: Source) -> Example | ItemError:
        uri = source.uri.rpartition(FRAGMENT)[0]
        scene = scene_from(self._scenes[uri])
        index = index_of(source.uri, scene)
        try:
            room = self._sandbox.room()
            decoded = self._sandbox.window(self._file(source, uri), scene, index, room)
        except ItemError as error:
            return error
        window = scene.grid.window(index)
        if decoded is None:
            pixels = np.zeros((window.height, window.width, 3), np.uint8)
            classes = np.full(pixels.shape[:2], VOID, np.uint8)
        else:
            pixels, classes = decoded.pixels.copy(), own_classes(self._footprints, scene, index)
            if decoded.nodata is not None:
                classes[nodata_mask(decoded.nodata, *classes.shape)] = VOID
        return Example(pixels, classes, digest_of(pixels.tobytes()), digest_of(classes.tobytes()))

    def _file(self, source: Source, uri: str) -> FileRanges:
        if uri not in self._files:
            if len(self._files) >= _OPEN:
                del self._files[next(iter(self._files))]
            self._files[uri] = FileRanges(uri, source.version, source.address, source.size, self._storage)
        return self._files[uri]


def own_classes(footprints: Footprints, scene: Scene, index: int) -> NDArray[np.uint8]:
    """Return the classes (height, width) uint8 of a window: void outside its own part of the scene."""
    window, core = scene.grid.window(index), scene.grid.core(index)
    rows = slice(core.row_start - window.row_start, core.row_stop - window.row_start)
    cols = slice(core.col_start - window.col_start, core.col_stop - window.col_start)
    classes = np.full((window.height, window.width), VOID, np.uint8)
    classes[rows, cols] = footprints.classes(scene, core)
    return classes


def index_of(uri: str, scene: Scene) -> int:
    """Return the index of the window in the scene's grid, from its address."""
    x, y, *_ = map(int, uri.rpartition(FRAGMENT)[2].split(","))
    return -(-y // scene.tile) * scene.grid.cols + -(-x // scene.tile)


def list_windows(settings: WindowSettings, names: Sequence[str]) -> Windows:
    """List the scenes in `settings.data`, reading their headers alone, and the footprints on them.

    names: of the classes. Raises SettingsError for what cannot be read, and where no footprint lies on any
    scene.
    """
    scenes, rejected, ignored = _scenes(settings)
    source = find_file(settings.footprints, settings.storage)
    with open_features(source, settings.class_column, settings.storage, settings.layer) as file:
        usable, unplaced = _placeable(scenes, file.crs)
        table, lines, unreadable = _touching(file, usable, names if settings.class_column else None)
    if not table.num_rows:
        raise SettingsError(_nothing(source, usable, [*rejected, *unplaced], lines))
    summary = f"{table.num_rows:,} footprints on {len(usable):,} scenes"
    summary += f" ({lines:,} lines and points left out: buffer them first)" if lines else ""
    if unreadable:
        summary += (
            f" ({len(unreadable):,} that cannot be read left out, the first is number {unreadable[0]:,})"
        )
    label = replace(source, version=f"{source.version} {_drawing(settings, names)}" if source.version else "")
    pairs = _split([pair for one in usable for pair in _pairs(one, label, settings)], settings)
    rejected = sorted([*rejected, *unplaced], key=lambda one: one.uri)
    known = {one.source.uri: one.scene.to_json() for one in usable}
    return Windows(pairs, rejected, ignored, known, table, summary)


@dataclass(frozen=True, slots=True)
class _Listed:
    """One scene that was listed."""

    source: Source
    scene: Scene
    name: str
    identity: str
    """sha256 of its content's identification, hex."""
    split: str | None
    """Split that its folder names."""


def _scenes(settings: WindowSettings) -> tuple[list[_Listed], list[Rejected], int]:
    """Return (scenes by address, rejected files, number of files that are neither TIFF nor JPEG 2000)."""
    listing = Listing([settings.data], settings.storage)
    base = folder_uri(settings.data)
    found, rejected, others = list[_Listed](), list[Rejected](), 0
    with DecodeSandbox() as sandbox:
        for source in listing:
            if source.error_type is not None:
                rejected.append(Rejected(source.uri, "unsupported", source.error or source.error_type))
            elif not has_scene_name(source):
                others += 1
            else:
                try:
                    found.append(_looked_at(source, base, settings, sandbox))
                except ItemError as error:
                    rejected.append(Rejected(source.uri, "unsupported", error.reason))
    if not found:
        first = f"; the first: {rejected[0].uri}: {rejected[0].error}" if rejected else ""
        raise SettingsError(
            f"{canonical_uri(settings.data)}: no GeoTIFF or JPEG 2000 scene that can be used{first}"
        )
    found.sort(key=lambda one: one.source.uri)
    return list({one.source.uri: one for one in found}.values()), rejected, listing.ignored + others


def _looked_at(source: Source, base: str, settings: WindowSettings, sandbox: DecodeSandbox) -> _Listed:
    file = FileRanges(source.uri, source.version, source.address, source.size, settings.storage)
    scene = sandbox.describe(file, settings.tiling)
    if scene is None or scene.crs is None:
        raise ItemError("unsupported", "it is not georeferenced, so footprints cannot be drawn on it")
    ends = file.read([(0, min(_ENDS, file.size)), (max(0, file.size - _ENDS), min(_ENDS, file.size))])
    name = source.uri.removeprefix(base) if source.uri.startswith(base) else source.uri.rpartition("/")[2]
    split = SPLIT_NAMES.get(name.partition("/")[0].lower()) if "/" in name else None
    identity = digest_of(b"".join([str(file.size).encode(), *ends]))
    return _Listed(source, scene, name, identity, split)


def _placeable(scenes: list[_Listed], crs: str) -> tuple[list[_Listed], list[Rejected]]:
    usable, rejected = list[_Listed](), list[Rejected]()
    for one in scenes:
        problem = can_place(one.scene.crs or "", crs)
        if problem is None:
            usable.append(one)
        else:
            why = f"footprints cannot be transformed to its CRS: {problem}"
            rejected.append(Rejected(one.source.uri, "unsupported", why))
    return usable, rejected


def _touching(
    file: FeatureFile, scenes: list[_Listed], names: Sequence[str] | None
) -> tuple[pa.Table, int, list[int]]:
    """Return (FOOTPRINTS of the areas that touch a scene, geometries without an area, unreadable ones'
    numbers).

    names: of the classes that values name; None: all are class 1.
    """
    boxes = [
        boxes_around(one.scene, Window(0, one.scene.height, 0, one.scene.width), file.crs) for one in scenes
    ]
    tree = shapely.STRtree(shapely.box(*np.concatenate([np.zeros((0, 4)), *boxes]).T))
    shapes, classes, others, unknown = list[Any](), list[int](), 0, Counter[str]()
    unreadable, seen = list[int](), 0
    for some in file.batches:
        unreadable += [seen + row + 1 for row in some.unreadable]
        seen += len(some.values)
        for row in np.unique(tree.query(some.shapes)[0]).tolist():
            area = areas_of(some.shapes[row])
            if area.is_empty:
                others += 1
            elif names is None or some.values[row] in names:
                shapes.append(area)
                classes.append(1 if names is None else names.index(some.values[row]))
            else:
                unknown[str(some.values[row])] += 1
    if unknown:
        found = ", ".join(f"{value} ({count:,})" for value, count in unknown.most_common(8))
        raise SettingsError(
            f"classes: footprints have values that are not among {', '.join(names or ())}: {found}"
        )
    return footprint_table(np.array([*shapes, None], object)[:-1], classes, file.crs), others, unreadable


def _nothing(source: Source, scenes: list[_Listed], rejected: list[Rejected], lines: int) -> str:
    if not scenes:
        return f"{rejected[0].uri}: {rejected[0].error}"
    if lines:
        return (
            f"{source.uri}: lines and points alone lie on the scenes ({lines:,}): buffer them to areas first"
        )
    return (
        f"{source.uri}: no footprint lies on any of {len(scenes):,} scenes: is its coordinate system right?"
    )


def _drawing(settings: WindowSettings, names: Sequence[str]) -> str:
    return digest_of(repr((settings.class_column, [*names], settings.tiling)).encode())[:16]


def _pairs(one: _Listed, label: Source, settings: WindowSettings) -> Iterator[tuple[Pair, str]]:
    """Yield the windows of a scene, each with the digest of its block."""
    grid = one.scene.grid
    rows, cols = (length // one.scene.tile for length in (one.scene.height, one.scene.width))
    for index, window in enumerate(grid):
        row, col = divmod(index, grid.cols)
        # a window that was moved back stays with the neighbour it overlaps
        place = [min(each, max(whole - 1, 0)) // settings.block for each, whole in ((row, rows), (col, cols))]
        fragment = f"{FRAGMENT}{window.col_start},{window.row_start},{window.width},{window.height}"
        image = replace(one.source, uri=one.source.uri + fragment)
        item = hashlib.sha256(image.uri.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        yield (
            Pair(item, one.name + fragment, image, label, one.split),
            digest_of(f"{one.identity}:{place}".encode()),
        )


def _split(windows: list[tuple[Pair, str]], settings: WindowSettings) -> list[Pair]:
    rule = SplitRule.of((pair for pair, _ in windows), *settings.shares)
    return [replace(pair, split=rule.split_by(pair.split, block)) for pair, block in windows]
