"""What is left out of folders and archives: what a system keeps there for itself, and what is excluded."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from segray.sources.listing import Listing
from segray.sources.name_filter import EXCLUDED, METADATA, Choice
from segray.storage import StorageSettings
from tests.bulk.runs import MODELS, REAL, annotate, tables

DOUBLE = bytes.fromhex("00051607") + bytes(78)
"""What an AppleDouble file begins with."""


@pytest.mark.parametrize(
    "path",
    [
        "._a.jpg", "deep/._a.jpg", "__MACOSX/deep/._a.jpg", "x/__MACOSX/a.jpg", "._photos.zip",
        "a/@eaDir/a.jpg/t.jpg",
        ".ipynb_checkpoints/a-checkpoint.png", "$RECYCLE.BIN/S-1/a.jpg", ".Trash-1000/files/a.jpg",
        "#recycle/a.jpg", ".Trashes/501/a.jpg", ".thumbnails/a.png",
    ],
)  # fmt: skip
def test_files_that_a_system_made_for_itself(path: str) -> None:
    assert Choice().leaves_out(path) == METADATA
    assert Choice().leaves_out(path, named=True) is None


@pytest.mark.parametrize("path", ["a._b.jpg", ".a.jpg", "eaDir/a.jpg", "__MACOSX", "recycle/a.jpg", "_a.jpg"])
def test_files_that_only_look_like_it(path: str) -> None:
    assert Choice().leaves_out(path) is None


@pytest.mark.parametrize(
    ("glob", "path", "is_meant"),
    [
        ("*_mask.png", "a/b_mask.png", True),
        ("*_mask.png", "a/b.png", False),
        ("thumbs", "a/thumbs/b/c.jpg", True),
        ("thumbs", "a/thumbs.jpg", False),
        ("left/*.jpg", "a/left/b.jpg", True),
        ("left/*.jpg", "a/left/b/c.jpg", True),
        ("left/*.jpg", "left/b.jpg", True),
        ("left/*.jpg", "a/cleft/b.jpg", False),
        ("[ab].jpg", "b.jpg", True),
        ("*.JPG", "b.jpg", False),
    ],
)
def test_globs(glob: str, path: str, is_meant: bool) -> None:
    assert Choice(exclude=[glob]).leaves_out(path) == (EXCLUDED if is_meant else None)
    assert Choice(include=[glob]).leaves_out(path) == (None if is_meant else EXCLUDED)
    assert Choice(include=[glob]).leaves_out(f"{path}.tar", is_archive=True) is None


def test_the_folder_that_was_named_is_meant(tmp_path: Path) -> None:
    """Only what lies below it is looked at: a waste bin can be annotated."""
    folder = tmp_path / ".Trash-1000/__MACOSX"
    folder.mkdir(parents=True)
    shutil.copy(REAL[0], folder)
    assert [Path(one.address).name for one in Listing([str(folder)], StorageSettings())] == [REAL[0].name]
    assert len(list(Listing([f"{folder}/*.png"], StorageSettings()))) == 1


def test_a_row_without_an_address_is_told_whatever_is_included(tmp_path: Path) -> None:
    shutil.copy(REAL[0], tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("uri,n\na.png,1\n,2\nb.jpg,3\n")
    listing = Listing([str(tmp_path / "m.csv")], StorageSettings(), Choice(include=["*.png"]))
    assert [one.error_type for one in listing] == [None, "missing"]
    assert listing.left_out == {EXCLUDED: 1}


def test_a_folder_an_archive_and_a_sheet(tmp_path: Path, ray_session: None) -> None:
    """As macOS packs them; with a glob, in all three."""
    folder, double = tmp_path / "in", io.BytesIO(DOUBLE)
    folder.mkdir()
    for number, path in enumerate(REAL[:3]):
        shutil.copy(path, folder / f"{number}.png")
        (folder / f"._{number}.png").write_bytes(DOUBLE)
    (folder / "notes.txt").write_text("of no matter")
    with zipfile.ZipFile(folder / "some.zip", "w") as some:
        for number, path in enumerate(REAL[:3]):
            some.write(path, f"photos/{number}.png")
            some.writestr(f"__MACOSX/photos/._{number}.png", DOUBLE)
    with tarfile.open(folder / "some.tar", "w") as tar:
        for number, path in enumerate(REAL[:3]):
            info = tarfile.TarInfo(f"._{number}.png")
            info.size = len(DOUBLE)
            double.seek(0)
            tar.addfile(info, double)
            tar.add(path, f"{number}.png")
    for name in ("._some.zip", "._some.tar"):
        (folder / name).write_bytes(DOUBLE)
    sheet = tmp_path / "list.csv"
    (tmp_path / "more").mkdir()
    for number in (1, 2):
        shutil.copy(REAL[number], tmp_path / f"more/{number}.png")
    sheet.write_text(f"uri\n{tmp_path}/more/1.png\n{tmp_path}/more/2.png\n")
    run = (folder, sheet, "--weights", MODELS + "seeded")
    assert annotate(*run, "--output", tmp_path / "out", "--exclude", "2.png") == 0
    names = sorted(Path(row["member"] or row["uri"]).name for row in tables(tmp_path / "out")[0])
    assert names == ["0.png"] * 3 + ["1.png"] * 4
    counts = json.loads((tmp_path / "out/run.json").read_text())["counts"]
    assert counts["ignored_by_kind"] == {"in archives": 8, "system files": 5, "excluded": 2, ".txt": 1}
    assert counts["ignored"] == 16


def test_an_archive_that_is_done_is_not_read_again_for_another_choice(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """So it is part of what makes an output; one of before, without any, goes on."""
    shutil.copy(REAL[0], tmp_path / "a.png")
    run = (tmp_path / "a.png", "--output", tmp_path / "out", "--weights", MODELS + "seeded")
    assert annotate(*run) == 0
    plan = tmp_path / "out/_segray/plan.json"
    identity = json.loads(plan.read_text())
    assert "include" in json.dumps(identity)
    assert annotate(*run, "--include", "*.png") == 2
    assert "include: None there, ['*.png'] now" in capsys.readouterr().err
    assert annotate(*run) == 0
