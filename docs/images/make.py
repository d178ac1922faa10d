"""Make the images of the README again, with segray itself: `uv run python docs/images/make.py`.

Some minutes on two cores; outputs of the runs go to out/readme-images.
"""

import csv
import json
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import rasterio
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from segray.cli import main

ROOT = Path(__file__).parents[2]
HERE = ROOT / "docs/images"
OUT = ROOT / "out/readme-images"
SCENE = ROOT / "tests/data/scenes/kampala.tif"
STORY = ROOT / "tests/data/nuclei-story"
KINDS = {"fluorescence": 1, "stained": 2}
"""How many label maps of each kind are shown: those of the first images held out for test."""
SIDE = 256
GAP = 4


def run(*arguments: str | Path) -> None:
    """Run a segray command.

    Raises:
        RuntimeError: it did not end with exit code 0.
    """
    if main([str(each) for each in arguments]) != 0:
        raise RuntimeError(f"segray {arguments[0]} failed")


def outlines() -> None:
    """Annotate the bundled scene and draw the outlines on it."""
    model = ("--weights", "buildings-small", "--resolution", "0.15", "--tile", "384", "--overlap", "128")
    run("annotate", SCENE, *model, "--output", OUT / "kampala")
    with rasterio.open(SCENE) as file:
        scene = Image.fromarray(np.moveaxis(file.read(), 0, -1))
        crs, to_pixels = file.crs, ~file.transform
    buildings = geopandas.read_parquet(OUT / "kampala/instances").to_crs(crs)
    draw = ImageDraw.Draw(scene)
    for polygon in buildings.geometry.explode():
        for ring in (polygon.exterior, *polygon.interiors):
            draw.line([to_pixels * point for point in ring.coords], fill=(255, 222, 0), width=4)
    scene.resize((scene.width * 3 // 4, scene.height * 3 // 4)).save(HERE / "outlines.jpg", quality=80)


def masks(folder: Path) -> Path:
    """Write 0/255 masks of `tests/data/nuclei-story` and a manifest of them; return the manifest."""
    coco = COCO(str(STORY / "more.json"))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for image in coco.loadImgs(coco.getImgIds()):
        found = [coco.annToMask(each) for each in coco.loadAnns(coco.getAnnIds(image["id"]))]
        name = Path(image["file_name"]).name
        Image.fromarray(255 * np.maximum.reduce(found).astype(np.uint8)).save(folder / name)
        rows.append((str(STORY / "images" / image["file_name"]), name, image.get("split", "train")))
    manifest = folder / "train.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([("images", "masks", "split"), *rows])
    return manifest


def train(network: str, *settings: str) -> None:
    """Train a network on these."""
    config = ("--config", ROOT / "jobs/people.yaml", "--classes", "background,nucleus")
    run("train", *config, *settings, "--data", masks(OUT / "masks"), "--output", OUT / network)


def label_maps() -> None:
    """Train a U-Net, keep its curves, and show its label maps of images that it never saw."""
    train("unet")
    with Image.open(OUT / "unet/curves.png") as curves:
        _save(curves.convert("RGB"), "curves.png")
    shown = _held_out()
    run("predict", *shown, "--output", OUT / "maps", "--weights", OUT / "unet/model.pt")
    ids = pd.read_parquet(OUT / "maps/images").set_index("uri").image_id
    sheet = Image.new("RGB", (2 * SIDE + GAP, len(shown) * (SIDE + GAP) - GAP), "white")
    for row, path in enumerate(shown):
        for column, file in enumerate((path, OUT / "maps/labels" / f"{ids[path.as_uri()]}.png")):
            with Image.open(file) as image:
                sheet.paste(_crop(image.convert("RGB")), (column * (SIDE + GAP), row * (SIDE + GAP)))
    _save(sheet, "label-maps.png")


def panels() -> None:
    """Train two networks more, and show what all three find in the images held out."""
    train("fpn", "--arch", "fpn:efficientnet-lite2")
    random = ("--arch", "unet", "--arch-settings", '{"width": 16}', "--no-pretrained")
    train("random", *random, "--encoder-lr-factor", "1")
    models = ",".join(str(OUT / name / "model.pt") for name in ("unet", "fpn", "random"))
    chosen = (
        "--split",
        "test",
        "--panels",
        "2",
        "--random-panels",
        "0",
        "--columns",
        "5",
        "--panel-side",
        "220",
    )
    data = ("--data", OUT / "unet/splits.csv", "--root", OUT / "masks")
    run("compare", *data, "--weights", models, *chosen, "--rounds", "0", "--output", OUT / "compared")
    drawn = [Image.open(path).convert("RGB") for path in sorted((OUT / "compared/panels").glob("*.png"))]
    sheet = Image.new("RGB", (max(each.width for each in drawn), sum(each.height for each in drawn)), "white")
    for number, each in enumerate(drawn):
        sheet.paste(each, (0, sum(before.height for before in drawn[:number])))
    _save(sheet, "panels.png")


def _held_out() -> list[Path]:
    """Return the images that are shown: of split test, which the training does not see."""
    images = [
        image for image in json.loads((STORY / "more.json").read_text())["images"] if image["split"] == "test"
    ]
    names = [
        name
        for kind, number in KINDS.items()
        for name in sorted(image["file_name"] for image in images if image["kind"] == kind)[:number]
    ]
    return [STORY / "images" / name for name in names]


def _crop(image: Image.Image) -> Image.Image:
    """Return SIDE x SIDE pixels from the middle."""
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return image.crop((left, top, left + SIDE, top + SIDE))


def _save(image: Image.Image, name: str) -> None:
    """Save with a palette: a third of the bytes."""
    image.quantize(128).save(HERE / name, optimize=True)


if __name__ == "__main__":
    outlines()
    label_maps()
    panels()
