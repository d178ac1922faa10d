"""`predict`, then `evaluate --predictions`, says of a model what `evaluate --weights` says, at any size."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segray.cli import main
from segray.models.architectures import complete_settings
from segray.models.modelfile import SemanticCard, build_model, model_bytes
from segray.models.weights import load_weights
from segray.predict.network import Network
from segray.storage import StorageSettings
from tests.bulk.runs import FEW, tables

pytestmark = pytest.mark.usefixtures("ray_session")

SIZES = {"small": (480, 640), "three": (1500, 2000), "twelve": (3000, 4000)}
"""0.3, 3 and 12 megapixels of the same view."""
SIDE = 64


def write_model(path: Path, fit: str) -> None:
    """A small network that no one has trained: its classes change with the size of what it sees."""
    card = SemanticCard(
        "unet", complete_settings("unet", {"width": 4, "depth": 2, "norm": "batch"}), 2,
        ("ground", "thing"), (0.5,) * 3, (0.25,) * 3, SIDE, fit,
    )  # fmt: skip
    torch.manual_seed(11)
    path.write_bytes(model_bytes(card, build_model(card).state_dict()))


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Soft blobs, at each size."""
    folder = tmp_path_factory.mktemp("views")
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    for name, (height, width) in SIZES.items():
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(
            folder / f"{name}.jpg", quality=95
        )
    return folder


def miou(folder: Path) -> float:
    return float(json.loads((folder / "metrics.json").read_text())["metrics"]["miou"])


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_maps_are_worth_what_the_model_is_worth(fit: str, views: Path, tmp_path: Path) -> None:
    """Against labels that are the model's own, with a strip that it does not see."""
    write_model(tmp_path / "model.pt", fit)
    model = load_weights(str(tmp_path / "model.pt"), StorageSettings(), "semantic")
    network = Network(model, "cpu", "fp32")
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/labels").mkdir()
    for path in views.iterdir():
        (tmp_path / "data/images" / path.name).write_bytes(path.read_bytes())
        (label,) = network.labels([np.asarray(Image.open(path))])
        assert 0.1 < label.mean() < 0.9
        label[: label.shape[0] // 8] = 0
        Image.fromarray(label).save(tmp_path / f"data/labels/{path.stem}.png")
    common = ("--device", "cpu", "--precision", "fp32", "--classes", "ground,thing")
    weights = ("--weights", str(tmp_path / "model.pt"))
    data = ("--data", str(tmp_path / "data"), "--split", "all")
    assert main(["evaluate", *weights, *data, *common, "--output", str(tmp_path / "whole")]) == 0
    found = dict[str, dict[str, bytes]]()
    for name, options in {
        "plain": (), "probable": ("--probabilities",), "turned": ("--probabilities", "--tta", "flip")
    }.items():  # fmt: skip
        output, sources = tmp_path / name, tmp_path / "data/images"
        if name == "turned" and fit == "crop":
            sources /= "small.jpg"  # the others are tiled, and compared with nothing
        run = ("predict", *FEW, str(sources), *weights, "--precision", "fp32", *options)
        assert main([*run, "--output", str(output)]) == 0
        images, _ = tables(output)
        tiled = {Path(row["uri"]).stem for row in images if row["tiles"]}
        assert tiled == (set() if fit == "resize" or name == "turned" else {"three", "twelve"})
        found[name] = {
            Path(row["uri"]).stem: (output / f"labels/{row['image_id']}.png").read_bytes() for row in images
        }
        if name != "turned":
            scores = tmp_path / f"{name}-scores"
            labels = ("--predictions", str(output), "--labels", str(tmp_path / "data/labels"))
            assert main(["evaluate", *labels, *common, "--output", str(scores)]) == 0
            assert miou(scores) == pytest.approx(miou(tmp_path / "whole"), abs=0.03)
    assert found["plain"] == found["probable"]
    turned = Network(model, "cpu", "fp32", "flip")
    for name in SIZES if fit == "resize" else ("small",):
        (label,) = turned.labels([np.asarray(Image.open(views / f"{name}.jpg"))])
        with Image.open(io.BytesIO(found["turned"][name])) as written:
            assert np.array_equal(np.asarray(written), label), name
    assert 0.6 < miou(tmp_path / "whole") < 0.99
