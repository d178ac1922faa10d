"""Every command of README and docs, as typed, from a fresh folder; its outputs as their readers read them."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import duckdb
import geopandas
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask

from segray.cli import main
from segray.verbs import VERBS
from tests.readme_data import ROOT, lay
from tests.servers import Server

README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
SHORT = {"SEGRAY_EPOCHS": "1", "SEGRAY_SIZE": "96", "SEGRAY_PROPOSALS": "20", "SEGRAY_ROUNDS": "0"}
"""Over the files of settings: a test need not learn anything, look at a thousand random regions, measure."""

ELSEWHERE = ("cluster.md", "retrain.md", "walkthrough.md")
"""Pages whose commands belong together: see `submit/test_docs`, `retrain/test_story`, `test_walkthrough`."""
OTHERWISE_TRIED = {
    README: ["pip install uv && uv run --extra dev pytest"],
    ROOT / "docs/sources.md": ["uv sync --extra s3 --extra gcs --extra azure"],
}
"""The command of these tests, and what it stands on."""
MOST_LINES = 200
"""Of the README: a reader of two minutes."""
LINK = re.compile(r"\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    """Return the README, the docs and other pages, in the order in which the README links them."""
    linked = [ROOT / target.partition("#")[0] for target in LINK.findall(README.read_text())]
    found = [README, *dict.fromkeys(page for page in linked if page.suffix == ".md")]
    assert {*found} >= {*(ROOT / "docs").rglob("*.md")}, "the README links each page"
    return found


PAGES = pages()


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of each fenced block of a page."""
    return re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Return the lines that call segray, without comments, in the order of the pages, each line once.

    Pages that have tests of their own are left out; CONTRIBUTING also has commands that are not segray's.
    """
    found = []
    for page in PAGES:
        text = "".join(text for language, text in blocks(page) if language == "bash")
        lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
        if page.name not in ELSEWHERE:
            found += [line for line in lines if "segray " in line]
            others = [line for line in lines if "segray " not in line]
            assert page == CONTRIBUTING or others == OTHERWISE_TRIED.get(page, [])
    return list(dict.fromkeys(found))


def inline() -> list[str]:
    """Return the commands in the middle of a sentence."""
    spans = re.findall(r"`((?:uv run )?segray [^`]+)`", "\n".join(map(prose, PAGES)))
    return list(dict.fromkeys(" ".join(span.split()) for span in spans))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


FIRST, *OTHERS = commands()


@pytest.fixture(scope="module")
def folder(s3_server: Server, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Fresh, with what the commands name in it; the working folder of this module."""
    found = tmp_path_factory.mktemp("readme")
    client = boto3.client(
        "s3", endpoint_url=s3_server.endpoint, aws_access_key_id="tester", aws_secret_access_key="secret"
    )
    client.create_bucket(Bucket="my-bucket")
    lay(found, lambda name, data: client.put_object(Bucket="my-bucket", Key=name, Body=data))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        for name, value in {**s3_server.env, **SHORT, "TORCH_HOME": str(found / "torch")}.items():
            patch.setenv(name, value)
        yield found


def typed(command: str, folder: Path) -> str:
    """What a shell prints of it; `uv` finds this project, which tests do not change, from any folder."""
    assert shutil.which("uv"), "the README's command installs it: pip install uv"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "UV_PROJECT": str(ROOT), "UV_NO_SYNC": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def output(folder: Path) -> Path:
    """What the first command writes, and the line that it prints to read it, which runs as it is."""
    start = "pip install uv && "
    assert FIRST.startswith(start)
    told = typed(FIRST.removeprefix(start), folder)
    *_, hint = told.strip().splitlines()
    assert re.search(r"nucleus +\d{3} +0\.\d+", typed(hint.strip(), folder)), hint
    return folder / "out/nuclei"


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_this_project_that_a_page_names_are_there(page: Path) -> None:
    for name in re.findall(r"(?<![\w/.-])(?:tests|jobs|segray|docs)/[\w./-]*\w", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_stands_where_it_is_not_run(page: Path) -> None:
    """In a block of another language or without a fence, or continued on the next line."""
    assert "uv run segray" not in re.sub(r"`[^`]+`", "", prose(page))
    for language, text in blocks(page):
        if language == "bash":
            assert not re.search(r"\\$", text, re.MULTILINE)
        else:
            assert not re.search(r"^\W*(?:\w+=\S+ )*(?:uv run )?segray [a-z]", text, re.MULTILINE), text


@pytest.mark.parametrize("command", OTHERS)
def test_each_command_runs_as_it_is_typed(
    command: str, folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv, run, segray, *arguments = shlex.split(re.sub(r"^uv run --extra \w+", "uv run", command))
    assert (uv, run, segray) == ("uv", "run", "segray")
    if "--boxes" in arguments:
        monkeypatch.delenv("SEGRAY_PROPOSALS")  # boxes of a file have none
    assert main(arguments) == 0


def test_a_model_that_was_trained_from_relative_addresses(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a command above; the same data and output by other names are the same run."""
    record = json.loads((folder / "out/people/run.json").read_text())
    assert record["settings"]["output"] == str(folder / "out/people")
    again = ["train", "--config", str(folder / "jobs/people.yaml")]
    monkeypatch.chdir(folder / "out")
    assert main([*again, "--data", "../people/train.csv", "--output", "./people"]) == 0
    names = (folder / "people/train.csv", folder / "out/people")
    assert main([*again, "--data", str(names[0]), "--output", str(names[1])]) == 0
    assert capsys.readouterr().err.count("nothing to do, 1 epochs were trained before") == 2


@pytest.mark.parametrize("command", inline())
def test_commands_in_sentences_have_options_that_are_there(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *arguments = shlex.split(command.removeprefix("uv run ").removeprefix("segray "))
    assert verb in VERBS
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    known = set(re.findall(r"--[a-z0-9][a-z0-9.-]*", capsys.readouterr().out))
    assert {each for each in arguments if each.startswith("--")} <= known


def test_every_run_length_decodes_to_its_area_box_and_size(output: Path) -> None:
    instances = pd.read_parquet(output / "instances")
    images = pd.read_parquet(output / "images").set_index("image_id")
    assert len(images) == len(list((ROOT / "tests/data/nuclei/images").glob("*.png")))
    assert len(instances) > 10 * len(images)
    assert images.instances.sum() == len(instances)
    for row in instances.itertuples():
        size = [int(side) for side in row.segmentation["size"]]
        image = images.loc[row.image_id]
        assert size == [image.height, image.width]
        rle = {"size": size, "counts": row.segmentation["counts"]}
        pixels = mask.decode(rle)
        assert pixels.sum() == row.area == mask.area(rle)
        rows, columns = np.nonzero(pixels)
        left, top = columns.min(), rows.min()
        assert list(row.bbox) == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
        assert list(row.bbox) == mask.toBbox(rle).tolist()
        at_border = left == 0 or top == 0 or rows.max() + 1 == size[0] or columns.max() + 1 == size[1]
        assert row.truncated == at_border
        assert row.score >= 0.5


def test_sizes_are_those_of_the_images(output: Path) -> None:
    for row in pd.read_parquet(output / "images").itertuples():
        with Image.open(Path(row.uri.removeprefix("file://"))) as image:
            assert (row.width, row.height, row.frames) == (*image.size, 1)


def test_duckdb_and_geopandas_open_it(output: Path) -> None:
    counted = (
        duckdb.connect()
        .execute(f"SELECT category, count(*) FROM '{output}/instances/*.parquet' GROUP BY 1")
        .fetchall()
    )
    frame = geopandas.read_parquet(output / "instances")
    assert counted == [("nucleus", len(frame))]
    assert frame.crs == "OGC:CRS84"
    assert frame.geometry.isna().all()
