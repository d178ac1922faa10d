"""Outlines on the map, corrected in QGIS: GeoPackage or GeoJSON, in any CRS -> pixels of the run's scenes.

A feature is of the image that its `image_id` names; without one, as for a new outline, of the first scene
that holds a point inside it. A pixel is in a mask where its centre is inside the outline: so an outline along
pixel edges, as `export` writes it, makes the same mask. Edges are straight in the CRS of the scene.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.features import rasterize
from rasterio.transform import Affine
from shapely.geometry.base import BaseGeometry

from segray.data.coco_file import whole_id
from segray.data.footprints import areas_of
from segray.data.vector_files import find_file, local_copy
from segray.errors import ItemError, SettingsError
from segray.export.table import Image
from segray.importer.drawn import Drawn, Looked, failing, pasted
from segray.importer.pile import Pile
from segray.importer.rejects import Rejects
from segray.importer.run_images import RunImages
from segray.importer.settings import ImportOptions
from segray.scenes.crs import Floats, can_place, through, transformer
from segray.scenes.georeference import Place
from segray.scenes.scene import Scene, scene_from
from segray.schema import CRS84
from segray.sources.concurrent_requests import describe
from segray.sources.reader import open_source

_FIELDS = ("image_id", "instance_id", "category_id", "category")
_ROWS = 2_000


def read_vectors(
    settings: ImportOptions, images: RunImages, rejects: Rejects, folder: Path
) -> Iterator[Looked]:
    """Yield the images with an outline in the file; with `empty_images` all images of the run with a place.

    Raises SettingsError where the file cannot be read.
    """
    scenes = _Scenes(images)
    if not scenes.numbers:
        raise SettingsError("run: none of its images has a place on Earth")
    features, crs = Pile(folder, "features"), ""
    for crs, rows in _batches(settings, folder):
        features.add(_owned(rows, crs, scenes, rejects))
    features.settle()
    without = 0
    for image in scenes.images():
        drawn = [_drawn(row, crs, scenes.scene(image)) for row in features.of(image.image_id)]
        if drawn or settings.empty_images:
            yield Looked(image.address, drawn, image.image_id, (image.height, image.width))
        else:
            without += 1
    features.close()
    rejects.without_outline = without


def _batches(settings: ImportOptions, folder: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the CRS and some rows of the file, each with its feature number and geometry as WKB."""
    source = find_file(settings.file[0], settings.storage)
    try:
        with (
            open_source(source, settings.storage) as stream,
            local_copy(source, stream, f".{settings.format}", settings.storage) as path,
        ):
            layer = _layer(path, settings.layer)
            fields = [each for each in pyogrio.read_info(path, layer=layer)["fields"] if each in _FIELDS]
            with pyogrio.open_arrow(
                path, layer=layer, columns=fields, batch_size=_ROWS, use_pyarrow=True, return_fids=True
            ) as (about, reader):
                crs = about["crs"] or CRS84
                geometry = about["geometry_name"] or "wkb_geometry"
                number = about.get("fid_column") or reader.schema.names[0]
                for batch in reader:
                    rows = batch.to_pylist()
                    yield crs, [{**row, "wkb": row.get(geometry), "fid": row.get(number)} for row in rows]
    except (DataSourceError, DataLayerError, OSError) as error:
        raise SettingsError(f"{source.uri}: it cannot be read: {describe(error)}") from error


def _layer(path: str, wanted: str | None) -> str:
    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if wanted is not None and wanted not in layers:
        raise SettingsError(f"layer: there is no layer {wanted}; there are {', '.join(layers[:20])}")
    if wanted is None and len(layers) != 1:
        chosen = "instances" if "instances" in layers else None
        if chosen is None:
            raise SettingsError(f"layer: choose one of its {len(layers)} layers: {', '.join(layers[:20])}")
        return chosen
    return wanted or layers[0]


class _Scenes:
    """The images of a run that have a place; their corners are in memory, about 300 bytes each."""

    def __init__(self, images: RunImages) -> None:
        self._images = images
        self.numbers = list[str]()
        self._tree: tuple[str, shapely.STRtree] | None = None
        for image in images.table.images():
            text = images.ledger(image).get("scene")
            if text is not None and scene_from(text).transform is not None:
                self.numbers.append(image.image_id)

    def images(self) -> Iterator[Image]:
        """Yield them in their order."""
        for number in self.numbers:
            image = self._images.table.image(number)
            assert image is not None
            yield image

    def scene(self, image: Image) -> Scene:
        """Return the scene of an image."""
        return scene_from(self._images.ledger(image)["scene"])

    def holding(self, points: Sequence[BaseGeometry], crs: str) -> list[str | None]:
        """Return the id of the first scene that holds each point of a CRS."""
        if self._tree is None or self._tree[0] != crs:
            frames = [_frame(self.scene(image), crs) for image in self.images()]
            self._tree = crs, shapely.STRtree(frames)
        found: list[str | None] = [None] * len(points)
        pairs = self._tree[1].query(np.array(points, object), "intersects").T.tolist()
        for point, scene in sorted(pairs, reverse=True):
            found[point] = self.numbers[scene]
        return found


def _frame(scene: Scene, crs: str) -> shapely.Polygon:
    """Return the border of a scene in another CRS; empty where PROJ cannot transform it."""
    steps = np.linspace(0, 1, 9)[:-1]
    ones, zeros = np.ones_like(steps), np.zeros_like(steps)
    cols = np.r_[steps, ones, 1 - steps, zeros] * scene.width
    rows = np.r_[zeros, steps, ones, 1 - steps] * scene.height
    place = _place(scene)
    if can_place(place.crs, crs):
        return shapely.Polygon()
    points = through(transformer(place.crs, crs), place.on_map(np.stack([cols, rows], axis=1)))
    return shapely.Polygon(points) if np.isfinite(points).all() else shapely.Polygon()


def _place(scene: Scene) -> Place:
    assert scene.transform is not None
    assert scene.crs is not None
    return Place(scene.transform, scene.crs)


def _owned(
    rows: list[dict[str, Any]], crs: str, scenes: _Scenes, rejects: Rejects
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (image id, row) of features that are of an image; the geometry as hexadecimal WKB."""
    known = {*scenes.numbers}
    shapes = shapely.from_wkb(np.array([row["wkb"] for row in rows], object), on_invalid="ignore")
    new = [place for place, row in enumerate(rows) if row.get("image_id") not in known]
    there = [place for place in new if shapes[place] is not None and not shapes[place].is_empty]
    owners = scenes.holding([shapes[place].representative_point() for place in there], crs)
    found = dict(zip(there, owners, strict=True))
    for place, (row, shape) in enumerate(zip(rows, shapes, strict=True)):
        owner = found.get(place) if place in new else row["image_id"]
        where = f"feature {row['fid']}"
        if owner is None:
            lost = "it has no geometry" if place not in there else "no scene of the run holds it"
            rejects.annotation(str(row.get("image_id") or ""), where, lost)
            continue
        kept = {name: row.get(name) for name in _FIELDS[1:]}
        yield owner, {**kept, "where": where, "wkb": None if shape is None else shape.wkb_hex}


def _drawn(row: dict[str, Any], crs: str, scene: Scene) -> Drawn:
    number = _text(row["category_id"])
    if number is not None and not re.fullmatch(r"-?\d{1,15}", number):
        return Drawn(row["where"], failing(f"category_id {number} is no number"), None)
    return Drawn(
        row["where"],
        failing("it has no geometry") if row["wkb"] is None else partial(_filled, row["wkb"], crs, scene),
        _text(row["category"]),
        None if number is None else int(number),
        _text(row["instance_id"]),
    )


def _text(value: object) -> str | None:
    """Return a value of any column as text; None for null and NaN, as pandas writes it."""
    return None if value is None or value != value else str(whole_id(value))


def _filled(wkb: str, crs: str, scene: Scene, height: int, width: int) -> str:
    place = _place(scene)
    if reason := can_place(crs, place.crs):
        raise ItemError("unsupported", f"its CRS cannot be transformed to that of the scene: {reason}")
    to_scene = transformer(crs, place.crs)

    def moved(points: Floats) -> Floats:
        return _snapped(place.on_scene(through(to_scene, points)))

    shape = shapely.transform(shapely.force_2d(shapely.from_wkb(wkb)), moved)
    if not np.isfinite(shapely.bounds(shape)).all():
        raise ItemError("unsupported", "it cannot be transformed to the CRS of the scene")
    shape = areas_of(shape)
    low_x, low_y, high_x, high_y = shape.bounds if not shape.is_empty else (0, 0, 0, 0)
    left, top = max(0, int(np.floor(low_x))), max(0, int(np.floor(low_y)))
    right, bottom = min(width, int(np.ceil(high_x))), min(height, int(np.ceil(high_y)))
    if right <= left or bottom <= top:
        raise ItemError("unsupported", "it covers no pixel of its image")
    crop: NDArray[np.uint8] = rasterize(
        [(shape, 1)], (bottom - top, right - left), transform=Affine.translation(left, top), dtype="uint8"
    )
    return pasted(crop.astype(bool), top, left)(height, width)


def _snapped(points: Floats) -> Floats:
    """Return points with coordinates within 1/1000 of a pixel edge on it, as they were before rounding."""
    near = np.round(points)
    return np.where(np.abs(points - near) < 1e-3, near, points)
