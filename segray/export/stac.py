"""STAC Items with the label extension: `items/NAME.json` for each scene that has a place on Earth.

https://github.com/radiantearth/stac-spec (1.1.0), https://github.com/stac-extensions/label (v1.0.1) and
projection (v2.0.0). The extension wants GeoJSON under the key `labels`: of annotate the instances, in
longitude and latitude; of predict the extent of the label map, which is another asset and stays in the run.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from segray.errors import SettingsError
from segray.export.coco import write_list
from segray.export.table import Image, Instance, LabelTable
from segray.export.target import Target
from segray.output.io import files_below, read_file
from segray.output.names import PLAN, RUN
from segray.scenes.crs import through, transformer
from segray.scenes.georeference import Place, placed
from segray.scenes.scene import Scene, scene_from
from segray.schema import CRS84
from segray.sources.reader import open_source
from segray.storage import StorageSettings, canonical_uri, shown

FOLDERS = ("items", "labels")
_EXTENSIONS = [
    "https://stac-extensions.github.io/label/v1.0.1/schema.json",
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
]
_GEOJSON, _COG = "application/geo+json", "image/tiff; application=geotiff; profile=cloud-optimized"
_COLUMNS = ("image_id", "scene", "crs", "taken_at")


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What the Items say of their run."""

    address: str
    verb: str
    model: str
    finished_at: str
    classes: Sequence[str]

    @classmethod
    def read(cls, run: str, storage: StorageSettings, table: LabelTable) -> "RunInfo":
        """Read the records of a run; of annotate the classes are those that occur."""
        record = json.loads(read_file(f"{run}/{RUN}", storage, "run"))
        plan = record.get("identity") or {}
        if record.get("verb") == "predict":
            plan = json.loads(read_file(f"{run}/{PLAN}", storage, "run"))
        classes = plan.get("classes") or list(table.categories().values())
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        when = record.get("finished_at", now)
        address = canonical_uri(run).removeprefix("file://").rstrip("/")
        return cls(address, str(record.get("verb")), str(plan.get("model")), when, classes)


@dataclass(frozen=True, slots=True)
class _Where:
    """A scene, and when it was taken."""

    scene: Scene
    crs: str
    taken_at: str | None

    @property
    def extent(self) -> Any | None:
        """The outline in longitude and latitude, cut at 180 degrees; None where PROJ cannot transform it."""
        scene = self.scene
        if scene.crs is None or scene.transform is None:
            return None
        box = np.array([shapely.box(0, 0, scene.width, scene.height)], object)
        (found,) = placed(box, Place(scene.transform, scene.crs, CRS84)).geometry
        return None if found is None else shapely.from_wkb(found)


class Scenes:
    """The scenes of a run, in a temporary file."""

    def __init__(self, run: str, storage: StorageSettings, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "scenes.db", isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE scenes (image_id TEXT PRIMARY KEY, scene TEXT, crs TEXT, taken_at TEXT); BEGIN;"
        )
        for file in files_below(f"{run}/images", (".parquet",), storage):
            with open_source(file, storage) as stream:
                self._db.executemany("INSERT OR REPLACE INTO scenes VALUES (?,?,?,?)", _rows(stream))
        self._db.execute("COMMIT")
        if not self._db.execute("SELECT count(*) FROM scenes").fetchone()[0]:
            raise SettingsError(f"as: {shown(run)} has no scene with a place on Earth, which stac needs")

    def find(self, image: Image) -> _Where | None:
        """Return the scene of an image; None where it is none."""
        query = "SELECT scene, crs, taken_at FROM scenes WHERE image_id = ?"
        row = self._db.execute(query, (image.image_id,)).fetchone()
        return None if row is None else _Where(scene_from(row[0]), row[1], row[2])

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _rows(stream: Any) -> Iterator[tuple[str | None, ...]]:
    """Yield the values of `_COLUMNS` of each scene with a CRS; taken_at as text, None in older outputs."""
    parquet = pq.ParquetFile(stream)
    names = [name for name in _COLUMNS if name in parquet.schema_arrow.names]
    for batch in parquet.iter_batches(1_000, columns=names):
        rows = batch.filter(pc.and_(pc.is_valid(batch["scene"]), pc.is_valid(batch["crs"])))
        for row in rows.to_pylist():
            moment = row.get("taken_at")
            yield row["image_id"], row["scene"], row["crs"], moment and _iso(moment)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def write_items(
    table: LabelTable,
    target: Target,
    splits: Sequence[str | None],
    run: str,
    storage: StorageSettings,
    crs: str,
    folder: Path,
) -> list[str]:
    """Write an Item and its labels for each scene of each split (None: all); return notes for the user.

    crs: of the run's outlines. The instances of one scene pass through a file in `folder`.
    """
    info = RunInfo.read(run, storage, table)
    made = left_out = undated = 0
    with closing(Scenes(run, storage, folder)) as scenes:
        for split in splits:
            for image in table.images(split):
                where = scenes.find(image)
                extent = where and where.extent
                if where is None or extent is None:
                    left_out += 1
                    continue
                made, undated = made + 1, undated + (where.taken_at is None)
                item = _Item(image, where, extent, info, "" if split is None else f"{split}/")
                counts = _write_labels(table, item, target, crs, folder / "labels")
                target.put(f"items/{item.name}.json", json.dumps(item.document(counts), indent=2).encode())
    others = f"; {left_out:,} images are no scene with a place on Earth" * bool(left_out)
    notes = [f"STAC Items: {made:,}{others}"]
    told = "scenes do not say when they were taken; the datetime of their Items is that of the run"
    return notes + [f"{undated:,} {told}"] * bool(undated)


@dataclass(frozen=True, slots=True)
class _Item:
    image: Image
    where: _Where
    extent: Any
    info: RunInfo
    folder: str
    """Of its split, with a slash at its end."""

    @property
    def name(self) -> str:
        return f"{self.folder}{self.image.name}"

    def document(self, counts: Counter[str]) -> dict[str, Any]:
        """Return the Item; counts: instances by category."""
        return {
            "type": "Feature",
            "stac_version": "1.1.0",
            "stac_extensions": _EXTENSIONS,
            "id": self.image.image_id,
            "geometry": json.loads(shapely.to_geojson(self.extent)),
            "bbox": bbox_of(self.extent),
            "properties": {**self._common(), **self._labels(counts), **self._projection()},
            "links": [{"rel": "derived_from", "href": self.image.address}],
            "assets": self._assets(),
        }

    def _common(self) -> dict[str, Any]:
        when, created = self.where.taken_at, self.info.finished_at
        return {"title": self.image.name, "datetime": when or created, "created": created}

    def _labels(self, counts: Counter[str]) -> dict[str, Any]:
        is_raster = self.info.verb == "predict"
        what = "Label map" if is_raster else "Instances"
        found: dict[str, Any] = {
            "label:type": "raster" if is_raster else "vector",
            "label:properties": None if is_raster else ["category"],
            "label:classes": [{"name": None if is_raster else "category", "classes": [*self.info.classes]}],
            "label:description": f"{what} by segray with the model {self.info.model}",
            "label:tasks": ["segmentation"],
            "label:methods": ["automated"],
        }
        if not is_raster:
            each = [{"name": name, "count": number} for name, number in sorted(counts.items())]
            found["label:overviews"] = [{"property_key": "category", "counts": each}]
        return found

    def _projection(self) -> dict[str, Any]:
        scene = self.where.scene
        is_code = self.where.crs.count(":") == 1 and self.where.crs.isascii() and "[" not in self.where.crs
        found: dict[str, Any] = {"proj:code": self.where.crs if is_code else None}
        found |= {} if is_code else {"proj:wkt2": scene.crs}
        return {**found, "proj:shape": [scene.height, scene.width], "proj:transform": scene.transform}

    def _assets(self) -> dict[str, Any]:
        up = "../" * (1 + self.folder.count("/"))
        labels = {"href": f"{up}labels/{self.name}.geojson", "type": _GEOJSON, "roles": ["labels"]}
        found: dict[str, Any] = {"labels": labels}
        if self.info.verb == "predict":
            href = f"{self.info.address}/labels/{self.image.image_id}.tif"
            found["label_map"] = {"href": href, "type": _COG, "roles": ["labels-raster"]}
        else:
            href = f"{self.info.address}/instances"
            title = "GeoParquet files with the instances of all images of the run"
            found["instances"] = {"href": href, "type": "application/vnd.apache.parquet", "title": title}
        if self.image.member is None:
            is_jp2 = self.image.address.lower().endswith((".jp2", ".j2k", ".jpx", ".j2c"))
            kind = "image/jp2" if is_jp2 else "image/tiff; application=geotiff"
            found["image"] = {"href": self.image.address, "type": kind, "roles": ["data"]}
        return found


def bbox_of(extent: Any) -> list[float]:
    """Return west, south, east, north; west is above east where it crosses 180 degrees (RFC 7946, 5.2)."""
    west, south, east, north = shapely.bounds(extent).tolist()
    if extent.geom_type == "MultiPolygon" and (west, east) == (-180, 180):
        sides = [shapely.bounds(part) for part in extent.geoms]
        west = min(float(side[0]) for side in sides if side[0] >= 0)
        east = max(float(side[2]) for side in sides if side[0] < 0)
    return [west, south, east, north]


def _write_labels(table: LabelTable, item: _Item, target: Target, crs: str, local: Path) -> Counter[str]:
    """Write labels/NAME.geojson (RFC 7946); return the number of instances by category."""
    counts = Counter[str]()

    def features() -> Iterator[dict[str, Any]]:
        for each in table.of_image(item.image):
            if each.geometry is not None:
                counts[each.category] += 1
                yield _feature(each, crs)

    extent = {"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(item.extent))}
    with local.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": ')
        write_list(file, iter([extent]) if item.info.verb == "predict" else features())
        file.write("}\n")
    target.put_local(f"labels/{item.name}.geojson", local)
    return counts


def _feature(each: Instance, crs: str) -> dict[str, Any]:
    shape = shapely.from_wkb(each.geometry)
    if crs != CRS84:
        shape = shapely.transform(shape, lambda points: _on_earth(points, crs))
    properties = {
        "instance_id": each.instance_id,
        "category_id": each.category_id,
        "category": each.category,
        "score": each.plain_score,
        "area_m2": each.area_m2,
    }
    return {"type": "Feature", "properties": properties, "geometry": json.loads(shapely.to_geojson(shape))}


def _on_earth(points: NDArray[np.float64], crs: str) -> NDArray[np.float64]:
    return through(transformer(crs, CRS84), points)
