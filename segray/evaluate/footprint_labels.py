"""Footprints on scenes as true instances: polygons of a vector file, as masks in pixels of each scene.

What a scene has of a footprint, and when that counts, is as in training: see `data.footprint_pieces`. Scenes
are those of the predictions; their grids come from the run's ledger, or from the scene's header where it was
small enough to be read whole, their pixels without data from the scene itself. All footprints of the file are
in memory, about 0.3 KB each, and the masks of one scene at a time.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from shapely.geometry import MultiPolygon

from segray.data.coco_file import ImageId, TrueImage
from segray.data.footprint_pieces import VISIBLE, pieces_on
from segray.data.footprints import Footprints, areas_of, footprint_table
from segray.data.vector_files import FeatureFile, find_file, open_features
from segray.errors import ItemError, SettingsError
from segray.evaluate.instance_labels import Wanted
from segray.evaluate.instance_predictions import OutputPredictions
from segray.evaluate.instance_rows import RowList
from segray.evaluate.scene_nodata import nodata_near, scene_file
from segray.evaluate.settings import EvaluateSettings
from segray.masks.spans import Spans
from segray.output.reader import Item
from segray.scenes.crs import can_place
from segray.scenes.scene import Scene, scene_from
from segray.sources.byte_ranges import FileRanges
from segray.sources.sandbox import DecodeSandbox
from segray.tile_overlap import Window

_MOST = 255
"""Classes of footprints."""


class FootprintLabels:
    """The footprints of a vector file on the scenes of a run."""

    def __init__(self, settings: EvaluateSettings, url: str, predictions: OutputPredictions) -> None:
        """Read all footprints. Raises SettingsError."""
        self._settings, self._tiling = settings, predictions.tiling
        self._scenes = {item.image_id: item for item in predictions.items}
        self.images: dict[ImageId, TrueImage] = {
            number: TrueImage(f"{rank:09d} {item.address}", item.address, item.size or (0, 0))
            for rank, (number, item) in enumerate(sorted(self._scenes.items()))
        }
        self._empty = self._others = self._cut = 0
        source = find_file(url, settings.storage)
        with open_features(
            source, settings.class_column, settings.storage, settings.footprints_layer
        ) as file:
            shapes, values = self._areas(file)
            self._crs = file.crs
        names = self._names(values, predictions)
        self.categories = dict(enumerate(names, start=1))
        if settings.class_column is None:
            values = names * len(values)
        kept = [row for row, value in enumerate(values) if value in names]
        self._left_out = len(values) - len(kept)
        chosen = np.array([*(shapes[row] for row in kept), None], object)[:-1]
        self._table = footprint_table(chosen, [names.index(values[row]) + 1 for row in kept], self._crs)

    def _areas(self, file: FeatureFile) -> tuple[list[Any], list[str]]:
        """Return all areas of the file, and the class of each."""
        shapes, values = list[Any](), list[str]()
        for some in file.batches:
            self._others += len(some.unreadable)
            for shape, value in zip(some.shapes, some.values, strict=True):
                area = MultiPolygon() if shape is None else areas_of(shape)
                self._others += shape is not None and area.is_empty
                if not area.is_empty:
                    shapes.append(area)
                    values.append("" if value is None else str(value))
        return shapes, values

    def _names(self, values: list[str], predictions: OutputPredictions) -> list[str]:
        """Return the class names, class 1 first. Raises SettingsError."""
        settings = self._settings
        names = list(settings.classes or [])
        if settings.class_column is not None:
            names = names or sorted(set(values))
        elif len(names) != 1:
            known = predictions.categories()
            if names or len(known) > 1:
                some = f"; predictions have {', '.join(known[:8])}" if known else ""
                raise SettingsError(
                    f"classes: one name, the class of all footprints, or set class_column{some}"
                )
            names = list(known) or ["footprint"]
        if len(names) > _MOST:
            raise SettingsError(f"class_column: {len(names)} classes of footprints; at most {_MOST}")
        return names

    def rows(self, wanted: Wanted) -> Iterator[pa.Table]:
        """Yield the footprints of each scene."""
        footprints = Footprints(self._table)
        with DecodeSandbox() as sandbox:
            for image_id, image in wanted.numbers.items():
                rows = RowList()
                try:
                    item = self._scenes[str(image_id)]
                    scene, file = self._scene(item, sandbox)
                    nodata = nodata_near(footprints, scene, file, sandbox)
                    self._add(rows, image, scene, footprints, nodata)
                except ItemError as error:
                    wanted.broken[image] = f"truth: {error.reason}"
                    continue
                yield rows.table()

    def notes(self) -> list[str]:
        """Return lines on footprints that were left out."""
        lines = [f"{self._others:,} lines, points and unreadable geometries left out"] * bool(self._others)
        lines += [f"{self._left_out:,} footprints of other classes left out"] * bool(self._left_out)
        lines += [f"{self._empty:,} footprints cover no centre of a pixel with data"] * bool(self._empty)
        cut = f"{self._cut:,} footprints are ignored: a scene holds less than {VISIBLE:.0%} of them"
        lines += [cut] * bool(self._cut)
        return lines

    def _scene(self, item: Item, sandbox: DecodeSandbox) -> tuple[Scene, FileRanges]:
        """Return the grid of a scene and its file. Raises ItemError where it has no place on Earth."""
        more: Mapping[str, Any] = item.more or {}
        if more.get("crs") is None:
            raise ItemError("unsupported", "it is not georeferenced, so footprints have no place on it")
        file = scene_file(item.address, more.get("version") or "", self._settings.storage)
        found = scene_from(more["scene"]) if more.get("scene") else sandbox.describe(file, self._tiling)
        if found is None or found.crs is None or found.transform is None:
            raise ItemError("unsupported", "it is not georeferenced, so footprints have no place on it")
        if (found.height, found.width) != item.size:
            raise ItemError("unsupported", "its size has changed since it was annotated")
        problem = can_place(found.crs, self._crs)
        if problem is not None:
            raise ItemError("unsupported", f"footprints cannot be transformed to its CRS: {problem}")
        return found, file

    def _add(self, rows: RowList, image: int, scene: Scene, footprints: Footprints, nodata: Spans) -> None:
        whole = Window(0, scene.height, 0, scene.width)
        for number, piece in enumerate(pieces_on(footprints, scene, whole, nodata)):
            if piece.counts:
                name = f"footprint {number}"
                rows.add(image, piece.category, piece.counts, None, crowd=piece.ignored, name=name)
            self._empty += not piece.counts
            self._cut += piece.ignored and bool(piece.counts)
