"""Runs of random masks in the tables of `annotate`, with all that is awkward in them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from segray import schema
from segray.masks.polygonize import outlines
from segray.masks.spans import counts_of, spans_of
from segray.scenes.geoparquet import geoparquet_metadata

HEIGHT, WIDTH = 40, 60
CLASSES = {1: "car", 7: "traffic light", 9: "odd\nname, with: all"}
UTM = "EPSG:32636"


@dataclass
class Run:
    """Where a run lies and its rows; `images` are all, `instances` those of annotated images."""

    folder: Path
    images: list[dict[str, Any]] = field(default_factory=list)
    instances: list[dict[str, Any]] = field(default_factory=list)

    @property
    def annotated(self) -> list[dict[str, Any]]:
        return [image for image in self.images if image["status"] == "annotated"]

    def of(self, image_id: str) -> list[dict[str, Any]]:
        """The instances of an image."""
        return [each for each in self.instances if each["image_id"] == image_id]


def blobs(random: np.random.Generator, kind: int) -> NDArray[np.bool_]:
    """One mask: a box, two parts, one with a hole, a pixel, a diagonal, a line, or noise."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    top, left = random.integers(0, HEIGHT - 12), random.integers(0, WIDTH - 25)
    if kind in (0, 1, 2):
        mask[top : top + 9, left : left + 11] = True
    if kind == 1:
        mask[top + 2 : top + 6, left + 15 : left + 22] = True
    if kind == 2:
        mask[top + 3 : top + 6, left + 3 : left + 7] = False
    if kind in (3, 4):
        mask[top, left] = True
    if kind == 4:
        mask[top + 1, left + 1] = True
    if kind == 5:
        mask[top : top + 3] = True  # over the whole width
    if kind == 6:
        mask[:, left : left + 2] = True  # over the whole height
    if kind == 7:
        mask = random.random((HEIGHT, WIDTH)) > 0.6
    return mask


def made(
    folder: Path,
    *,
    names: Sequence[str] = ("a.jpg", "b.jpg", "b.png", "empty.jpg"),
    on_earth: bool = False,
    splits: Sequence[str | None] | None = None,
    drawn: bool = False,
    verb: str | None = "annotate",
    crs: str = UTM,
) -> Run:
    """A finished run: the last image is empty, one more is rejected, one is a member of an archive."""
    run, random = Run(folder), np.random.default_rng(3)
    for number, name in enumerate(names):
        image_id = f"{97 * (number + 1):032x}"
        image = {"image_id": image_id, "uri": f"file:///photos/{name}", "height": HEIGHT, "width": WIDTH}
        image |= {"status": "annotated", "crs": crs if on_earth else None}
        if number == 1:
            image |= {"uri": "s3://bucket/more.zip", "member": f"inner/{name}"}
        if splits is not None:
            image["split"] = splits[number]
        count = 0 if number == len(names) - 1 else 8
        run.images.append({**image, "instances": count})
        run.instances += [_instance(random, image_id, rank, on_earth=on_earth) for rank in range(count)]
    run.images.append({**run.images[0], "image_id": "f" * 32, "status": "rejected", "error_type": "corrupt"})
    if drawn:
        run.instances[0]["score"] = None
    write(run, on_earth=on_earth, verb=verb, crs=crs)
    return run


def _instance(random: np.random.Generator, image_id: str, rank: int, *, on_earth: bool) -> dict[str, Any]:
    mask = blobs(random, rank)
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = rle["counts"].decode()
    number = list(CLASSES)[rank % 3]
    row: dict[str, Any] = {
        "image_id": image_id,
        "instance_id": f"{image_id}-{rank:07d}",
        "category_id": number,
        "category": CLASSES[number],
        "score": float(np.float32(random.uniform(0.5, 1))),
        "bbox": coco.toBbox(rle).tolist(),
        "area": int(mask.sum()),
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
        "iscrowd": 0,
    }
    if on_earth and rank != 3:  # one that could not be transformed
        (shape,) = outlines([spans_of(counts_of([counts])[0], HEIGHT)])
        there = shapely.transform(shape, lambda xy: xy * (0.5, -0.5) + (450_000, 10_000))
        row |= {"geometry": shapely.to_wkb(there), "area_m2": row["area"] / 4}
    return row


def write(run: Run, *, on_earth: bool = False, verb: str | None = "annotate", crs: str = UTM) -> None:
    """Write the tables in two parts, instances in no order, and the record."""
    geo = geoparquet_metadata(crs, []) if on_earth else schema.geoparquet_metadata()
    images = schema.IMAGES
    if "split" in run.images[0]:
        images = schema.with_kept(images, ["split"])
    for part in range(2):
        own = [image for number, image in enumerate(run.images) if number % 2 == part]
        ids = {image["image_id"] for image in own}
        found = [each for each in run.instances if each["image_id"] in ids][::-1]
        for name, rows, declared in (
            ("images", own, images),
            ("instances", found, schema.INSTANCES.with_metadata({b"geo": geo})),
        ):
            (run.folder / name).mkdir(parents=True, exist_ok=True)
            plain = [{field.name: row.get(field.name) for field in declared} for row in rows]
            table = pa.Table.from_pylist(plain, declared)
            pq.write_table(table, run.folder / name / f"part-{part:06d}.parquet", row_group_size=5)
    if verb is not None:
        (run.folder / "run.json").write_text(json.dumps({"verb": verb}))


def pixels(instance: dict[str, Any]) -> NDArray[np.uint8]:
    """The mask of a row, uint8 (height, width)."""
    found: NDArray[np.uint8] = coco.decode(instance["segmentation"])
    return found
