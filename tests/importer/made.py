"""Runs to correct, scenes among them, and what a program of a reviewer does with an export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from segray.cli import main
from segray.masks.polygonize import outlines
from segray.masks.spans import counts_of, spans_of
from segray.scenes.georeference import Place, placed
from segray.scenes.scene import Scene
from tests.export.made import HEIGHT, UTM, WIDTH, Run, made, write

SUFFIX = {"coco": ".json", "geojson": ".geojson", "gpkg": ".gpkg"}


def export(run: Path, kind: str, output: Path, *more: str) -> Path:
    """Export a run; return the file or folder to import."""
    assert main(["export", str(run), "--as", kind, "--output", str(output), *more]) == 0
    return output / "tasks.json" if kind == "labelstudio" else output


def bring(file: Path, kind: str, output: Path, run: Path | None, *more: str) -> int:
    """Import a file; return the exit code."""
    of = [] if run is None else ["--run", str(run)]
    return main(["import", str(file), "--as", kind, *of, "--output", str(output), *more])


def submitted(tasks: Path) -> None:
    """Label Studio: a person takes all predictions as they are."""
    content = json.loads(tasks.read_text())
    for task in content:
        found = [each for one in task.pop("predictions", []) for each in one["result"]]
        drawn = [each for one in task.pop("annotations", []) for each in one["result"]]
        for each in found:
            del each["score"]
        task["annotations"] = [{"result": sorted([*drawn, *found], key=lambda each: str(each["id"]))}]
    tasks.write_text(json.dumps(content))


def rows(output: Path, table: str) -> list[dict[str, Any]]:
    """All rows of a table of an output, in the order of ids."""
    found = [
        row for file in sorted((output / table).glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    return sorted(found, key=lambda row: str(row.get("instance_id") or row["image_id"]))


def counts(output: Path) -> dict[str, Any]:
    """The counts of an import."""
    found: dict[str, Any] = json.loads((output / "run.json").read_text())["counts"]
    return found


def pixels(row: dict[str, Any]) -> NDArray[np.uint8]:
    """The mask of a row."""
    found: NDArray[np.uint8] = coco.decode(row["segmentation"])
    return found


def encoded(mask: NDArray[Any]) -> dict[str, Any]:
    """A mask as COCO's run lengths in JSON."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def scenes(folder: Path, crs: str = UTM) -> Run:
    """A run of three scenes beside each other, turned by 30 degrees, and its outlines in a CRS."""
    run = made(folder, names=("a.tif", "b.tif", "c.tif"), on_earth=True, crs=crs)
    for place, image in enumerate(run.images):
        sine, cosine = 0.5 * np.sin(np.pi / 6), 0.5 * np.cos(np.pi / 6)
        transform = (cosine, sine, 450_000 + 200.0 * place, sine, -cosine, 10_000.0)
        scene = Scene(HEIGHT, WIDTH, 1024, 128, (1, 2, 3), None, UTM, transform)
        image |= {"scene": scene.to_json(), "crs": UTM, "member": None, "uri": f"file:///photos/{place}.tif"}
        mine = run.of(image["image_id"]) if image["status"] == "annotated" else []
        masks = [spans_of(counts_of([row["segmentation"]["counts"]])[0], HEIGHT) for row in mine]
        there = placed(outlines(masks), Place(transform, UTM, crs))
        for row, shape, size in zip(mine, there.geometry, there.area_m2, strict=True):
            row |= {"geometry": shape, "area_m2": float(size)}
    write(run, on_earth=True, crs=crs)
    return run


def geometry(row: dict[str, Any]) -> shapely.Geometry:
    """The outline of a row."""
    return shapely.from_wkb(row["geometry"])
