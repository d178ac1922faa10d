"""`segray select` from tables alone: what is chosen, what never is, and what every row says."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.cli import main
from segray.sources.listing import Listing
from segray.storage import StorageSettings
from tests.selection.made import image, instance, many, write
from tests.servers import Server

ALONE = ("--from-run-only",)


def select(run: Path, output: Path, budget: int, *more: object) -> int:
    arguments = (run, "--budget", budget, "--output", output, *ALONE, *more)
    return main(["select", *map(str, arguments)])


def chosen(run: Path, output: Path, budget: int, *more: object) -> pd.DataFrame:
    """The manifest, as pandas reads it."""
    assert select(run, output, budget, *more) == 0
    return pd.read_csv(output) if output.suffix == ".csv" else pd.read_parquet(output)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 images, of which the last two are rejected and vanished."""
    images, instances = many(90)
    images[-1] |= {"status": "rejected", "error_type": "corrupt", "error": "no image"}
    images[-2]["vanished"] = True
    return write(tmp_path_factory.mktemp("made") / "run", images, instances)


def test_the_expected_number_of_errors_is_that_of_a_plain_loop(run: Path, tmp_path: Path) -> None:
    rows = pq.read_table(run / "instances").to_pandas()
    wrong = (1 - rows.score.astype(float)).groupby(rows.image_id).sum()
    right = rows.score.astype(float).groupby(rows.image_id).sum()
    found = chosen(run, tmp_path / "sum.parquet", 88).set_index("image_id")
    assert len(found) == 88
    np.testing.assert_allclose(found.unsure, wrong.reindex(found.index).fillna(0), rtol=1e-5)
    shares = chosen(run, tmp_path / "mean.parquet", 88, "--unsure", "mean").set_index("image_id")
    np.testing.assert_allclose(
        shares.unsure, (wrong / (wrong + right)).reindex(shares.index).fillna(0), rtol=1e-5
    )
    assert shares.reason.str.contains("% of its instances expected to be wrong").sum() > 40


def test_scores_below_the_threshold_count_as_doubts(tmp_path: Path) -> None:
    """Kept ones are wrong with probability 1 - score, others with score; a person's are right."""
    images = [image(number) for number in range(3)]
    scores: list[list[float | None]] = [[0.9, 0.4], [0.6, 0.05], [None]]
    instances = [instance(of, score) for of, each in zip(images, scores, strict=True) for score in each]
    found = chosen(write(tmp_path / "run", images, instances), tmp_path / "next.csv", 3)
    by_id = found.set_index("image_id").unsure
    np.testing.assert_allclose(by_id[[each["image_id"] for each in images]], [0.5, 0.45, 0], atol=1e-6)
    assert found.image_id[0] == images[0]["image_id"]
    assert "0.5 instances expected to be wrong, 1 found, the most of all images" in found.reason[0]


def test_rejected_and_vanished_images_are_never_chosen(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = chosen(run, tmp_path / "next.csv", 500)
    ledger = pq.read_table(run / "images").to_pandas()
    good = ledger[(ledger.status == "annotated") & (ledger.vanished != True)]  # noqa: E712 - null too
    assert sorted(found.image_id) == sorted(good.image_id)
    assert found["rank"].tolist() == list(range(1, 89))
    told = capsys.readouterr().out
    assert "selected 88 of 88 images (of 90 images 1 rejected, 1 vanished)" in told
    assert "fewer than the budget of 500: there are no more" in told


def test_one_seed_gives_one_choice_whatever_the_order_of_the_rows(run: Path, tmp_path: Path) -> None:
    images, instances = many(90)
    images[-1] |= {"status": "rejected"}
    images[-2]["vanished"] = True
    other = write(tmp_path / "other", images[1:] + images[:1], instances[::-1], parts=1)
    options = (20, "--group-by", "camera", "--seed", 3)
    first = chosen(run, tmp_path / "1.csv", *options)
    assert first.equals(chosen(other, tmp_path / "2.csv", *options))
    assert not first.equals(chosen(run, tmp_path / "3.csv", 20, "--group-by", "camera", "--seed", 4))
    assert first.equals(chosen(run, tmp_path / "1.csv", *options, "--overwrite"))


def test_groups_are_alike(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = chosen(run, tmp_path / "next.csv", 31, "--group-by", "camera")
    ledger = pq.read_table(run / "images").to_pandas().set_index("image_id")
    groups = ledger.camera[found.image_id].fillna("(none)").to_numpy()
    assert (found.group.fillna("(none)").to_numpy() == groups).all()
    counts = pd.Series(groups).value_counts()
    assert counts.to_dict() == {"left": 11, "right": 10, "(none)": 10}
    assert set(groups[:3]) == set(counts.index)
    assert "camera left: 11" in capsys.readouterr().out


def test_it_is_unsure_images_that_are_chosen(run: Path, tmp_path: Path) -> None:
    everything = chosen(run, tmp_path / "all.csv", 88)
    found = chosen(run, tmp_path / "next.csv", 10)
    assert found.unsure.min() >= everything.unsure.median()  # of so few, half are candidates
    strict = chosen(run, tmp_path / "strict.csv", 10, "--candidates", 10)
    assert set(strict.image_id) == set(everything.nlargest(10, "unsure").image_id)
    assert found.unsure.iloc[0] == everything.unsure.max()


def test_a_run_of_predict_without_a_pass_is_spread(tmp_path: Path) -> None:
    """Four kinds of brightness, one of them in nine tenths of the images."""
    images = [
        image(number, brightness=[10.0, 90.0, 170.0, 250.0][max(0, number - 36)]) for number in range(40)
    ]
    run = write(tmp_path / "run", images, [], record={"verb": "predict"})
    for seed in range(3):
        found = chosen(run, tmp_path / f"{seed}.csv", 4, "--candidates", 40, "--seed", seed)
        assert {max(36, int(Path(uri).stem)) for uri in found.uri} == {36, 37, 38, 39}
        assert found.reason.str.contains("unlike the others|spread over the run").all()


def labels_in_tables(folder: Path, images: list[dict[str, Any]]) -> Path:
    return write(folder / "tables", images, [], parts=1)


def labels_in_manifest(folder: Path, images: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.table({"uri": [each["uri"] for each in images]}), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def labels_in_csv(folder: Path, images: list[dict[str, Any]]) -> Path:
    lines = ["uri,note", *(f"{each['uri'].removeprefix('file://')},x" for each in images)]
    (folder / "list.csv").write_text("\n".join(lines))
    return folder / "list.csv"


@pytest.mark.parametrize("labels", [labels_in_tables, labels_in_manifest, labels_in_csv])
def test_labelled_images_are_left_out(
    labels: Any, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, _ = many(90)
    known = labels(tmp_path, images[:40])
    found = chosen(run, tmp_path / "next.csv", 100, "--labels", known)
    assert {Path(uri).stem for uri in found.uri} == {f"{number:04d}" for number in range(40, 88)}
    assert "40 labelled already" in capsys.readouterr().out


def test_coco_labels_are_left_out(tmp_path: Path) -> None:
    """Real files: names of COCO are relative to it."""
    names = ["a.png", "b.png", "c.png"]
    for name in names:
        shutil.copy(Path(__file__).parents[1] / "data/nuclei/images" / FIRST, tmp_path / name)
    images = [image(number, uri=f"file://{tmp_path / name}") for number, name in enumerate(names)]
    run = write(tmp_path / "run", images, [])
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
    square = {**box, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}
    (tmp_path / "coco.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "b.png", "height": 256, "width": 256}],
                "annotations": [square],
                "categories": [{"id": 1, "name": "thing"}],
            }
        )
    )
    found = chosen(run, tmp_path / "next.csv", 3, "--labels", tmp_path / "coco.json")
    assert sorted(Path(uri).name for uri in found.uri) == ["a.png", "c.png"]


FIRST = sorted(path.name for path in (Path(__file__).parents[1] / "data/nuclei/images").glob("*.png"))[0]


def test_two_runs_that_disagree(tmp_path: Path) -> None:
    """By a plain count of what has a partner; an image that one of them lacks is not compared."""
    images = [image(number) for number in range(5)]
    one = [instance(images[0], 0.9), instance(images[0], 0.8, (50, 50, 10, 10)), instance(images[1], 0.9)]
    one += [instance(images[3], 0.9)]
    two = [instance(images[0], 0.7, (1, 0, 10, 10)), instance(images[1], 0.6, (40, 0, 10, 10))]
    two += [instance(images[2], 0.55), instance(images[2], 0.45, (30, 30, 9, 9))]
    run = write(tmp_path / "one", images, one)
    other = write(tmp_path / "two", [*images[:4], image(4, status="rejected")], two, parts=1)
    found = chosen(run, tmp_path / "next.parquet", 5, "--against", other).set_index("image_id")
    values = found.against[[each["image_id"] for each in images]].to_numpy()
    np.testing.assert_allclose(values, [1 / 3, 1, 1, 1, np.nan], rtol=1e-6)
    assert found.reason.str.contains("the two runs disagree: 100 %").any()


def test_the_manifest_is_a_source(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "data/nuclei/images" / FIRST
    for name in ("plain.png", "with, comma.png", 'with "quotes".png', "größe.png"):
        shutil.copy(source, tmp_path / name)
    names = sorted(tmp_path.glob("*.png"))
    run = write(tmp_path / "run", [image(n, uri=f"file://{name}") for n, name in enumerate(names)], [])
    for suffix in ("csv", "parquet"):
        assert select(run, tmp_path / f"next.{suffix}", 9) == 0
        listed = list(Listing([str(tmp_path / f"next.{suffix}")], StorageSettings()))
        assert sorted(each.uri for each in listed) == sorted(f"file://{name}" for name in names)
        assert {each.error_type for each in listed} == {None}


def test_members_of_archives_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [image(0), image(1, uri="s3://bucket/a.zip", member="x/1.jpg")]
    found = chosen(write(tmp_path / "run", images, []), tmp_path / "next.parquet", 2).set_index("uri")
    assert found.member.dropna().to_dict() == {"s3://bucket/a.zip": "x/1.jpg"}
    assert "1 are members of archives" in capsys.readouterr().out


def test_nothing_to_select(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert select(run, tmp_path / "next.csv", 3, "--labels", run) == 4
    assert "nothing to select" in capsys.readouterr().err
    none = write(tmp_path / "none", [image(0, status="rejected")], [])
    assert select(none, tmp_path / "next.csv", 3) == 4
    assert "1 rejected" in capsys.readouterr().err
    assert not (tmp_path / "next.csv").exists()


def test_dry_run_writes_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert select(run, tmp_path / "next.csv", 3, "--dry-run") == 0
    assert "would select 3 of 88 images" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_are_told_at_once(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, list[object]] = {
        "output: must be a file whose name ends in .csv or .parquet": [run, tmp_path / "next.json", 3],
        "flips: needs the second pass": [run, tmp_path / "next.csv", 3, "--flips"],
        "candidates: must be at least the budget": [run, tmp_path / "next.csv", 3, "--candidates", 2],
        "group_by: ": [run, tmp_path / "next.csv", 3, "--group-by", "colour"],
        "labels: ": [run, tmp_path / "next.csv", 3, "--labels", tmp_path / "nowhere"],
        "against: ": [run, tmp_path / "next.csv", 3, "--against", write(tmp_path / "x", [image(700)], [])],
        "is no output of annotate or predict": [_empty(tmp_path / "empty"), tmp_path / "next.csv", 3],
        "is an output of train": [_empty(tmp_path / "trained", verb="train"), tmp_path / "next.csv", 3],
        "is not finished": [_begun(tmp_path / "begun"), tmp_path / "next.csv", 3],
    }
    for line, (where, output, budget, *more) in told.items():
        assert select(Path(str(where)), Path(str(output)), int(str(budget)), *more) == 2, line
        error = capsys.readouterr().err
        assert line in error
        assert "Traceback" not in error
    (tmp_path / "next.csv").write_text("mine")
    assert select(run, tmp_path / "next.csv", 3, "--labels", tmp_path / "nowhere") == 2
    assert "exists; choose another name, or --overwrite" in capsys.readouterr().err
    assert (tmp_path / "next.csv").read_text() == "mine"


def _empty(folder: Path, verb: str = "annotate") -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"verb": verb}))
    return folder


def _begun(folder: Path) -> Path:
    (folder / "_segray").mkdir(parents=True)
    (folder / "_segray/plan.json").write_text("{}")
    return folder


def test_a_run_whose_model_is_not_known_needs_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", [image(0)], [])
    (run / "run.json").unlink()
    assert main(["select", str(run), "--budget", "1", "--output", str(tmp_path / "next.csv")]) == 2
    assert "select with --from-run-only" in capsys.readouterr().err
    assert select(run, tmp_path / "next.csv", 1) == 0
    write(run, [image(0)], [])  # its record has no settings of a run
    assert main(["select", str(run), "--budget", "1", "--output", str(tmp_path / "other.csv")]) == 2
    assert "does not hold the settings of a run of annotate" in capsys.readouterr().err


def test_a_damaged_table_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", [image(number) for number in range(4)], [])
    (run / "instances/part-000001.parquet").write_bytes(b"no parquet")
    assert select(run, tmp_path / "next.csv", 2) == 2
    assert "instances/part-000001.parquet cannot be read" in capsys.readouterr().err


def test_from_and_into_a_bucket(
    run: Path, s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    for file in run.rglob("*.*"):
        s3_server.put(f"run/{file.relative_to(run)}", file.read_bytes())
    arguments = [s3_server.url("run"), "--budget", "9", *ALONE, "--against", str(run), "--group-by", "camera"]
    output = s3_server.url("made/next.csv")
    assert main(["select", *arguments, "--output", output]) == 0
    assert main(["select", *arguments, "--output", output]) == 2  # it exists
    there = tmp_path / "there.csv"
    there.write_bytes(s3_server.get("made/next.csv"))
    assert pd.read_csv(there).equals(
        chosen(run, tmp_path / "here.csv", 9, "--against", run, "--group-by", "camera")
    )
    assert not pd.read_csv(there).against.any()
    labels = s3_server.url("made/next.csv")
    assert not set(chosen(run, tmp_path / "rest.csv", 88, "--labels", labels).uri) & set(
        pd.read_csv(there).uri
    )
