"""Runs of `predict --blur`: pages and notebooks hold the run's copies, never the pixels of the sources."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segray.preview.drawn import drawn
from segray.storage import StorageSettings
from tests.preview import made
from tests.preview.test_pages import preview

GREY = 77
"""Of every pixel of a copy; no source is of one colour."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An output of predict over files and members of an archive, with copies of two formats."""
    run = made.labelled(tmp_path / "maps")
    record = json.loads((run / "run.json").read_text())
    record["settings"]["blur"] = ["face", "plate"]
    (run / "run.json").write_text(json.dumps(record))
    (run / "blurred").mkdir()
    for row in made.photos(tmp_path / "photos"):
        suffix = "jpg" if row["uri"].endswith(".jpg") else "png"
        copy = Image.new("RGB", (made.WIDTH, made.HEIGHT), (GREY,) * 3)
        copy.save(run / f"blurred/{row['image_id']}.{suffix}")
    return run


def pictures(page: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(each)).astype(int) for each in sorted((page / "pictures").iterdir())]


def test_pages_hold_the_copies_and_say_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "The pictures are copies from maps with face, plate blurred."
    other = made.labelled(tmp_path / "other", 1)
    for runs in ([run], [run, other], [other, run]):
        assert preview(tmp_path / "page", *runs) == 0
        assert note in capsys.readouterr().out
        page = made.scripts(tmp_path / "page")
        assert note in page["page"]["notes"]
        assert [(each["error"], each.get("note")) for each in page["images"]] == [(None, None)] * 6
        found = pictures(tmp_path / "page")
        assert len(found) >= 6
        assert all(np.abs(each - GREY).max() < 3 for each in found)
    assert preview(tmp_path / "page", other) == 0
    assert not made.scripts(tmp_path / "page")["page"]["notes"]
    assert all(np.abs(each - GREY).max() > 50 for each in pictures(tmp_path / "page"))


def test_a_copy_that_is_gone_costs_its_picture(run: Path, tmp_path: Path) -> None:
    for copy in sorted((run / "blurred").iterdir())[1:]:
        copy.unlink()
    assert preview(tmp_path / "page", run) == 0
    page = made.scripts(tmp_path / "page")
    errors = [each["error"] for each in page["images"] if each["error"]]
    assert errors == ["missing: the run's blurred copy of it is not there"] * 5
    assert len(pictures(tmp_path / "page")) == 1


def test_a_notebook_draws_the_copies(run: Path) -> None:
    whole = drawn(str(run), StorageSettings(), images=1)
    data = np.asarray(whole.convert("RGB")).astype(int)
    assert np.abs(data[:, :30] - GREY).max() < 3  # class 0 is left as it is
