"""The second pass on a real Ray: what it adds and costs, killed and used again; scenes and label maps."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from segray.cli import main
from segray.selection.read_measures import add_measures, measure_files
from segray.selection.reading import read_pool
from segray.storage import StorageSettings
from tests.bulk.runs import (
    FEW,
    TILING,
    annotate,
    committed,
    kill_tree,
    make_images,
    running,
    tables,
    wait_for,
)
from tests.scenes.made import town, write

pytestmark = pytest.mark.usefixtures("ray_session")
MODELS = "python:tests.selection.models:"
STORAGE = StorageSettings()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of twelve images with their cameras; one is no image."""
    folder = make_images(tmp_path_factory.mktemp("photos") / "images", 12)
    (folder / "0005.png").write_bytes(b"no image")
    lines = [f"{path},{'left' if n % 3 else 'right'}" for n, path in enumerate(sorted(folder.glob("*.png")))]
    (folder.parent / "list.csv").write_text("\n".join(["uri,camera", *lines]) + "\n")
    return folder.parent / "list.csv"


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    output = photos.parent / "run"
    options = ("--keep-columns", "camera", "--max-rejects", 1, "--commit-every-s", 0)
    assert annotate(photos, "--weights", MODELS + "compact", *options, "--output", output) == 0
    return output


def select(run: Path, output: Path, *more: object) -> int:
    return main(["select", str(run), "--output", str(output), *map(str, more)])


OPTIONS = ("--budget", 6, "--group-by", "camera", "--flips")


@pytest.fixture(scope="module")
def first(run: Path) -> pd.DataFrame:
    """What the first selection finds, with its pass in `next.work`."""
    assert select(run, run.parent / "next.parquet", *OPTIONS) == 0
    return pd.read_parquet(run.parent / "next.parquet")


def test_a_selection_with_everything(run: Path, first: pd.DataFrame) -> None:
    assert len(first) == 6
    assert first.group.value_counts().to_dict() == {"left": 3, "right": 3}
    assert first[["unsure", "flips"]].notna().all(axis=None)
    assert first.distance.notna().sum() == 5  # all but the first
    assert first.windows.isna().all()
    assert not first.uri.str.endswith("0005.png").any()
    ledger = pq.read_table(run / "images").to_pandas().set_index("image_id")
    assert (ledger.uri[first.image_id].to_numpy() == first.uri.to_numpy()).all()


def test_the_pass_is_an_output_of_annotate_at_a_low_threshold(run: Path, first: pd.DataFrame) -> None:
    work, plain = run.parent / "next.work", run.parent / "low"
    options = ("--keep-columns", "camera", "--max-rejects", 1, "--score-threshold", 0.05)
    assert (
        annotate(run.parent / "list.csv", "--weights", MODELS + "compact", *options, "--output", plain) == 0
    )
    assert tables(work) == tables(plain)
    rows = tables(plain)[1]
    assert min(row["score"] for row in rows) < 0.5
    wrong = pd.DataFrame(rows).assign(wrong=lambda all: np.where(all.score > 0.5, 1 - all.score, all.score))
    by_id = wrong.groupby("image_id").wrong.sum()
    np.testing.assert_allclose(first.unsure, by_id[first.image_id], rtol=1e-5)


def test_its_cost_is_told_and_it_is_used_again(
    run: Path, first: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ("--work", run.parent / "next.work")
    assert select(run, tmp_path / "dry.csv", *OPTIONS, "--dry-run") == 0
    told = capsys.readouterr()
    assert re.search(r"has no scores below 0.5 and no features: its model goes over its 12 images", told.err)
    assert re.search(r"in about \d+ (s|min) at the run's [\d.]+ images/s, twice for flips", told.err)
    assert "would select 6 of 11 images" in told.out
    assert list(tmp_path.iterdir()) == []
    assert select(run, tmp_path / "again.parquet", *OPTIONS, *work) == 0
    told = capsys.readouterr()
    assert "is finished: it is used again" in told.err
    assert "goes over" not in told.err
    assert pd.read_parquet(tmp_path / "again.parquet").equals(first)
    assert select(run, tmp_path / "other.csv", "--budget", 6, *work) == 2  # without flips it is another pass
    assert "flips: True there, False now" in capsys.readouterr().err


def test_another_model_does_not_stand_in(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(run, tmp_path / "run")
    record = json.loads((other / "run.json").read_text())
    record["identity"]["model_digest"] = "0" * 64
    (other / "run.json").write_text(json.dumps(record))
    assert select(other, tmp_path / "next.csv", "--budget", 3) == 2
    assert "has changed since" in capsys.readouterr().err


def test_killed_and_run_again_it_chooses_the_same(run: Path, first: pd.DataFrame, tmp_path: Path) -> None:
    slow = shutil.copytree(run, tmp_path / "run")
    record = json.loads((slow / "run.json").read_text())
    assert record["settings"]["weights"] == MODELS + "compact"
    output, work = tmp_path / "next.parquet", tmp_path / "next.work"
    environment = {"SLOW_MODEL_S": "0.3"}
    with running(slow, "--output", output, *OPTIONS, verb="select", env=environment) as process:
        wait_for(lambda: committed(work) > 2, 120, "a commit of the second pass")
        assert process.poll() is None
        kill_tree(process.pid)
    assert not (work / "run.json").exists()
    assert not output.exists()
    assert select(slow, output, *OPTIONS) == 0
    assert pd.read_parquet(output).equals(first)
    ids = {row["image_id"] for row in tables(work)[0] if row["status"] == "annotated"}
    measured = pq.read_table(work / "measures")["image_id"].to_pylist()
    assert set(measured) == ids


def test_scenes_are_measured_by_window(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    for seed in range(2):
        write(tmp_path / f"scenes/{seed}.tif", town(400, 700, seed))
    options = ("--weights", MODELS + "compact", *TILING[:1], 256, *TILING[2:3], 64)
    assert annotate(tmp_path / "scenes", *options, "--output", tmp_path / "run") == 0
    assert select(tmp_path / "run", tmp_path / "next.csv", "--budget", 2) == 0
    found = pd.read_csv(tmp_path / "next.csv")
    assert len(found) == 2
    assert found.windows.between(0, 1).all()
    rows = pq.read_table(tmp_path / "next.work/measures").to_pylist()
    assert {row["tile"] for row in rows} == {None, *range(8)}
    pool = read_pool(str(tmp_path / "run"), None, STORAGE)
    add_measures(pool, measure_files(str(tmp_path / "next.work"), STORAGE), STORAGE)
    by_id = dict(zip(pool.ids.tolist(), pool.measures["windows"].tolist(), strict=True))
    for image_id, windows in zip(found.image_id, found.windows, strict=True):
        assert by_id[image_id.encode()] == pytest.approx(windows)


def test_label_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "images", 4)
    write(tmp_path / "images/scene.tif", town(300, 300, 1))
    tiling = ("--tile", "256", "--overlap", "64", "--probabilities")
    options = ("--weights", MODELS + "columns", "--output", str(tmp_path / "run"))
    assert main(["predict", *FEW, str(tmp_path / "images"), *tiling, *options]) == 0
    assert select(tmp_path / "run", tmp_path / "next.csv", "--budget", 3, "--flips") == 0
    assert "no uncertainty of its pixels and no features" in capsys.readouterr().err
    found = pd.read_csv(tmp_path / "next.csv")
    assert len(found) == 3
    assert found.unsure.between(0.4, 1).all()  # the left half is never sure
    assert found.flips.between(0, 1).all()
    assert found.reason.str.contains("entropy 0.|mirror image").all()
    assert not list((tmp_path / "next.work").glob("labels/*"))
    assert select(tmp_path / "run", tmp_path / "alone.csv", "--budget", 5, "--from-run-only") == 0
    alone = pd.read_csv(tmp_path / "alone.csv").set_index("image_id").unsure
    pictures = found[found.uri.str.endswith(".png")]  # a scene's windows are blended, and here they differ
    np.testing.assert_allclose(alone[pictures.image_id], pictures.unsure, atol=0.01)
