"""Runs for the pages: images that can be read again, tables of `annotate` and `predict`, hostile names."""

import io
import json
import zipfile
from collections.abc import Sequence
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
from segray.sources.item import image_id

CLASSES = ("car", 'a "quoted" & <b>bold</b> class', "</script><script>document.title='owned'</script>")
NAMES = (
    "plain.png",
    "<img src=x onerror=\"document.title='owned'\">.png",
    "q\"uo'te & space.jpg",
    "umlaut ä.png",
)
"""Of files: all that must stay text in a page."""
MEMBERS = ("in/one.png", "in/two.png")
HEIGHT, WIDTH = 90, 120


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """A picture without noise, uint8 (height, width, 3)."""
    rows, cols = np.mgrid[:height, :width]
    return np.stack([(rows * 2 + seed * 40) % 256, (cols * 2) % 256, (rows + cols) % 256], axis=2).astype(
        np.uint8
    )


def ellipse(
    row: float, col: float, tall: float, wide: float, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> NDArray[np.uint8]:
    """A mask, uint8 (height, width)."""
    rows, cols = np.mgrid[: size[0], : size[1]]
    mask: NDArray[np.uint8] = (((rows - row) / tall) ** 2 + ((cols - col) / wide) ** 2 <= 1).astype(np.uint8)
    return mask


def instance(
    image: str, rank: int, mask: NDArray[np.uint8], category: int, score: float | None
) -> dict[str, Any]:
    """A row of `instances`."""
    rle = coco.encode(np.asfortranarray(mask))
    return {
        "image_id": image,
        "instance_id": f"{image}-{rank:07d}",
        "category_id": category + 1,
        "category": CLASSES[category],
        "score": score,
        "bbox": coco.toBbox(rle).tolist(),
        "box": coco.toBbox(rle).tolist(),
        "area": int(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
        "iscrowd": 0,
        "truncated": False,
    }


def photos(folder: Path) -> list[dict[str, Any]]:
    """Files and two members of a zip; their rows of `images`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, name in enumerate(NAMES):
        if not (folder / name).exists():  # another run has the same
            Image.fromarray(picture(number)).save(folder / name)
        rows.append(row_of(folder / name))
    if not (folder / "more.zip").exists():
        with zipfile.ZipFile(folder / "more.zip", "w") as archive:
            for number, name in enumerate(MEMBERS):
                data = io.BytesIO()
                Image.fromarray(picture(7 + number)).save(data, "PNG")
                archive.writestr(name, data.getvalue())
    rows += [row_of(folder / "more.zip", name, index) for index, name in enumerate(MEMBERS)]
    return rows


def row_of(path: Path, member: str | None = None, index: int | None = None) -> dict[str, Any]:
    """Return the row of `images` of a file, or of a member of an archive."""
    status = path.stat()
    uri, version = f"file://{path}", f"{status.st_size}-{status.st_mtime_ns}"
    return {
        "image_id": image_id(uri, member, 0, version), "uri": uri, "member": member, "member_index": index,
        "version": version, "height": HEIGHT, "width": WIDTH, "frames": 1, "status": "annotated",
        "instances": 0, "brightness": 100.0, "sharpness": 10.0,
    }  # fmt: skip


def rejected(number: int, kind: str = "corrupt") -> dict[str, Any]:
    """A rejected row of `images`."""
    uri = f"file:///nowhere/<b>{number}</b>.png"
    return {
        "image_id": image_id(uri, None, 0, "1"), "uri": uri, "status": "rejected",
        "error_type": kind, "error": f"it ends early <i>{number}</i>",
    }  # fmt: skip


def write(
    folder: Path,
    images: Sequence[dict[str, Any]],
    instances: Sequence[dict[str, Any]] = (),
    verb: str = "annotate",
    **record: Any,
) -> Path:
    """Write the tables of a finished run in two parts; return its folder."""
    ordered = sorted(images, key=lambda row: row["image_id"])
    half = len(ordered) // 2
    for part, own in enumerate((ordered[:half], ordered[half:])):
        ids = {row["image_id"] for row in own}
        found = sorted(
            (each for each in instances if each["image_id"] in ids), key=lambda each: each["instance_id"]
        )
        for name, rows, declared in (("images", own, schema.IMAGES), ("instances", found, schema.INSTANCES)):
            if name == "instances" and verb == "predict":
                continue
            (folder / name).mkdir(parents=True, exist_ok=True)
            plain = [{field.name: row.get(field.name) for field in declared} for row in rows]
            table = pa.Table.from_pylist(plain, declared)
            pq.write_table(table, folder / name / f"part-{part:06d}.parquet", row_group_size=1_000)
    about = {"verb": verb, "settings": {"sources": ["<b>photos</b>"]}, "versions": {"segray": "0"}}
    (folder / "run.json").write_text(json.dumps(about | record))
    return folder


def annotated(folder: Path, seed: int = 0, *, less: int = 0) -> Path:
    """A run over `photos`, which lie in the folder's parent; the last image is empty, three are rejected.

    less: so many instances of each image are left out.
    """
    random, images, instances = np.random.default_rng(seed), photos(folder.parent / "photos"), []
    for place, row in enumerate(images[:-1]):
        own = []
        for rank in range(6):
            mask = ellipse(15 + 12 * rank, 15 + 18 * rank, 7, 12)
            score = None if place == 0 and rank == 0 else float(np.float32(random.uniform(0.5, 1)))
            own.append(instance(row["image_id"], rank, mask, rank % 3, score))
        kept = own[less:]
        row["instances"] = len(kept)
        instances += kept
    return write(folder, [*images, *map(rejected, range(2)), rejected(2, "truncated")], instances)


def many(folder: Path, images: int = 400, each: int = 250) -> Path:
    """A run of made instances: 100,000 by default, of 80 classes; four files are all its images."""
    random, files = np.random.default_rng(1), photos(folder.parent / "photos")[: len(NAMES)]
    masks = [
        coco.encode(np.asfortranarray(ellipse(*random.uniform(8, 80, 2), *random.uniform(3, 9, 2))))
        for _ in range(200)
    ]
    rows, found = [], dict[str, list[Any]]()
    names = [f"class {number:02d}" for number in range(80)]
    ids = sorted(f"{number:032x}" for number in random.integers(1 << 40, 1 << 60, images).tolist())
    for number, one in enumerate(ids):
        rows.append({**files[number % len(files)], "image_id": one, "instances": each})
        for rank in range(each):
            mask, kind = masks[(number + rank) % len(masks)], int(random.integers(80))
            values = {
                "image_id": one, "instance_id": f"{one}-{rank:07d}", "category_id": kind + 1,
                "category": names[kind], "score": float(np.float32(random.beta(5, 2))),
                "area": int(coco.area(mask)),
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": mask["counts"].decode()},
            }  # fmt: skip
            for name, value in values.items():
                found.setdefault(name, []).append(value)
    write(folder, rows, [])
    columns = [
        pa.array(found[field.name], field.type)
        if field.name in found
        else pa.nulls(len(found["area"]), field.type)
        for field in schema.INSTANCES
    ]
    pq.write_table(
        pa.table(columns, schema.INSTANCES), folder / "instances/part-000000.parquet", row_group_size=20_000
    )
    return folder


def vast(folder: Path, images: int, each: int = 3) -> Path:
    """A run of very many images, in twenty parts, one in a hundred rejected; no source is there."""
    random = np.random.default_rng(0)
    rle = coco.encode(np.asfortranarray(ellipse(45, 60, 20, 30)))["counts"].decode()
    for name in ("images", "instances"):
        (folder / name).mkdir(parents=True)
    for part in range(20):
        number = images // 20
        ids = np.sort([f"{part:02x}{random.bytes(15).hex()}" for _ in range(number)])
        count, kinds = number * each, np.array([f"class {kind}" for kind in range(20)])
        sizes = pa.FixedSizeListArray.from_arrays(
            pa.array(np.tile([HEIGHT, WIDTH], count).astype(np.int32)), 2
        )
        masks = pa.StructArray.from_arrays([sizes, pa.array([rle] * count)], names=["size", "counts"])
        rows: dict[str, Any] = {
            "image_id": ids,
            "uri": [f"file:///gone/{one}.jpg" for one in ids],
            "height": np.full(number, HEIGHT),
            "width": np.full(number, WIDTH),
            "status": np.where(np.arange(number) % 100, "annotated", "rejected"),
            "error_type": ["corrupt"] * number,
            "instances": np.full(number, each),
        }
        found: dict[str, Any] = {
            "image_id": np.repeat(ids, each),
            "instance_id": [f"{one}-{rank:07d}" for one in ids for rank in range(each)],
            "category": kinds[random.integers(0, 20, count)],
            "score": random.random(count).astype(np.float32),
            "area": random.integers(10, 20_000, count),
            "segmentation": masks,
        }
        for name, values, declared in (
            ("images", rows, schema.IMAGES),
            ("instances", found, schema.INSTANCES),
        ):
            length = len(values["image_id"])
            arrays = [
                pa.array(values[field.name]).cast(field.type)
                if field.name in values
                else pa.nulls(length, field.type)
                for field in declared
            ]
            pq.write_table(
                pa.table(arrays, declared), folder / name / f"part-{part:06d}.parquet", row_group_size=20_000
            )
    (folder / "run.json").write_text(json.dumps({"verb": "annotate"}))
    return folder


def labelled(folder: Path, seed: int = 0) -> Path:
    """An output of predict over `photos`: three classes in stripes that move with the seed."""
    images = photos(folder.parent / "photos")
    write(folder, images, verb="predict", identity={"classes": ["background", *CLASSES[1:]]})
    (folder / "labels").mkdir()
    for number, row in enumerate(images):
        (folder / "labels" / f"{row['image_id']}.png").write_bytes(png(stripes(seed, number), 3))
    return folder


def stripes(seed: int, number: int) -> NDArray[np.uint8]:
    """A label map, uint8 (height, width)."""
    values: NDArray[np.uint8] = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[:, 40 + seed * number : 80] = 1
    values[:, 80:] = 2
    return values


def scripts(folder: Path, name: str = "page") -> dict[str, Any]:
    """What data/NAME.js puts, read without JavaScript."""
    found = {}
    for line in (folder / "data" / f"{name}.js").read_text("ascii").splitlines():
        key, _, value = line.removeprefix("segray.put(").removesuffix(");").partition(", ")
        found[json.loads(key)] = json.loads(value)
    return found
