"""`segray annotate` on a real Ray: sources, resume, changed listings, rejects, exit codes."""

import csv
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bulk.runs import MODELS, annotate, by_base_name, make_images, rows_by_base_name, tables

pytestmark = pytest.mark.usefixtures("ray_session")

KINDS = ("folder", "tar", "tar.gz", "zip", "csv", "parquet")


def add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def make_kind(kind: str, folder: Path, target: Path) -> list[Path]:
    """The images of `folder` as one kind of source."""
    files = sorted(folder.iterdir())
    target.mkdir()
    if kind == "folder":
        for number, file in enumerate(files):
            place = target / f"deep/{number % 3}" / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        (target / "notes.txt").write_text("no image")
        return [target]
    if kind in ("tar", "tar.gz"):
        mode = "w:gz" if kind == "tar.gz" else "w"
        for shard in range(3):
            with tarfile.open(target / f"{shard}.{kind}", mode) as archive:  # type: ignore[call-overload]
                for file in files[shard::3]:
                    add_bytes(archive, f"x/{file.name}", file.read_bytes())
                    add_bytes(archive, f"x/{file.stem}.json", b"{}")
        return [target]
    if kind == "zip":
        with zipfile.ZipFile(target / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, f"x/{file.name}")
        return [target / "all.zip"]
    if kind == "csv":
        with (target / "list.csv").open("w", newline="") as sheet:
            csv.writer(sheet).writerows([["uri", "note"], *[[str(file), "n"] for file in files]])
        return [target / "list.csv"]
    pq.write_table(pa.table({"uri": [file.as_uri() for file in files]}), target / "list.parquet")
    return [target / "list.parquet", target / "list.parquet"]


@pytest.fixture(scope="module")
def of_all_kinds(images: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """One run over the images as each kind of source, side by side; not to be changed."""
    scratch = tmp_path_factory.mktemp("kinds")
    sources = []
    for kind in KINDS:
        own = scratch / "loose" / kind if kind in ("csv", "parquet") else images
        if own != images:  # sheets name files that no other source has
            shutil.copytree(images, own)
        sources += make_kind(kind, own, scratch / kind)
    assert annotate(*sources, "--output", scratch / "out", "--weights", MODELS + "seeded") == 0
    return scratch / "out"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_instances(kind: str, of_all_kinds: Path, expected: Path) -> None:
    place = f"/loose/{kind}/" if kind in ("csv", "parquet") else f"/{kind}/"
    ledger, instances = tables(of_all_kinds)
    assert len(ledger) == 100 * len(KINDS)
    own = [row for row in ledger if place in row["uri"]]
    assert rows_by_base_name(own, instances) == by_base_name(expected)


def test_names_that_are_no_images_are_counted(of_all_kinds: Path) -> None:
    """A text in the folder, a hundred in each of the two kinds of tars."""
    counts = json.loads((of_all_kinds / "run.json").read_text())["counts"]
    assert counts["ignored"] == 1 + 100 + 100


def test_files_are_few_and_leave_nothing_staged(expected: Path) -> None:
    assert len(list((expected / "instances").iterdir())) == 1
    assert len(list((expected / "images").iterdir())) == 1
    left = sorted(path.name for path in (expected / "_segray").rglob("*") if path.is_file())
    assert left == [".lease.json.guard", "lease.json", "plan.json"]
    ledger, instances = tables(expected)
    assert len(ledger) == 100
    assert sum(row["instances"] for row in ledger) == len(instances) > 100


def test_a_finished_run_does_nothing_again(expected: Path, images: Path) -> None:
    def stamps() -> dict[Path, int]:
        files = [path for path in expected.rglob("*.*") if path.is_file() and "lease" not in path.name]
        return {path: path.stat().st_mtime_ns for path in files}

    before = stamps()
    assert annotate(images, "--output", expected, "--weights", MODELS + "slow") == 0
    assert stamps() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--weights", MODELS + "other_digest"], "weights: "),
        (["--weights", MODELS + "seeded", "--score-threshold", "0.7"], "score_threshold: 0.5 there, 0.7 now"),
        (["--weights", MODELS + "seeded", "--max-pixels", "99"], "max_pixels: 100000000 there, 99 now"),
    ],
)
def test_another_identity_is_refused_with_the_difference(
    arguments: list[str], told: str, expected: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert annotate(images, "--output", expected, *arguments) == 2
    assert told in capsys.readouterr().err


def test_a_changed_listing_adds_replaces_and_marks(images: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(images, folder, ignore=lambda _, names: names[10:])
    names = sorted(path.name for path in folder.iterdir())
    run = (folder, "--output", output, "--weights", MODELS + "seeded")
    assert annotate(*run) == 0
    before = by_base_name(output)
    (folder / names[0]).unlink()
    other = next(path for path in sorted(images.iterdir()) if path.name not in names)
    shutil.copyfile(other, folder / names[1])
    shutil.copyfile(other, folder / "new.png")
    assert annotate(*run) == 0
    after = by_base_name(output)
    assert set(after) == {*names, "new.png"}
    assert {name for name in names if after[name][0]["vanished"]} == {names[0]}
    assert after[names[0]][1] == before[names[0]][1]
    assert after[names[1]] == after["new.png"]
    assert all(after[name] == before[name] for name in names[2:])


def test_rejects_cost_themselves_only_and_can_be_tried_again(images: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(images, folder, ignore=lambda _, names: names[20:])
    cut = sorted(folder.iterdir())[3]
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    stamp = cut.stat().st_mtime_ns
    run = (folder, "--output", output, "--weights", MODELS + "seeded")
    assert annotate(*run) == 3
    row, instances = by_base_name(output)[cut.name]
    assert (row["status"], row["error_type"], instances) == ("rejected", "truncated", [])
    assert annotate(*run) == 3
    assert annotate(*run, "--max-rejects", "1.0") == 0
    assert annotate(*run, "--max-rejects", "0.049") == 3
    assert annotate(*run, "--retry-rejected") == 3
    assert len(tables(output)[0]) == 20
    assert stamp == cut.stat().st_mtime_ns


@pytest.mark.parametrize(("model", "reason"), [("deadly", "died 3 times"), ("failing", "is poisoned")])
def test_an_item_that_breaks_the_model_is_rejected_and_its_neighbours_are_not(
    model: str, reason: str, tmp_path: Path
) -> None:
    poisoned = (3,) if model == "deadly" else (3, 4, 17)  # a death costs the start of an actor
    make_images(tmp_path / "in", 24, poisoned=poisoned)
    output = tmp_path / "out"
    assert annotate(tmp_path / "in", "--output", output, "--weights", MODELS + model) == 3
    rows = by_base_name(output)
    assert len(rows) == 24
    rejected = {name: row for name, (row, _) in rows.items() if row["status"] == "rejected"}
    assert set(rejected) == {f"{number:04d}.png" for number in poisoned}
    assert all(row["error_type"] == "crashed" and reason in row["error"] for row in rejected.values())


def test_a_tar_that_breaks_off_keeps_what_was_read_and_says_so(images: Path, tmp_path: Path) -> None:
    (shard, *_) = make_kind("tar", images, tmp_path / "in")[0].iterdir()
    data = shard.read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    output = tmp_path / "out"
    run = (tmp_path / "cut.tar", "--output", output, "--weights", MODELS + "seeded")
    assert annotate(*run) == 3
    ledger, _ = tables(output)
    broken = [row for row in ledger if row["status"] == "rejected"]
    assert len(ledger) > 10
    assert [(row["member"], row["error_type"]) for row in broken if row["member"] is None] == [
        (None, "truncated")
    ]
    assert annotate(*run) == 3
    assert tables(output)[0] == ledger


def test_every_awkward_file_is_annotated_or_rejected_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, folder = tmp_path / "out", Path(__file__).parents[1] / "data/awkward"
    files = {path.name for path in folder.iterdir()} - {"README.md", "MANIFEST.csv"}
    run = (folder, "--output", output, "--weights", MODELS + "seeded")
    assert annotate(*run) == 3
    rows = by_base_name(output)
    assert set(rows) == files
    for name, (row, _) in rows.items():
        assert (row["status"] == "rejected") == (row["error_type"] is not None) == (row["error"] is not None)
        assert row["error"] is None or ("<" not in row["error"] and len(row["error"]) > 8), name
    rejected = sum(row["status"] == "rejected" for row, _ in rows.values())
    assert 5 < rejected < len(files) / 2
    told = capsys.readouterr().out
    assert f"{rejected} rejected" in told
    assert annotate(*run, "--max-rejects", "1.0") == 0
