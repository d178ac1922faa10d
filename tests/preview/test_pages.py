"""What the pages hold is what the run holds; what is gone costs its picture; nothing else is replaced."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from segray.cli import main
from segray.preview.folder import literal
from tests.preview import made
from tests.servers import Server


def preview(output: Path, *runs: Path | str, more: tuple[str, ...] = ()) -> int:
    return main(["preview", *map(str, runs), "--output", str(output), *more])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made.annotated(tmp_path / "run")


def test_the_page_holds_what_the_tables_hold(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preview(tmp_path / "page", run) == 0
    assert "6 of 6 images are shown; 3 rejected" in capsys.readouterr().out
    page = made.scripts(tmp_path / "page")
    images, instances = pd.read_parquet(run / "images"), pd.read_parquet(run / "instances")
    good = images[images.status == "annotated"].set_index("image_id")
    assert page["page"]["facts"] == [[6, "images"], [len(instances), "instances"], [3, "rejected"]]
    assert {each["id"] for each in page["images"]} == {*good.index}
    assert page["rejects"]["types"] == {"corrupt": 2, "truncated": 1}
    assert {row["reason"] for row in page["rejects"]["rows"]} == {
        f"it ends early <i>{n}</i>" for n in range(3)
    }
    names = [each["name"] for each in page["classes"]]
    assert {
        each["name"]: each["count"] for each in page["classes"]
    } == instances.category.value_counts().to_dict()
    assert len({tuple(each["colour"]) for each in page["classes"]}) == 3
    for number, entry in enumerate(page["images"]):
        own = instances[instances.image_id == entry["id"]]
        assert entry["instances"] == len(own) == good.instances[entry["id"]]
        assert sum(entry["bins"][2::3]) == len(own)
        assert entry["sureness"] == (pytest.approx(own.score.mean(), abs=1e-4) if len(own) else None)
        with Image.open(tmp_path / "page" / entry["picture"]) as image:
            assert image.size == (made.WIDTH, made.HEIGHT) == tuple(entry["size"][::-1])
        (drawn,) = made.scripts(tmp_path / "page", f"images/{number}").values()
        assert sorted(f"{entry['id']}-{each}" for each in drawn["id"]) == sorted(own.instance_id)
        by_id = own.set_index("instance_id")
        for rank, place, area in zip(drawn["id"], drawn["class"], drawn["area"], strict=True):
            row = by_id.loc[f"{entry['id']}-{rank}"]
            assert (names[place], area) == (row.category, row.area)
    (scores,) = [each for each in page["figures"] if each["name"] == "score"]
    counts, _ = np.histogram(instances.score.dropna(), np.array(scores["edges"]))
    assert scores["counts"] == counts.tolist()


def test_pixels_are_those_of_the_source(run: Path, tmp_path: Path) -> None:
    assert preview(tmp_path / "page", run) == 0
    for entry in made.scripts(tmp_path / "page")["images"]:
        name = entry["address"].rpartition("/")[2]
        seed = {**{each: n for n, each in enumerate(made.NAMES)}, "one.png": 7, "two.png": 8}[name]
        with Image.open(tmp_path / "page" / entry["picture"]) as image:
            assert np.abs(np.asarray(image).astype(int) - made.picture(seed)).mean() < 6  # JPEG


def test_a_source_that_is_gone_costs_its_picture_and_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    (photos / "plain.png").unlink()
    (photos / "umlaut ä.png").write_bytes(b"no image")
    Image.fromarray(made.picture(1, 50, 50)).save(photos / "q\"uo'te & space.jpg")
    with zipfile.ZipFile(photos / "more.zip", "w") as archive:
        archive.writestr("in/other.png", b"")
    assert preview(tmp_path / "page", run) == 0
    told = capsys.readouterr().out
    assert "5 pictures cannot be read" in told
    found = {each["address"].rpartition("/")[2]: each for each in made.scripts(tmp_path / "page")["images"]}
    assert found["plain.png"]["error"] == "missing: the file is not there"
    assert found["umlaut ä.png"]["error"].startswith(("unsupported:", "corrupt:"))
    assert "50 x 50 pixels now" in found["q\"uo'te & space.jpg"]["error"]
    assert found["one.png"]["error"] == "missing: the archive does not hold it any more"
    assert all(each["instances"] == 6 for name, each in found.items() if name != "two.png")
    assert found[made.NAMES[1]]["error"] is None
    (photos / "more.zip").unlink()
    assert preview(tmp_path / "page", run) == 0
    assert "missing" in capsys.readouterr().out


def test_a_run_and_its_images_in_a_bucket(
    tmp_path: Path, s3_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    root = s3_server.url("preview-runs")
    rows = made.photos(tmp_path / "photos")
    for row in rows:
        row["uri"], row["version"] = f"{root}/photos/{row['uri'].rpartition('/')[2]}", None
    found = [made.instance(row["image_id"], 0, made.ellipse(40, 60, 20, 20), 0, 0.9) for row in rows]
    made.write(tmp_path / "run", rows, found)
    for file in [each for each in tmp_path.rglob("*") if each.is_file()]:
        s3_server.put(f"preview-runs/{file.relative_to(tmp_path)}", file.read_bytes())
    assert preview(tmp_path / "page", f"{root}/run") == 0
    images = made.scripts(tmp_path / "page")["images"]
    assert len(images) == 6
    assert {(each["error"], each.get("note")) for each in images} == {(None, None)}


def test_names_end_no_script() -> None:
    text = literal({"</script><!--": "<b>\u2028 \ud800"})
    assert "<" not in text
    assert text.isascii()
    assert json.loads(text) == {"</script><!--": "<b>\u2028 \ud800"}


def test_pictures_and_images_have_a_limit(run: Path, tmp_path: Path) -> None:
    assert preview(tmp_path / "page", run, more=("--images", "2", "--side", "128")) == 0
    first = made.scripts(tmp_path / "page")["images"]
    assert len(first) == 2
    assert preview(tmp_path / "page", run, more=("--images", "2", "--max-pixels", "100")) == 0
    second = made.scripts(tmp_path / "page")["images"]
    assert [each["id"] for each in first] == [each["id"] for each in second]
    assert all(each["error"].startswith("too_large") for each in second)


def test_what_is_no_run_or_empty_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "begun/_segray").mkdir(parents=True)
    (tmp_path / "begun/_segray/plan.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text("{")
    made.write(tmp_path / "drift", [], verb="drift")
    made.write(tmp_path / "empty", [made.rejected(1)])
    for name, code, words in (
        ("photos", 2, "no segray run found there"),
        ("begun", 2, "is not finished"),
        ("broken", 2, "run.json of"),
        ("drift", 2, "was written by drift"),
        ("empty", 4, "no annotated image (1 rejected)"),
    ):
        assert preview(tmp_path / "page", tmp_path / name) == code, name
        assert words in capsys.readouterr().err
        assert not (tmp_path / "page").exists()
        assert not [each for each in tmp_path.iterdir() if each.name.startswith(".page")]


def test_only_a_preview_is_replaced(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (page / "mine.txt").write_text("mine")
    assert preview(page, run) == 2
    assert "holds something else" in capsys.readouterr().err
    (page / "mine.txt").unlink()
    assert preview(page, run) == 0
    before = (page / "data/page.js").read_bytes()
    shutil.rmtree(page / "pictures")
    assert preview(page, run) == 0
    assert (page / "data/page.js").read_bytes() == before
    assert (page / "pictures").is_dir()
    (page / "notes.txt").write_text("mine")
    assert preview(page, run) == 2
    assert "holds 'notes.txt' next to a preview" in capsys.readouterr().err
    assert (page / "notes.txt").read_text() == "mine"
    assert preview(tmp_path / "run.json", run) == 0  # a name is a name
    assert main(["preview", str(run), "--output", "s3://bucket/page"]) == 2
    assert "a preview is a local folder" in capsys.readouterr().err


def test_a_link_stays_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "disk/page").mkdir(parents=True)
    (tmp_path / "page").symlink_to("disk/page")
    for _ in range(2):
        assert preview(tmp_path / "page", run) == 0
        assert (tmp_path / "page").is_symlink()
        assert (tmp_path / "disk/page/index.html").is_file()


def test_a_killed_preview_leaves_the_old_one_and_the_next_one_ends(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    assert preview(page, run) == 0
    program = """
import os, sys
from segray.preview import instances
def dies(*_): os.kill(os.getpid(), 9)
instances.rows_of = dies
from segray.cli import main
main(sys.argv[1:])"""
    command = [sys.executable, "-c", program, "preview", str(run), "--output", str(page)]
    assert subprocess.run(command).returncode == -9
    assert (tmp_path / ".page.part").is_dir()
    assert (page / "index.html").is_file()
    assert preview(page, run) == 0
    assert {each.name for each in tmp_path.iterdir()} == {"run", "page", "photos"}


def test_a_second_preview_into_one_folder_is_refused(run: Path, tmp_path: Path) -> None:
    program = """
import fcntl, sys, time
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    time.sleep(60)"""
    command = [sys.executable, "-c", program, str(tmp_path / ".page.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert preview(tmp_path / "page", run) == 2
        other.kill()
    assert preview(tmp_path / "page", run) == 0


def test_memory_does_not_grow_with_the_run(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    images = int(request.config.getoption("--preview-images"))
    run = made.vast(tmp_path / "run", images)
    program = """
import pathlib, re, resource, sys
from segray.cli import main
assert main(sys.argv[1:]) == 0
most = re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]
print(int(most) // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_utime)"""
    command = [sys.executable, "-c", program, "preview", str(run), "--output", str(tmp_path / "page")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    mebibytes, seconds = map(float, done.stdout.splitlines()[-1].split())
    print(f"{images:,} images, {3 * images:,} instances: {mebibytes:,.0f} MiB, {seconds:.1f} s of CPU time")
    assert mebibytes < 600
    page = made.scripts(tmp_path / "page")
    assert page["page"]["facts"] == [
        [images * 99 // 100, "images"],
        [images * 3 * 99 // 100, "instances"],
        [images // 100, "rejected"],
    ]
    assert len(page["images"]) == 200
    assert {each["why"].split()[0] for each in page["images"]} >= {"class", "score", "least", "small", "a"}


def test_label_maps(tmp_path: Path) -> None:
    run = made.labelled(tmp_path / "maps", 3)
    (sorted((run / "labels").iterdir())[0]).write_bytes(b"no map")
    assert preview(tmp_path / "page", run) == 0
    page = made.scripts(tmp_path / "page")
    assert [(each["name"], each["value"]) for each in page["classes"]] == [
        ("background", 0), (made.CLASSES[1], 1), (made.CLASSES[2], 2),
    ]  # fmt: skip
    lost = [each for each in page["images"] if each["error"]]
    assert len(lost) == 1
    assert lost[0]["error"].startswith("label map: ")
    for number, entry in enumerate(page["images"]):
        (shown,) = made.scripts(tmp_path / "page", f"images/{number}").values()
        values = np.repeat(shown["runs"][::2], shown["runs"][1::2]).reshape(shown["size"])
        if not entry["error"]:
            with Image.open(run / f"labels/{entry['id']}.png") as image:
                file = np.asarray(image)
            assert np.array_equal(values, file)
            assert entry["present"] == np.unique(file).tolist()


def test_the_wheel_holds_the_pages(tmp_path: Path) -> None:
    web = Path(str(__import__("segray").__file__)).parent / "preview/web"
    found = {str(each.relative_to(web)) for each in web.rglob("*") if each.is_file()}
    assert {"index.html", "style.css", "libraries/leaflet.js", "libraries/uPlot.iife.min.js"} <= found
    assert {"libraries/leaflet.LICENSE", "libraries/uPlot.LICENSE"} <= found
    html = (web / "index.html").read_text()
    assert {*re.findall(r'(?:src|href)="web/([^"]+)"', html)} <= found
    assert "http" not in html.replace("http-equiv", "")
    assert os.path.getsize(web / "index.html") < 4_000  # noqa: PTH202
