"""`segray compare` of instance models: the figures of `evaluate`, over the images that all could do."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segray
from segray.cli import main
from segray.comparison.instances import InstanceData
from segray.comparison.settings import CompareSettings
from segray.models import bundled_models
from segray.settings import without_environment

NUCLEI = Path(__file__).parents[1] / "data/nuclei"


@pytest.fixture(scope="module")
def output(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model against one whose weights are disturbed, on three images, of which one is lost."""
    folder = tmp_path_factory.mktemp("instances")
    content = torch.load(bundled_models()["nuclei-small"], weights_only=True)
    torch.manual_seed(0)
    for values in content["state_dict"].values():
        if values.is_floating_point() and values.ndim > 1:
            values += torch.randn_like(values) * values.std() * 0.12
    torch.save(content, folder / "disturbed.pt")
    labels = json.loads((NUCLEI / "instances.json").read_text())
    kept = sorted(labels["images"], key=lambda each: each["width"] * each["height"])[:3]
    for place, image in enumerate(kept):
        image["file_name"] = str(NUCLEI / "images" / image["file_name"]) if place else "lost.png"
    labels["images"] = kept
    ids = {image["id"] for image in kept}
    labels["annotations"] = [each for each in labels["annotations"] if each["image_id"] in ids]
    (folder / "labels.json").write_text(json.dumps(labels))
    options = [
        "--data",
        folder / "labels.json",
        "--split",
        "all",
        "--output",
        folder / "out",
        "--device",
        "cpu",
    ]
    options += ["--weights", f"nuclei-small,{folder}/disturbed.pt", "--rounds", 0, "--draws", 20]
    assert main(["compare", *map(str, options)]) == 3
    return folder / "out"


def test_the_figures_of_evaluate(output: Path) -> None:
    scores = json.loads((output / "metrics.json").read_text())
    assert scores["counts"]["compared"] == 2
    assert [each["name"] for each in scores["failed"]] == ["lost.png"]
    folders = sorted((output / "predictions").iterdir(), key=lambda each: "nuclei-small" not in each.name)
    for each, folder in zip(scores["models"], folders, strict=True):
        record = segray.evaluate(
            predictions=str(folder / "predictions"),
            labels=str(output.parent / "labels.json"),
            output=str(output.parent / "scores"),
            draws=20,
            max_rejects=1.0,
        ).record
        assert each["metrics"] == record["metrics"]
        assert each["intervals"]["ap"] == record["intervals"]["segm"]["ap"]
        assert each["thresholds"][0]["score"] == record["thresholds"][0]["segm"]["score"]
    good, bad = scores["models"]
    assert good["metrics"]["segm"]["ap"] > bad["metrics"]["segm"]["ap"] > 0
    difference = bad["difference"]["ap"]
    assert difference["difference"] == bad["metrics"]["segm"]["ap"] - good["metrics"]["segm"]["ap"]
    assert difference["low"] <= difference["difference"] <= difference["high"] < 0
    assert good["parameters"] == bad["parameters"] == 3_876_955


def test_a_changed_image_is_noticed(tmp_path: Path) -> None:
    """Same address and size, other pixels: a finished output is not of these data."""
    image = tmp_path / "0.png"
    image.write_bytes(b"one")
    (tmp_path / "labels.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    given = {"data": f"{tmp_path}/labels.json", "weights": ["nuclei-small"], "output": f"{tmp_path}/out"}
    settings: CompareSettings = without_environment(CompareSettings, given)

    def digest() -> str:
        images = (str(image), str(tmp_path / "lost.png"))
        return InstanceData(settings, images, "cpu", "fp32", ()).digest

    before = digest()
    assert digest() == before
    os.utime(image, ns=(0, 0))
    assert digest() != before
    changed = digest()
    (tmp_path / "lost.png").write_bytes(b"found")
    assert digest() != changed


def test_a_model_of_other_things_is_refused_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", NUCLEI, "--split", "all", "--output", tmp_path / "out"]
    assert main(["compare", *map(str, options), "--weights", "nuclei-small,buildings-small"]) == 2
    told = capsys.readouterr().err
    assert "weights buildings-small: its classes are building, those of the labels nucleus: none in" in told
    assert not (tmp_path / "out").exists()


def test_panels_have_outlines(output: Path) -> None:
    """Of truth and of both models on the same picture."""
    scores = json.loads((output / "metrics.json").read_text())
    assert len(scores["images"]) == 2
    for image in scores["images"]:
        drawn = np.asarray(Image.open(output / image["panel"])).astype(int)
        width = (drawn.shape[1] - 2 * 16 + 10) // 4
        panels = [drawn[62:-16, 16 + place * width :][:, : width - 10] for place in range(4)]
        changed = [(panel != panels[0]).any(axis=2).mean() for panel in panels]
        assert changed[0] == 0 < min(changed[1:])
