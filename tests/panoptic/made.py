"""Outputs of annotate and predict of the same images, and the fusion of them by a plain loop over pixels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from segray import schema
from segray.predict.maps import png

MAP_CLASSES = ("road", "Car", "sky", "tree")
"""`Car` is a thing, as the instances have it."""
CATEGORIES = {1: "person", 3: "car"}
Mask = NDArray[np.bool_]


@dataclass
class Made:
    """Both runs; `masks` by image_id, in the order of `rows`."""

    instances: Path
    maps: Path
    images: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    masks: dict[str, list[Mask]] = field(default_factory=dict)
    labels: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def of(self, image_id: str) -> list[dict[str, Any]]:
        """The instances of an image."""
        return [row for row in self.rows if row["image_id"] == image_id]


def made(folder: Path, count: int = 4, size: tuple[int, int] = (50, 70), seed: int = 0) -> Made:
    """Write both runs of random images: overlapping ellipses over a map of blocks, with void."""
    run, random = Made(folder / "labels", folder / "maps"), np.random.default_rng(seed)
    for number in range(count):
        image_id = f"{97 * (number + 1):032x}"
        uri = f"file:///photos/{number:05d}.jpg"
        run.images.append({"image_id": image_id, "uri": uri, "height": size[0], "width": size[1]})
        run.labels[image_id] = random_map(random, size)
        run.masks[image_id] = [ellipse(random, size) for _ in range(0 if number == 1 else 7)]
        for rank, mask in enumerate(run.masks[image_id]):
            run.rows.append(instance(image_id, rank, mask, random))
    write(run)
    return run


def random_map(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Blocks of classes and of 255."""
    coarse = random.choice([0, 1, 2, 3, 255], (5, 7)).astype(np.uint8)
    rows, cols = (np.arange(side) * cells // side for side, cells in zip(size, coarse.shape, strict=True))
    return coarse[np.ix_(rows, cols)]


def ellipse(random: np.random.Generator, size: tuple[int, int]) -> Mask:
    """A random ellipse, with a hole in every third."""
    y, x = np.mgrid[: size[0], : size[1]]
    middle, radii = random.uniform(0, size), random.uniform(0.06, 0.35, 2) * size
    away = ((y - middle[0]) / radii[0]) ** 2 + ((x - middle[1]) / radii[1]) ** 2
    mask: Mask = (away < 1) & ((away > 0.2) | (random.random() > 0.3))
    mask[tuple(np.clip(middle.astype(int), 0, np.array(size) - 1))] = True
    return mask


def instance(image_id: str, rank: int, mask: Mask, random: np.random.Generator) -> dict[str, Any]:
    """The row of a mask; scores repeat, so that ties occur, and the fifth was drawn by a person."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    category = list(CATEGORIES)[rank % 2]
    score = None if rank == 4 else float(np.float32(random.integers(5, 10) / 10))
    return {
        "image_id": image_id,
        "instance_id": f"{image_id}-{rank:07d}",
        "category_id": category,
        "category": CATEGORIES[category],
        "score": score,
        "bbox": coco.toBbox(rle).tolist(),
        "area": int(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
        "iscrowd": 0,
    }


def write(run: Made, extra: Sequence[dict[str, Any]] = ()) -> None:
    """Write the tables, the maps and both records; extra: more rows of the ledger of the instances."""
    counts = {image["image_id"]: len(run.of(image["image_id"])) for image in run.images}
    good = [{"status": "annotated", "instances": counts[each["image_id"]], **each} for each in run.images]
    table(run.instances / "images/part-000001.parquet", [*good, *extra], schema.IMAGES)
    table(run.instances / "instances/part-000001.parquet", run.rows[::-1], schema.INSTANCES)
    record(run.instances, {"verb": "annotate", "model_digest": "a"})
    plain = [{**each, "instances": 0} for each in good]
    table(run.maps / "images/part-000001.parquet", plain, schema.IMAGES)
    (run.maps / "labels").mkdir(exist_ok=True)
    for image_id, labels in run.labels.items():
        (run.maps / f"labels/{image_id}.png").write_bytes(png(labels, len(MAP_CLASSES)))
    record(run.maps, {"verb": "predict", "model_digest": "b", "classes": list(MAP_CLASSES)})


def record(folder: Path, plan: dict[str, Any]) -> None:
    """Write plan and run.json of a finished run."""
    (folder / "_segray").mkdir(exist_ok=True)
    (folder / "_segray/plan.json").write_text(json.dumps(plan))
    (folder / "run.json").write_text(json.dumps({"verb": plan["verb"]}))


def table(path: Path, rows: Sequence[dict[str, Any]], declared: pa.Schema) -> None:
    """Write rows, with null for what they lack."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [{field.name: row.get(field.name) for field in declared} for row in rows]
    pq.write_table(pa.Table.from_pylist(plain, declared), path, row_group_size=5)


def fused_by_loop(
    run: Made, image_id: str, min_visible: float = 0.5, min_stuff: int = 0, first: int = 1000
) -> tuple[NDArray[np.uint32], list[dict[str, Any]]]:
    """The rule as the help states it, over whole masks: segment ids (h, w), and the segments."""
    rows, masks = run.of(image_id), run.masks[image_id]
    labels = run.labels[image_id]
    ids: NDArray[np.uint32] = np.zeros(labels.shape, np.uint32)
    segments: list[dict[str, Any]] = []
    order = sorted(
        range(len(rows)),
        key=lambda at: (-2 if rows[at]["score"] is None else -rows[at]["score"], rows[at]["instance_id"]),
    )
    for at in order:
        free = masks[at] & (ids == 0)
        if free.sum() and free.sum() / masks[at].sum() >= min_visible:
            number = len(segments) + 1
            ids[free] = number
            about = {"instance_id": rows[at]["instance_id"], "score": rows[at]["score"]}
            segments.append({"id": number, "category_id": rows[at]["category_id"], **about})
    for index in (0, 2, 3):  # not the car
        free = (labels == index) & (ids == 0)
        if free.sum() and free.sum() >= min_stuff:
            number = len(segments) + 1
            ids[free] = number
            segments.append({"id": number, "category_id": first + index, "instance_id": None, "score": None})
    for each in segments:
        rows_of, cols_of = np.nonzero(ids == each["id"])
        each["area"] = len(rows_of)
        each["bbox"] = [
            cols_of.min(),
            rows_of.min(),
            np.ptp(cols_of) + 1,
            np.ptp(rows_of) + 1,
        ]
    return ids, segments


def ids_of_png(path: Path) -> NDArray[np.int64]:
    """What panopticapi's rgb2id makes of a file."""
    colour = np.asarray(Image.open(path), np.int64)
    found: NDArray[np.int64] = colour[:, :, 0] + 256 * colour[:, :, 1] + 256 * 256 * colour[:, :, 2]
    return found
