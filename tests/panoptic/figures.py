"""Print the figures of docs/panoptic.md: CPU time, memory, and PQ against panopticapi's loop.

python -m tests.panoptic.figures images     60 images of 1280 x 720 with 15 instances
python -m tests.panoptic.figures scene      12,000 x 12,000 pixels with 20,000 instances
python -m tests.panoptic.figures pq         PQ of the images' outputs
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from segray import schema
from segray.evaluate.panoptic_quality import Overlaps, PanopticScores, Segments
from segray.masks.spans import encoded
from segray.output.panoptic import ids_in
from segray.scenes.scene import Scene
from tests.panoptic import panopticapi
from tests.panoptic.made import MAP_CLASSES, Made, Mask, instance, random_map, record, table, write

IMAGES, SIZE, THINGS = 60, (720, 1280), 15
SIDE, HOUSES = 12_000, 20_000


def images(folder: Path) -> Path:
    """Fuse images; return the output."""
    run, random = Made(folder / "labels", folder / "maps"), np.random.default_rng(0)
    for number in range(IMAGES):
        image_id = f"{97 * (number + 1):032x}"
        image = {
            "image_id": image_id,
            "uri": f"file:///{number:05d}.jpg",
            "height": SIZE[0],
            "width": SIZE[1],
        }
        run.images.append(image)
        run.labels[image_id] = random_map(random, SIZE)
        run.rows += [instance(image_id, rank, _ellipse(random), random) for rank in range(THINGS)]
    write(run)
    fuse(folder, IMAGES)
    return folder / "out"


def _ellipse(random: np.random.Generator) -> Mask:
    mask: NDArray[np.uint8] = np.zeros(SIZE, np.uint8)
    radii = [int(random.uniform(8, share * side)) for share, side in ((0.12, SIZE[1]), (0.2, SIZE[0]))]
    middle = int(random.uniform(0, SIZE[1])), int(random.uniform(0, SIZE[0]))
    cv2.ellipse(mask, middle, radii, 0, 0, 360, [1], -1)
    return mask > 0


def scene(folder: Path) -> None:
    """Fuse a scene: small discs, and some of 3,000 pixels across."""
    random, image_id, place = np.random.default_rng(0), "a" * 32, from_origin(450_000, 10_000, 0.5, 0.5)
    about = Scene(SIDE, SIDE, 1024, 128, (1, 2, 3), None, "EPSG:32636", tuple(place)[:6]).to_json()
    image = {"image_id": image_id, "uri": "file:///s.tif", "height": SIDE, "width": SIDE, "scene": about}
    image |= {"status": "annotated", "instances": HOUSES}
    rows = []
    for rank in range(HOUSES):
        radius = int(random.integers(5, 60)) if rank > 20 else 1500
        row, col = random.integers(radius, SIDE - radius, 2)
        across = np.arange(-radius, radius + 1)
        half = np.sqrt(radius * radius - across * across).astype(int)
        (counts,) = encoded([np.stack([col + across, row - half, row + half + 1], 1)], SIDE, SIDE)
        mask = {"size": [SIDE, SIDE], "counts": counts}
        more = {"category_id": 1, "category": "house", "score": float(random.uniform(0.5, 1)), "iscrowd": 0}
        rows.append({"image_id": image_id, "instance_id": f"{rank:07d}", "segmentation": mask, **more})
    for name, verb in (("labels", "annotate"), ("maps", "predict")):
        table(folder / name / "images/part-000001.parquet", [image], schema.IMAGES)
        record(folder / name, {"verb": verb, "classes": list(MAP_CLASSES)})
    table(folder / "labels/instances/part-000001.parquet", rows, schema.INSTANCES)
    (folder / "maps/labels").mkdir()
    profile = {"driver": "GTiff", "count": 1, "height": SIDE, "width": SIDE, "dtype": "uint8", "tiled": True}
    path = folder / f"maps/labels/{image_id}.tif"
    with rasterio.open(path, "w", compress="deflate", crs="EPSG:32636", transform=place, **profile) as file:
        file.write(random_map(random, (SIDE, SIDE)), 1)
    fuse(folder, 1)


def fuse(folder: Path, number: int) -> None:
    """Fuse two runs in a process of its own, and print what it took."""
    program = "import sys; from segray.cli import main; sys.exit(main(sys.argv[1:]))"
    runs = ("--instances", str(folder / "labels"), "--maps", str(folder / "maps"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["panoptic", *runs, "--output", str(folder / "out")]
    subprocess.run([sys.executable, "-c", program, *command], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{seconds:.1f} s of a CPU, start included: {1e3 * seconds / number:.0f} ms an image")
    print(f"{after.ru_maxrss / 1024:.0f} MB at most")


def quality(output: Path) -> None:
    """Score each image against another one, twice."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(output / "segments").to_pylist():
        rows[row["image_id"]].append({**row, "id": row["segment_id"]})
    ids = {name: ids_in((output / f"panoptic/{name}.png").read_bytes()) for name in rows}
    pairs = list(zip(rows, list(rows)[1:], strict=False))
    started, scores = time.process_time(), PanopticScores()
    for one, other in pairs:
        overlaps = Overlaps(_segments(rows[one]), _segments(rows[other]))
        overlaps.add(ids[one], ids[other])
        scores.add(overlaps)
    ours = time.process_time() - started
    started, stat = time.process_time(), panopticapi.new_stat()
    for one, other in pairs:
        panopticapi.count(stat, ids[one], rows[one], ids[other], rows[other])
    theirs = time.process_time() - started
    assert {key: sums.tolist() for key, sums in scores.sums.items()} == stat
    print(f"PQ: {1e3 * ours / len(pairs):.1f} ms an image, the loop {1e3 * theirs / len(pairs):.1f} ms")


def _segments(rows: list[dict[str, Any]]) -> Segments:
    ids, categories = (np.array([row[name] for row in rows], np.int64) for name in ("id", "category_id"))
    return Segments(ids, categories, np.zeros(len(rows), bool))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        if sys.argv[1:] == ["scene"]:
            scene(Path(name))
        else:
            out = images(Path(name))
            if sys.argv[1:] == ["pq"]:
                quality(out)
