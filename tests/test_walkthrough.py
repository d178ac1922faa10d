"""docs/walkthrough.md, word for word, with a person who corrects what is wrong in the middle of it."""

import json
import re
import shlex
from pathlib import Path

import pytest

from segray.cli import main
from segray.output.tables import read_record
from segray.storage import StorageSettings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/walkthrough.md").read_text()
COMMANDS = [
    line.partition(" #")[0].strip() for line in re.findall(r"^uv run segray (.*)$", PAGE, re.MULTILINE)
]


def correct(file: Path) -> None:
    """Draw what is there in each image, as the truth has it."""
    content = json.loads(file.read_text())
    truth = json.loads((ROOT / "tests/data/nuclei-story/more.json").read_text())
    names = {each["id"]: each["file_name"] for each in truth["images"]}
    numbers = {Path(each["file_name"]).name: each["id"] for each in content["images"]}
    content["annotations"] = [
        {**each, "image_id": numbers[Path(names[each["image_id"]]).name]} for each in truth["annotations"]
    ]
    file.write_text(json.dumps(content))


def test_from_a_folder_of_images_to_a_better_model(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tests", "jobs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGRAY_EPOCHS", "1")
    for command in COMMANDS:
        if command.startswith("import"):
            correct(Path("walk/labels.json"))
        assert main(shlex.split(command)) == 0, command

    storage = StorageSettings()
    found, corrected = (read_record(f"walk/{name}", "annotate", storage) for name in ("found", "corrected"))
    truth = json.loads((ROOT / "tests/data/nuclei-story/more.json").read_text())
    assert found["counts"]["annotated"] == len(truth["images"]) == 25
    assert corrected["counts"]["instances"] == len(truth["annotations"])
    before, after = (
        read_record(f"walk/{name}", "evaluate", storage)["metrics"]["segm"] for name in ("before", "after")
    )
    assert 0.3 < after["ap"] < 0.7
    assert before["ap"] != after["ap"]
    for page in ("look", "compare", "scores"):
        assert "<html" in Path("walk", page, "index.html").read_text()
