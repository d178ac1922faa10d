"""The verbs as Python functions, on real images."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import geopandas
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import segray
from segray.annotate.settings import AnnotateSettings
from segray.errors import NothingToDoError, SettingsError
from segray.preview.drawn import drawn
from segray.storage import StorageSettings
from segray.train.settings import TrainSettings

ROOT = Path(__file__).parents[1]
NUCLEI = ROOT / "tests/data/nuclei"


@pytest.fixture(scope="module")
def labels(ray_session: object, tmp_path_factory: pytest.TempPathFactory) -> segray.Result:
    """What a bundled model finds in the bundled images."""
    output = tmp_path_factory.mktemp("api") / "labels"
    return segray.annotate(str(NUCLEI / "images"), weights="nuclei-small", output=str(output))


def test_annotate_gives_counts_and_tables(labels: segray.Result) -> None:
    assert labels.exit_code == 0
    assert labels.counts["annotated"] == 11
    instances, images = labels.to_pandas(), labels.to_pandas("images")
    assert len(instances) == labels.counts["instances"] == images.instances.sum() > 300
    assert set(instances.category) == {"nucleus"}
    assert labels.record["categories"] == [{"id": 1, "name": "nucleus"}]
    assert "categories" not in labels.record["identity"]


def test_a_result_is_the_input_of_the_next(labels: segray.Result, tmp_path: Path) -> None:
    scores = segray.evaluate(
        predictions=labels.output, labels=str(NUCLEI / "instances.json"), output=str(tmp_path / "scores")
    )
    assert 0.3 < scores.record["metrics"]["segm"]["ap"] < 0.6
    file = tmp_path / "labels.json"
    exported = segray.export(labels.output or "", as_="coco", output=str(file))
    assert (exported.exit_code, exported.output, exported.record) == (0, str(file), {})
    assert len(json.loads(file.read_bytes())["annotations"]) == labels.counts["instances"]
    assert segray.drift(labels.output or "", against=labels.output).exit_code == 0


def test_show_outlines_each_instance(labels: segray.Result) -> None:
    """A coloured line runs along the edges of the masks, and the rest is the image."""
    assert max(labels.show(images=1).size) <= 512
    shown = np.array(drawn(labels.output or "", StorageSettings(), images=1, side=4096)).astype(int)
    images = labels.to_pandas("images").set_index("image_id")
    sizes = [shown.shape[:2] == (row.height, row.width) for row in images.itertuples()]
    differ = {}
    for image_id, row in images[sizes].iterrows():
        with Image.open(row.uri.removeprefix("file://")) as file:
            differ[image_id] = (np.abs(shown - np.array(file.convert("RGB"))) > 8).any(axis=2)
    image_id = min(differ, key=lambda each: differ[each].mean())  # which one depends on the ids
    instances = labels.to_pandas()
    masks = instances[instances.image_id == image_id].segmentation
    counts = [{"size": [*map(int, rle["size"])], "counts": rle["counts"]} for rle in masks]
    whole = coco_mask.decode(coco_mask.merge(counts))
    edge = cv2.dilate(whole, np.ones((5, 5), np.uint8)) != cv2.erode(whole, np.ones((5, 5), np.uint8))
    assert differ[image_id][edge].mean() > 0.3
    assert differ[image_id][~edge].mean() < 0.05


def test_typed_settings_hold_where_nothing_else_is_given(labels: segray.Result, tmp_path: Path) -> None:
    settings = AnnotateSettings(sources=[str(NUCLEI / "images")], output=str(tmp_path / "x"), dry_run=True)
    dry = segray.annotate(settings=settings, output=str(tmp_path / "y"), weights="nuclei-small")
    assert (dry.output, dry.record) == (str(tmp_path / "y"), {})


def test_geopandas_knows_the_place_in_what_is_documented(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    _, code, _ = re.split(r"```(?:python)?\n", (ROOT / "docs/python.md").read_text())
    names: dict[str, segray.Result] = {}
    exec(code, names)
    houses = names["houses"].to_geopandas()
    assert isinstance(houses, geopandas.GeoDataFrame)
    assert houses.crs == "OGC:CRS84"
    assert len(houses) == names["houses"].counts["instances"] > 0
    assert houses.to_crs(32636).area.sum() == pytest.approx(houses.area_m2.sum(), rel=0.01)
    assert len(geopandas.read_file("out/houses.gpkg")) == len(houses)


def test_a_record_is_that_of_the_verb(tmp_path: Path) -> None:
    """Where the output holds another verb's run.json."""
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "annotations": [],
        "categories": [{"id": 1, "name": "roof"}],
    }
    for name, content in (("truth.json", truth), ("found.json", []), ("run.json", {"verb": "annotate"})):
        (tmp_path / name).write_text(json.dumps(content))
    found = segray.evaluate(
        predictions=str(tmp_path / "found.json"), labels=str(tmp_path / "truth.json"), output=str(tmp_path)
    )
    assert found.record == json.loads((tmp_path / "metrics.json").read_text())
    assert found.counts["compared"] == 1


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGRAY_EPOCHS", "3")
    assert TrainSettings(data="d", output="o", epochs=5).epochs == 5
    assert TrainSettings(data="d", output="o").epochs == 3


def test_what_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        segray.annotate(score_treshold=0.5, weights="nuclei-small", tile="wide")
    text = "\n".join(caught.value.lines)
    assert "did you mean score_threshold?" in text
    assert "output: is required" in text
    assert "sources: is required" in text
    assert "tile: " in text
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingToDoError):
        segray.annotate(str(tmp_path / "empty"), weights="nuclei-small", output=str(tmp_path / "out"))


def test_a_table_that_is_not_there_is_named(labels: segray.Result) -> None:
    with pytest.raises(SettingsError, match="has no tiles"):
        labels.to_pandas("tiles")
    with pytest.raises(SettingsError, match=r"has no metrics\.jsonl"):
        labels.to_pandas("metrics")


def test_a_room_does_not_take_the_place_of_its_verb() -> None:
    """Importing `segray.annotate.task` sets `segray.annotate`; and the package is quick to import."""
    code = (
        "import sys, segray, segray.annotate.task, segray.train.job; from segray.evaluate import job\n"
        "assert all(callable(getattr(segray, name)) for name in segray.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    light = "import sys, segray; assert not {'numpy', 'torch', 'pydantic', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", light], check=True)
