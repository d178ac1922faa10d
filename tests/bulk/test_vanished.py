"""What cannot be reached any more keeps what was found in it, whatever kind of source named it."""

import shutil
import tarfile
from pathlib import Path

import pytest

from segray.storage import open_filesystem
from tests.bulk.runs import MODELS, annotate, by_base_name, tables
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("ray_session")


def write_tar(path: Path, *files: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for number, file in enumerate(files):
            tar.add(file, f"of-{path.stem}-{number}.png")


def test_a_source_of_each_kind_that_is_gone_and_comes_back_in_another_version(
    images: Path, tmp_path: Path, s3_server: Server, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A row of a manifest, a file of a folder, a tar, a member of a tar, an object of a bucket."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    first, second, third, *_ = sorted(images.iterdir())
    listed, folder, tars, output = (tmp_path / name for name in ("listed", "folder", "tars", "out"))
    for each in (listed, folder, tars):
        each.mkdir()
    for name in ("gone", "stays"):
        shutil.copy(first, listed / f"row-{name}.png")
        shutil.copy(first, folder / f"file-{name}.png")
        s3_server.put(f"vanished/object-{name}.png", first.read_bytes())
    write_tar(tars / "gone.tar", first, second)
    write_tar(tars / "other.tar", first, second)
    (listed / "rows.csv").write_text("uri\nrow-gone.png\nrow-stays.png\n")
    run = (
        *(listed / "rows.csv", folder, tars, s3_server.url("vanished")),
        *("--output", output, "--weights", MODELS + "seeded"),
    )
    assert annotate(*run) == 0
    before = by_base_name(output)
    assert len(before) == 10
    number = len(tables(output)[1])

    (listed / "row-gone.png").unlink()
    (folder / "file-gone.png").unlink()
    (tars / "gone.tar").unlink()
    write_tar(tars / "other.tar", first)  # without its second member
    filesystem, path = open_filesystem(s3_server.url("vanished/object-gone.png"), s3_server.storage)
    filesystem.rm(path)
    capsys.readouterr()
    assert annotate(*run) == 3  # of the rows that were asked for, one cannot be read
    told = capsys.readouterr().out
    assert f"1 sources cannot be reached now, earlier results are kept: file://{listed}/row-gone.png" in told
    after = by_base_name(output)
    gone = {"row-gone.png", "file-gone.png", "of-gone-0.png", "of-gone-1.png", "of-other-1.png",
            "object-gone.png"}  # fmt: skip
    assert {name for name, (row, _) in after.items() if row["vanished"]} == gone
    assert {name: found for name, (_, found) in after.items()} == {
        name: found for name, (_, found) in before.items()
    }
    assert len(tables(output)[1]) == number
    assert annotate(*run) == 3

    for back_again in (listed / "row-gone.png", folder / "file-gone.png"):
        shutil.copy(third, back_again)
    write_tar(tars / "gone.tar", third, third)
    write_tar(tars / "other.tar", third, third)
    s3_server.put("vanished/object-gone.png", third.read_bytes())
    assert annotate(*run) == 0
    back = by_base_name(output)
    assert not any(row["vanished"] for row, _ in back.values())
    assert {name for name in back if back[name][1] != before[name][1]} == gone | {"of-other-0.png"}
    assert len({str(back[name][1]) for name in gone}) == 1
