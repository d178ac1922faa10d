"""`--keep-columns` through a whole job, and outputs of versions that knew neither it nor brightness."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from segray.bulk.committer import Committer
from segray.bulk.ledger_db import LedgerDb
from segray.cli import main
from segray.output.lease import Lease
from segray.output.reader import ledger_files, read_ledger
from segray.output.store import STAGING, Store
from segray.schema import BLURRED, QUALITY, TAKEN
from segray.sources.item import Source
from segray.storage import StorageSettings
from tests.bulk.runs import FEW, MODELS, annotate, make_images, tables
from tests.bulk.tables import VERB, answer, table
from tests.bulk.test_kept_tiles import SCENE, Job, Joining
from tests.output.test_store import rows

SEEDED = ("--weights", MODELS + "seeded")
LATER = [field.name for field in (*QUALITY, *TAKEN, BLURRED)]
"""Columns that older versions did not write."""


def test_a_scene_keeps_them_though_it_is_joined_when_it_is_listed_no_more(tmp_path: Path) -> None:
    """A run that was killed between its last tile and the joining: the next one begins with that."""
    kept = json.dumps(["east", None])
    store = Store(str(tmp_path), StorageSettings(), kept=["camera", "region"])
    with LedgerDb() as ledger:
        ledger.add_sources(
            [Source("scene", "scene", "file", "1", 1, kept=kept), Source("a", "a", "file", "1", 1)]
        )
        tiles = [Job(tmp_path, ()).tile(number) for number in range(len(SCENE.grid))]
        store.commit(ledger.with_kept(table(*tiles), store.kept), "_segray/tiles")
    with LedgerDb() as ledger:
        parts = store.recover()
        for part in parts:
            ledger.add_ledger(store, part)
        committer = Committer(store, ledger, Lease(store), parts, every_s=0, task=Joining(VERB.settings))
        committer.merge_whole_items()
        ledger.add_sources([Source("a", "a", "file", "1", 1)])
        committer.add(table(answer("a")))
        committer.finish()
    found = {row["uri"]: (row["camera"], row["region"], row["vanished"]) for row in rows(tmp_path, "images")}
    assert found == {"scene": ("east", None, True), "a": (None, None, False)}


def test_commits_and_parts_of_an_older_version_are_read(tmp_path: Path) -> None:
    """Staged, merged and by tile: what it did not know is null."""
    store = Store(str(tmp_path), StorageSettings())
    store.merge([store.commit(table(answer("merged") | {"brightness": 7.0}))])
    staged = store.commit(table(answer("staged") | {"brightness": 7.0}))
    tiles = store.commit(table(Job(tmp_path, ()).tile(0) | {"brightness": 7.0}), "_segray/tiles")
    files = [*tmp_path.glob("images/*"), *(tmp_path / part.name for part in (staged, tiles))]
    assert [_as_before(file) for file in files] == [True] * 3
    job = Job(tmp_path, ())
    job.run(store)
    assert sorted(job.computed) == [1, 2, 3]
    found = {row["uri"]: row["brightness"] for row in rows(tmp_path, "images")}
    assert found == dict.fromkeys(("a", "b", "scene", "merged", "staged"))
    assert not list((tmp_path / STAGING).glob("*"))


def _as_before(file: Path) -> bool:
    """Take the columns away; returns whether they were there."""
    there = pq.read_table(file)
    pq.write_table(there.drop(LATER), file)
    return set(LATER) <= set(there.column_names)


@pytest.mark.usefixtures("ray_session")
def test_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed, loose = make_images(tmp_path / "listed", 3), make_images(tmp_path / "loose", 2)
    sheet = tmp_path / "list.csv"
    sheet.write_text("uri,camera\nlisted/0000.png,left\nlisted/0001.png,right\nlisted/0002.png,\n")
    output = tmp_path / "out"
    command = (sheet, loose, "--output", output, *SEEDED, "--keep-columns", "camera")
    assert annotate(*command) == 0
    ledger, instances = tables(output)
    names = pq.ParquetFile(next(output.glob("images/*"))).schema_arrow.names
    assert names[-len(LATER) - 1 :] == [*LATER, "camera"]
    named = {row["uri"].removeprefix(f"file://{tmp_path}/"): row["camera"] for row in ledger}
    assert named == {"listed/0000.png": "left", "listed/0001.png": "right", "listed/0002.png": None,
                     "loose/0000.png": None, "loose/0001.png": None}  # fmt: skip
    assert all(0 < row["brightness"] < 255 and row["sharpness"] > 0 for row in ledger)
    assert instances
    capsys.readouterr()
    assert annotate(*command[:-2]) == 2
    assert "keep_columns: ['camera'] there, None now" in capsys.readouterr().err
    shutil.copyfile(listed / "0000.png", loose / "new.png")
    assert annotate(*command) == 0
    assert sorted(str(row["camera"]) for row in tables(output)[0]) == ["None"] * 4 + ["left", "right"]
    before, (images, instances) = set(output.glob("instances/*")), tables(output)
    sheet.write_text("uri,camera\nlisted/0000.png,left\nlisted/0001.png,\nlisted/0002.png,top\n")
    capsys.readouterr()
    assert annotate(*command) == 0  # what a manifest says otherwise now, without doing an image again
    assert "done, 0 images" in capsys.readouterr().out
    assert sorted(str(row["camera"]) for row in tables(output)[0]) == ["None"] * 4 + ["left", "top"]
    assert tables(output)[1] == instances
    assert [row | {"camera": None} for row in tables(output)[0]] == [row | {"camera": None} for row in images]
    assert annotate(*command) == 0
    assert "nothing to do, finished before" in capsys.readouterr().out
    assert set(output.glob("instances/*")) != before
    assert main(["drift", str(output), "--against", str(output), "--group-by", "camera"]) == 0
    told = capsys.readouterr().out
    assert "camera left: 1 images" in told
    assert "camera (none): 4 images" in told
    assert "not judged: fewer than 100 images" in told


@pytest.mark.usefixtures("ray_session")
def test_predict_likewise(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 2)
    sheet, output = tmp_path / "list.csv", tmp_path / "out"
    sheet.write_text("camera,uri\nleft,in/0000.png\n,in/0001.png\n")
    weights = "python:tests.predict.networks:local"
    command = ["predict", *FEW, str(sheet), "--output", str(output), "--weights", weights]
    assert main([*command, "--keep-columns", "camera"]) == 0
    ledger, _ = tables(output)
    assert sorted(str(row["camera"]) for row in ledger) == ["None", "left"]
    assert all(0 < row["brightness"] < 255 and row["sharpness"] > 0 for row in ledger)
    assert main(["drift", str(output), "--against", str(output), "--min-images", "1"]) == 0


@pytest.mark.usefixtures("ray_session")
def test_an_output_of_an_older_version_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(tmp_path / "in", 2)
    output = tmp_path / "out"
    assert annotate(images, "--output", output, *SEEDED) == 0
    assert all(_as_before(file) for file in output.glob("images/*"))
    plan = json.loads((output / "_segray/plan.json").read_text())
    del plan["keep_columns"]
    (output / "_segray/plan.json").write_text(json.dumps(plan))
    before = tables(output)
    assert annotate(images, "--output", output, *SEEDED) == 0
    assert tables(output) == before
    assert main(["status", str(output)]) == 0
    read = read_ledger(ledger_files(str(output), StorageSettings()), StorageSettings())  # as evaluate does
    assert {item.image_id for item in read} == {row["image_id"] for row in before[0]}
    assert main(["drift", str(output), "--against", str(output), "--min-images", "1"]) == 0
    assert re.search(r"brightness .* not recorded in run and against", capsys.readouterr().out)
    shutil.copyfile(images / "0000.png", images / "new.png")
    (images / "0001.png").unlink()  # so its part is written again, with the mark
    assert annotate(images, "--output", output, *SEEDED) == 0
    ledger, _ = tables(output)
    told = {Path(row["uri"]).name: (row["vanished"], row.get("brightness") is None) for row in ledger}
    assert told == {"0000.png": (False, True), "0001.png": (True, True), "new.png": (False, False)}


@pytest.mark.parametrize(
    ("content", "keep", "line"),
    [
        (
            "uri,camera\na.png,x\n",
            "camra",
            "keep_columns: no manifest has a column camra; there are: uri, camera",
        ),
        (None, "camera", "keep_columns: no source is a manifest with columns"),
        ("uri,status\na.png,x\n", "Status", "keep_columns: Status is a column of the ledger itself"),
        ("uri,found\na.png,x\n", "found", "keep_columns: found is a column of the ledger itself"),
        ("uri,a\na.png,x\n", "a,A", "keep_columns: a name occurs twice"),
        ("uri,a\na.png,x\n", "a, ", "keep_columns: a name is empty"),
    ],
)
def test_what_cannot_be_kept(
    content: str | None, keep: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "in", 1)
    source = tmp_path / "in"
    if content is not None:
        source = tmp_path / "list.csv"
        source.write_text(content)
    code = annotate(source, "--output", tmp_path / "out", "--weights", "nuclei-small", "--keep-columns", keep)
    assert code == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
