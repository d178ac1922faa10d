"""Scenes and footprints -> windows, which are trained on like pairs: a part of a scene and its label.

The label is the class of each pixel, or an instance a footprint; `window_cuts` says how scenes are cut for
either, `window_reader` how windows are read.

Neighbours look alike, so not windows but blocks of `block` x `block` of them are split into train, val and
test, by a hash of the seed, of the scene's content, and of the block's position in it; no pixel is in two
blocks. A scene's content is identified by its size and its first and last 64 KiB: in most files, they hold
the sizes of all compressed blocks. Scenes below folders `train/`, `val/` or `test/` stay there. With areas of
splits, in a file of their own, they decide, and the rest of the scenes is left out. Scenes of the same
location are not recognised: put them below one of these folders, or use areas.

Each footprint that touches a scene takes about 0.3 KB in the driver and, once a machine, in shared memory; a
million of them are fine. Processes that read windows hold none.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from segray.data.footprint_pieces import VISIBLE
from segray.data.footprints import areas_of, boxes_around, footprint_table
from segray.data.pair_folders import SPLIT_NAMES, folder_uri
from segray.data.pair_reader import CocoReading, LabelReading, Reading, digest_of
from segray.data.pairs import Pair, Pairs, Rejected
from segray.data.split_areas import COLUMN, SplitAreas
from segray.data.splits import SplitRule
from segray.data.vector_files import FeatureFile, find_file, open_features
from segray.data.window_cuts import Cut, InstanceCuts, Part, blocks_of, cuts_of, parts_of
from segray.data.window_reader import InstanceWindowReading, WindowReading, address_of, shared
from segray.errors import ItemError, SettingsError
from segray.scenes.crs import can_place
from segray.scenes.scene import Scene, Tiling
from segray.sources.byte_ranges import FileRanges
from segray.sources.file_headers import has_scene_name
from segray.sources.item import Source
from segray.sources.listing import Listing
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings, canonical_uri
from segray.tile_overlap import Window

_ENDS = 64 << 10
"""Bytes at both ends of a scene that identify it."""
_MOST = 255
"""Classes of footprints."""


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
    areas: str | None
    """File of areas that decide the split instead."""
    instances: InstanceCuts | None
    """For instance models; None: the label is the class of each pixel."""
    storage: StorageSettings


@dataclass(frozen=True, slots=True)
class Windows(Pairs):
    """All windows that were listed, as pairs, each with its split."""

    scenes: dict[str, str]
    """Address of a scene -> `Scene.to_json`."""
    footprints: pa.Table
    """Schema FOOTPRINTS: those that touch a scene."""
    names: tuple[str, ...]
    """Names of the classes: from 0 up, or those of instances from 1 up."""
    instances: bool
    summary: str
    """One-line summary."""

    def reading(self, usual: Reading | CocoReading) -> LabelReading:
        """Return how they are read, in any process; what readers need goes to Ray's shared memory."""
        kept = shared(self.scenes, self.footprints)
        if isinstance(usual, CocoReading):
            return InstanceWindowReading(usual.categories, usual.max_pixels, usual.storage, kept)
        return WindowReading(usual.rules, usual.max_pixels, usual.storage, kept)

    def has_label(self, counts: list[int] | None) -> bool:
        """Return whether a window with these counts is used: not without data, nor without a class."""
        return counts is not None if self.instances else bool(counts) and any(counts or ())


def list_windows(settings: WindowSettings, names: Sequence[str] | None) -> Windows:
    """List the scenes in `settings.data`, reading their headers alone, and the footprints on them.

    names: of the classes, see `Windows.names`; None: the values of the class column. Raises SettingsError for
    what cannot be read, and where no footprint lies on any scene.
    """
    scenes, rejected, ignored = _scenes(settings)
    source = find_file(settings.footprints, settings.storage)
    with open_features(source, settings.class_column, settings.storage, settings.layer) as file:
        usable, unplaced = _placeable(scenes, file.crs)
        found = _touching(file, usable, settings, names)
    if not found.table.num_rows:
        raise SettingsError(_nothing(source, usable, [*rejected, *unplaced], found.lines))
    drawing = _drawing(settings, found.names)
    label = replace(source, version=f"{source.version} {drawing}" if source.version else "")
    pairs, left_out = _pairs(usable, label, settings)
    summary = f"{found.told(len(usable))}{_told_of_areas(settings, left_out)}"
    rejected = sorted([*rejected, *unplaced], key=lambda one: one.uri)
    known = {one.source.uri: one.scene.to_json() for one in usable}
    for_instances = settings.instances is not None
    return Windows(pairs, rejected, ignored, known, found.table, found.names, for_instances, summary)


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


@dataclass(frozen=True, slots=True)
class _Found:
    """The footprints on the scenes."""

    table: pa.Table
    """Schema FOOTPRINTS."""
    names: tuple[str, ...]
    lines: int
    """Geometries without an area."""
    unreadable: list[int]
    """Numbers of geometries in the file."""

    def told(self, scenes: int) -> str:
        """Return a summary."""
        text = f"{self.table.num_rows:,} footprints on {scenes:,} scenes"
        text += f" ({self.lines:,} lines and points left out: buffer them first)" if self.lines else ""
        if not self.unreadable:
            return text
        first = f"the first is number {self.unreadable[0]:,}"
        return f"{text} ({len(self.unreadable):,} that cannot be read left out, {first})"


def _touching(
    file: FeatureFile, scenes: list[_Listed], settings: WindowSettings, names: Sequence[str] | None
) -> _Found:
    """Return the areas of the file that touch a scene."""
    boxes = [
        boxes_around(one.scene, Window(0, one.scene.height, 0, one.scene.width), file.crs) for one in scenes
    ]
    tree = shapely.STRtree(shapely.box(*np.concatenate([np.zeros((0, 4)), *boxes]).T))
    shapes, values, others, unreadable, seen = list[Any](), list[Any](), 0, list[int](), 0
    for some in file.batches:
        unreadable += [seen + row + 1 for row in some.unreadable]
        seen += len(some.values)
        for row in np.unique(tree.query(some.shapes)[0]).tolist():
            area = areas_of(some.shapes[row])
            if area.is_empty:
                others += 1
            else:
                shapes.append(area)
                values.append(some.values[row])
    names, classes = _classes(values, settings, names)
    table = footprint_table(np.array([*shapes, None], object)[:-1], classes, file.crs)
    return _Found(table, names, others, unreadable)


def _classes(
    values: list[Any], settings: WindowSettings, names: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of the classes, and the class of each value. Raises SettingsError."""
    if settings.class_column is None:
        return tuple(names or ()), [1] * len(values)
    texts = ["" if value is None else str(value) for value in values]
    names = tuple(sorted({*texts} - {""})) if names is None else tuple(names)
    if len(names) > _MOST:
        raise SettingsError(f"class_column: {len(names)} classes of footprints; at most {_MOST}")
    numbers = {name: number for number, name in enumerate(names, settings.instances is not None)}
    unknown = Counter(str(value) for value, text in zip(values, texts, strict=True) if text not in numbers)
    if unknown:
        found = ", ".join(f"{value} ({count:,})" for value, count in unknown.most_common(8))
        raise SettingsError(f"classes: footprints have values that are not among {', '.join(names)}: {found}")
    return names, [numbers[text] for text in texts]


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
    instances = () if settings.instances is None else (VISIBLE, "of the smaller of footprint and window")
    return digest_of(repr((settings.class_column, [*names], settings.tiling, *instances)).encode())[:16]


def _told_of_areas(settings: WindowSettings, left_out: int) -> str:
    return f"; {left_out:,} windows across the edge of an area left out" if settings.areas else ""


def _pairs(scenes: list[_Listed], label: Source, settings: WindowSettings) -> tuple[list[Pair], int]:
    """Return the windows of all scenes, and how many were left out. Raises SettingsError."""
    parts = [(one, _parts_of(one, areas, settings)) for areas in [_areas(settings)] for one in scenes]
    named = {part.split for _, some in parts for part in some}
    if settings.areas is not None and (lacking := {"train", "val"} - named):
        uri, split = canonical_uri(settings.areas), " or ".join(sorted(lacking))
        raise SettingsError(f"split_areas: {uri}: no area with {COLUMN} {split} lies on the scenes")
    rule, left_out, pairs = SplitRule.of_named(named, *settings.shares), 0, list[Pair]()
    for one, some in parts:
        found = list[tuple[Cut, str]]()
        for part in some:
            split = rule.split_by(part.split, digest_of(f"{one.identity}:{part.key}".encode()))
            cuts, crossing = cuts_of(part, split, one.scene.tile, settings.instances)
            found += [(cut, split) for cut in cuts]
            left_out += crossing
        found.sort(key=lambda each: (each[0][0].row_start, each[0][0].col_start))
        pairs += [_pair(one, label, cut, split) for cut, split in found]
    return pairs, left_out


def _areas(settings: WindowSettings) -> SplitAreas | None:
    return None if settings.areas is None else SplitAreas(settings.areas, settings.storage)


def _parts_of(one: _Listed, areas: SplitAreas | None, settings: WindowSettings) -> list[Part]:
    if areas is None:
        return list(blocks_of(one.scene, settings.block, one.split))
    return list(parts_of(areas.on(one.scene)))


def _pair(one: _Listed, label: Source, cut: Cut, split: str) -> Pair:
    window, own = cut
    image = replace(one.source, uri=one.source.uri + address_of(window))
    item = hashlib.sha256(image.uri.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    if own != window:
        label = replace(label, uri=label.uri + address_of(own))
    return Pair(item, one.name + address_of(window), image, label, split)
