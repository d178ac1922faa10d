"""What the README's commands name, laid into a folder where they look for it; small, real where possible."""

import csv
import io
import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from tests.comparison.made import write_model
from tests.sam_models import save
from tests.scenes.made import town, write
from tests.volumes.made import write_pairs

ROOT = Path(__file__).parents[1]
NUCLEI = ROOT / "tests/data/nuclei"


def lay(folder: Path, put: Callable[[str, bytes], None]) -> None:
    """put: (name, bytes) into the bucket `my-bucket`."""
    for path in (ROOT / "jobs").glob("*.yaml"):
        _copy(path, folder / "jobs" / path.name)
    for name in ("nuclei", "scenes"):
        shutil.copytree(ROOT / "tests/data" / name, folder / "tests/data" / name)
    _nuclei(folder / "nuclei")
    shutil.copy(ROOT / "segray/models/bundled/nuclei-small.pt", folder / "my-model.pt")
    write_model(folder / "out/other/model.pt", 1, classes=("background", "foreground"))
    _retraining(folder / "retrain.yaml")
    images = sorted(NUCLEI.glob("images/*.png"))
    _photos(folder, images)
    _items(folder / "items", folder / "photos/two.jpg")
    _people(folder / "people", images)
    _streets(folder)
    _scene(folder / "scene.tif")
    write_pairs(folder / "volumes")
    put("scenes/scene.tif", (folder / "scene.tif").read_bytes())
    put("photos/one.png", images[1].read_bytes())
    put("shards/0.tar", _tar(images[2:3]))
    _coco_weights(folder / "torch")
    save(folder / "sam2", "sam2")


def _nuclei(folder: Path) -> None:
    """The bundled ones are all for test."""
    shutil.copytree(NUCLEI, folder)
    content = json.loads((folder / "instances.json").read_text())
    for place, image in enumerate(content["images"]):
        image["split"] = {0: "val", 1: "test"}.get(place, "train")
    (folder / "instances.json").write_text(json.dumps(content))


def _retraining(path: Path) -> None:
    """The settings of `docs/retrain.md`, of labels that lie here."""
    (settings,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/retrain.md").read_text(), re.M | re.S)
    labels = ROOT / "tests/data/nuclei-story/first.json"
    path.write_text(
        f"root: {labels.parent / 'images'}\n" + settings.replace("data: nuclei ", f"data: {labels} ")
    )


def _scene(path: Path) -> None:
    """Four bands, where one of the commands names the fourth."""
    bands = [town(700, 700, seed).clip(0, 255).astype(np.uint8) for seed in range(4)]
    write(path, town(700, 700))  # for its place on Earth
    with rasterio.open(path) as file:
        profile = file.profile | {"count": len(bands), "photometric": "MINISBLACK"}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.stack(bands))


def _photos(folder: Path, images: list[Path]) -> None:
    _copy(images[0], folder / "photos/holiday/one.png")
    with Image.open(images[1]) as image:
        image.convert("RGB").save(folder / "photos/two.jpg")
    pq.write_table(pa.table({"uri": [str(images[2])]}), folder / "list.parquet")
    with zipfile.ZipFile(folder / "more.zip", "w") as more:
        more.write(images[3], "three.png")


def _items(folder: Path, image: Path) -> None:
    """A STAC Item of a photo."""
    folder.mkdir()
    asset = {"href": f"../photos/{image.name}", "type": "image/jpeg", "roles": ["data"]}
    item: dict[str, object] = {"type": "Feature", "stac_version": "1.1.0", "id": "one", "links": []}
    item |= {
        "geometry": None,
        "properties": {"datetime": "2024-05-06T07:08:09Z"},
        "assets": {"picture": asset},
    }
    (folder / "one.json").write_text(json.dumps(item))


def _people(folder: Path, images: list[Path]) -> None:
    """Every object is a person: the masks of the nuclei, 0 and 255."""
    coco = COCO(str(NUCLEI / "instances.json"))
    numbers = {
        image["file_name"].rpartition("/")[2]: image["id"] for image in coco.loadImgs(coco.getImgIds())
    }
    rows = []
    for place, path in enumerate(images):
        masks = [coco.annToMask(each) for each in coco.loadAnns(coco.getAnnIds(numbers[path.name]))]
        mask: NDArray[np.uint8] = 255 * np.maximum.reduce(masks)
        _copy(path, folder / "images" / path.name)
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / "masks" / path.name)
        split = {0: "val", 1: "test"}.get(place, "train")
        rows.append((f"images/{path.name}", f"masks/{path.name}", split))
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("images", "masks", "split"), *rows])


def _streets(folder: Path) -> None:
    for where in ("streets/labels/test", "predicted"):
        (folder / where).mkdir(parents=True)
        Image.fromarray(np.eye(20, dtype=np.uint8)).save(folder / where / "one.png")


def _coco_weights(torch_home: Path) -> None:
    """Random ones under the name of the published file: torchvision takes what lies in its cache."""
    torch.manual_seed(0)
    model = torchvision.models.detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    file = torch_home / "hub/checkpoints/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
    file.parent.mkdir(parents=True)
    torch.save(model.state_dict(), file)


def _tar(files: list[Path]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for file in files:
            tar.add(file, file.name)
    return packed.getvalue()


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, to)
