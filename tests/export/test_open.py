"""docs/open.md as it stands: its commands, then its Python, each block in a process of its own.

What other programs read is tried by `python -m tests.export.other_programs`, which installs them.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from segray.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/open.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
HERE = {
    "pandas": "",
    "DuckDB": "nucleus",
    "geopandas": "OGC:CRS84",
    "pycocotools": " pixels",
    "YOLO trainers": "",
}
"""Sections whose blocks, the first of each, run in our own environment, and a word of what they print."""
ELSEWHERE = {"CVAT": "373", "Label Studio": " pixels", "supervision": " pixels", "YOLO trainers": "373"}
"""Sections whose last block runs in another one."""


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)


def lay(folder: Path) -> None:
    """Run the README's commands and those of the page, in the present folder."""
    (folder / "tests").symlink_to(ROOT / "tests")
    scene = "--resolution 0.3 --tile 384 --output out/kampala"
    commands = [
        "annotate tests/data/nuclei/images --weights nuclei-small --output out/nuclei",
        f"annotate tests/data/scenes --weights buildings-small {scene}",
        *(text.removeprefix("uv run segray ") for name in SECTIONS for text in blocks(name, "bash")),
    ]
    for command in commands:
        assert main(shlex.split(command)) == 0, command


@pytest.fixture(scope="module")
def folder(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands leave."""
    found = tmp_path_factory.mktemp("open")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        lay(found)
    return found


@pytest.fixture(scope="module")
def pixels(folder: Path) -> int:
    """How many the masks have together."""
    table = pd.read_parquet(folder / "out/nuclei/instances")
    return int(table.area.sum())


def printed(command: list[str], code: str, folder: Path) -> str:
    done = subprocess.run([*command, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("section", HERE)
def test_readers_that_come_with_the_tests(section: str, folder: Path, pixels: int) -> None:
    told = printed([sys.executable, "-P"], blocks(section, "python")[0], folder)
    assert HERE[section] in told
    if "pixels" in told:
        assert int(told.split()[-2]) == pixels
    if section == "YOLO trainers":
        assert {path.resolve() for path in (folder / "out/yolo/images").iterdir()} == {
            path.resolve() for path in (ROOT / "tests/data/nuclei/images").glob("*.png")
        }


def test_fiftyone_keeps_no_name_of_ours_for_itself(folder: Path) -> None:
    """Its `Detection` refuses an attribute with a name of a field of its own."""
    fields = {"id", "tags", "attributes", "label", "bounding_box", "mask", "mask_path", "confidence", "index"}
    text = (folder / "out/coco.json").read_text()
    assert not set(re.findall(r'"(\w+)": ', text)) & (fields - {"id"} | {"instance", "instance_id"})
