"""`segray panoptic`: the stated rule, on images and by window; killed and run again; what costs an image."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from segray.cli import main
from segray.masks.spans import counts_of, spans_of
from segray.output.lease import Lease
from segray.output.panoptic import ids_of, rgb_of
from segray.panoptic import fusion, image, overlap
from segray.panoptic.classes import Classes
from segray.panoptic.ledger import Tables
from segray.scenes.scene import Scene
from segray.status import status_of
from segray.storage import StorageSettings
from segray.tile_overlap import Window, blocks
from tests.panoptic.made import MAP_CLASSES, Made, fused_by_loop, ids_of_png, made, write
from tests.servers import Server

CLASSES = Classes({1: "person", 3: "car"}, {0: (1000, "road"), 2: (1002, "sky"), 3: (1003, "tree")}, ["Car"])


def command(run: Made, output: Path | str, *more: str) -> list[str]:
    runs = ("--instances", str(run.instances), "--maps", str(run.maps))
    return ["panoptic", *runs, "--output", str(output), *more]


def rows(output: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(output / table).to_pylist()
    return sorted(found, key=lambda row: (row["image_id"], row.get("segment_id", 0)))


def counts(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "run.json").read_text())["counts"]
    return found


def files(output: Path) -> dict[str, int]:
    """Name and time of change of every file that a reader sees."""
    found = (path for path in output.rglob("*") if path.is_file() and "_segray" not in path.parts)
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in found}


# the rule


@pytest.mark.parametrize(("min_visible", "min_stuff"), [(0.5, 0), (0.0, 150), (0.9, 400)])
def test_it_equals_a_plain_loop(min_visible: float, min_stuff: int, tmp_path: Path) -> None:
    run, output = made(tmp_path, count=12), tmp_path / "out"
    options = ("--min-visible", str(min_visible), "--min-stuff-area", str(min_stuff))
    assert main(command(run, output, *options)) == 0
    segments, content = rows(output, "segments"), json.loads((output / "panoptic.json").read_text())
    numbers = {each["segray_image_id"]: each["id"] for each in content["images"]}
    annotations = {each["image_id"]: each for each in content["annotations"]}
    assert len(numbers) == len(annotations) == 12
    dropped = 0
    for each in run.images:
        ids, true = fused_by_loop(run, each["image_id"], min_visible, min_stuff)
        assert np.array_equal(ids_of_png(output / f"panoptic/{each['image_id']}.png"), ids)
        own = [row for row in segments if row["image_id"] == each["image_id"]]
        annotation = annotations[numbers[each["image_id"]]]
        assert annotation["file_name"] == f"{each['image_id']}.png"
        for row, info, segment in zip(own, annotation["segments_info"], true, strict=True):
            for name in ("id", "category_id", "area", "bbox"):
                assert row["segment_id" if name == "id" else name] == info[name] == segment[name]
            assert row["instance_id"] == info.get("segray_instance_id") == segment["instance_id"]
            assert row["score"] == segment["score"]
            assert row["isthing"] == (segment["instance_id"] is not None)
        dropped += len(run.of(each["image_id"])) - sum(row["isthing"] for row in own)
    assert counts(output)["dropped"] == dropped > 0
    assert counts(output)["void_share"] > 0
    assert counts(output)["small_stuff"] == 0 if min_stuff == 0 else counts(output)["small_stuff"] > 0
    kinds = {each["id"]: (each["name"], each["isthing"]) for each in content["categories"]}
    assert kinds == {
        1: ("person", 1), 3: ("car", 1), 1000: ("road", 0), 1002: ("sky", 0), 1003: ("tree", 0),
    }  # fmt: skip
    assert all(len(each["color"]) == 3 for each in content["categories"])


@pytest.mark.parametrize("side", [7, 32, 33])
def test_windows_change_nothing(side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path, count=5, size=(90, 120), seed=side)
    monkeypatch.setattr(overlap, "BLOCK", 16)
    for each in run.images:
        image_id, labels = each["image_id"], run.labels[each["image_id"]]
        things = [
            fusion.Thing(row["instance_id"], row["category_id"], row["category"], row["score"], 0,
                         spans_of(counts_of([row["segmentation"]["counts"]])[0], 90))
            for row in run.of(image_id)
        ]  # fmt: skip

        def crop(window: Window, labels: NDArray[np.uint8] = labels) -> NDArray[np.uint8]:
            return labels[window.row_start : window.row_stop, window.col_start : window.col_stop]

        windows = list(blocks(Window(0, 90, 0, 120), side))
        fused = fusion.Fusion(things, crop, windows, CLASSES, 0.5, 200)
        ids = np.zeros((90, 120), np.uint32)
        for window, part in fused.ids():
            ids[window.row_start : window.row_stop, window.col_start : window.col_stop] = part
        true, segments = fused_by_loop(run, image_id, 0.5, 200)
        assert np.array_equal(ids, true)
        assert [segment.area for segment in fused.segments] == [each["area"] for each in segments]
        assert [segment.bbox for segment in fused.segments] == [each["bbox"] for each in segments]


def test_a_scene_becomes_a_georeferenced_cog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instances lie on the borders of windows; one image more, so that both kinds are in one output."""
    run, output, size = made(tmp_path, count=2, size=(300, 420)), tmp_path / "out", (300, 420)
    monkeypatch.setattr(image, "SIDE", 128)
    image_id = run.images[0]["image_id"]
    place = from_origin(450_000, 10_000, 0.5, 0.5)
    scene = Scene(*size, 128, 32, (1, 2, 3), None, "EPSG:32636", tuple(place)[:6])
    run.images[0] |= {"scene": scene.to_json(), "crs": "EPSG:32636", "tiles_rejected": 0}
    write(run)
    (run.maps / f"labels/{image_id}.png").unlink()
    profile = {"driver": "GTiff", "count": 1, "height": 300, "width": 420, "dtype": "uint8"}
    with rasterio.open(
        run.maps / f"labels/{image_id}.tif", "w", crs="EPSG:32636", transform=place, nodata=255, **profile
    ) as file:
        file.write(run.labels[image_id], 1)
    assert main(command(run, output)) == 0
    ids, segments = fused_by_loop(run, image_id)
    with rasterio.open(output / f"panoptic/{image_id}.tif") as file:
        assert np.array_equal(file.read(1), ids)
        assert (file.crs.to_epsg(), file.transform, file.nodata) == (32636, place, 0)
        assert file.dtypes == ("uint32",)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    own = [row for row in rows(output, "segments") if row["image_id"] == image_id]
    assert [row["area"] for row in own] == [each["area"] for each in segments]
    assert main(["evaluate", "--predictions", str(output), "--labels", str(output), "--output",
                 str(tmp_path / "scores")]) == 0  # fmt: skip
    scores = json.loads((tmp_path / "scores/metrics.json").read_text())
    assert (scores["metrics"]["all"]["pq"], scores["counts"]["compared"]) == (1, 2)


def test_a_thing_of_which_exactly_min_visible_is_left_is_kept() -> None:
    square = np.array([[col, 0, 4] for col in range(4)], np.int64)
    right = square + np.array([2, 0, 0])
    assert [each.area for each in overlap.visible_things([square, right], 0.5)] == [16, 8]
    assert [each.area for each in overlap.visible_things([square, right], 0.51)] == [16]
    hidden = overlap.visible_things([square, square, right], 0.0)
    assert [each.index for each in hidden] == [0, 2], "of which nothing is left is dropped"


def test_colours_are_ids() -> None:
    ids = np.array([[0, 1, 255], [256, 65_536, 2**24 - 1]], np.uint32)
    assert rgb_of(ids).tolist()[1] == [[0, 1, 0], [0, 0, 1], [255, 255, 255]]
    assert np.array_equal(ids_of(rgb_of(ids)), ids)


# again


def stop_after(arguments: Sequence[str], output: Path, parts: int, number: signal.Signals) -> int:
    """Start the command, send it a signal once so many parts are committed, and return its exit code."""
    process = subprocess.Popen([sys.executable, "-m", "segray.cli", *arguments], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list((output / "images").glob("*.parquet"))) < parts:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait()


def test_killed_and_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, output = made(tmp_path, count=100, size=(100, 120)), tmp_path / "out"
    arguments = command(run, output, "--commit-every-s", "0", "--threads", "1")
    assert stop_after(arguments, output, 4, signal.SIGINT) == 130
    assert stop_after(arguments, output, 30, signal.SIGKILL) == -9
    assert not (output / "run.json").exists()
    committed = {row["file"] for row in pq.read_table(output / "images").to_pylist()}
    (output / "segments/part-000900.parquet").write_bytes(b"of a kill between the two files of a commit")
    assert status_of(str(output), StorageSettings()).state == "killed"
    before = files(output)
    assert main(arguments) == 0
    after = files(output)
    assert len(committed) >= 30
    assert {name: after[name] for name in committed} == {name: before[name] for name in committed}
    assert main(command(run, tmp_path / "undisturbed")) == 0
    for table in ("images", "segments"):
        assert rows(output, table) == rows(tmp_path / "undisturbed", table)
    texts = [(folder / "panoptic.json").read_text() for folder in (output, tmp_path / "undisturbed")]
    assert texts[0] == texts[1]
    assert len(after) == len(files(tmp_path / "undisturbed")) + 2 * (
        len(list((output / "images").iterdir())) - 1
    ), "no orphan"
    found = status_of(str(output), StorageSettings())
    assert (found.verb, found.state, found.counts["done"]) == ("panoptic", "finished", 100)
    capsys.readouterr()
    assert main(arguments) == 0
    assert "nothing to do, finished before" in capsys.readouterr().out
    assert files(output) == after


@pytest.mark.parametrize(
    ("most", "what"),
    [(30_000, "cannot write temporary files"), (110_000, "cannot write a scene of 900 x 700")],
)
def test_a_full_disk_for_temporary_files(most: int, what: str, tmp_path: Path) -> None:
    """A file may not grow beyond `most` bytes, as on a disk that is full: one line, and again with room."""
    run = made(tmp_path, count=1, size=(700, 900))
    image_id = run.images[0]["image_id"]
    run.images[0] |= {"scene": Scene(700, 900, 512, 64, (1,)).to_json()}
    write(run)
    noise = np.random.default_rng(1).choice([0, 2], (700, 900)).astype(np.uint8)
    profile = {"driver": "GTiff", "count": 1, "height": 700, "width": 900, "dtype": "uint8", "nbits": 2}
    place = from_origin(450_000, 10_000, 0.5, 0.5)
    path = run.maps / f"labels/{image_id}.tif"
    with rasterio.open(path, "w", compress="zstd", transform=place, **profile) as file:
        file.write(noise, 1)
    assert path.stat().st_size < 110_000
    program = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}));"
        "from segray.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = command(run, tmp_path / "out")
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert what in done.stderr
    assert "make room there, or set TMPDIR, and run again to continue" in done.stderr
    assert "Traceback" not in done.stderr
    assert main(arguments) == 0


def test_another_identity_and_a_second_run_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = made(tmp_path), tmp_path / "out"
    assert main(command(run, output)) == 0
    before = files(output)
    assert main(command(run, output, "--min-visible", "0.3")) == 2
    assert "min_visible: 0.5 there, 0.3 now" in capsys.readouterr().err
    plan = json.loads((run.maps / "_segray/plan.json").read_text())
    (run.maps / "_segray/plan.json").write_text(json.dumps({**plan, "model_digest": "another"}))
    assert main(command(run, output)) == 2
    (run.maps / "_segray/plan.json").write_text(json.dumps(plan))
    with Lease(Tables(str(output), StorageSettings())):
        assert main(command(run, output)) == 2
    assert "is being written by another run" in capsys.readouterr().err
    assert files(output) == before
    assert main(command(run, output, "--max-rejects", "0.5", "--threads", "3")) == 0


def test_sources_that_grew_or_changed(tmp_path: Path) -> None:
    """A new image is added, one whose tiles were tried again is done again, one that is gone goes."""
    run, output = made(tmp_path, count=5), tmp_path / "out"
    last = run.images.pop()
    write(run)
    assert main(command(run, output, "--commit-every-s", "0")) == 0
    before = files(output)
    run.images.append(last)
    gone, changed = run.images.pop(0)["image_id"], run.images[1]["image_id"]
    assert len(run.of(changed)) == 7
    run.rows = [row for row in run.rows if row["image_id"] != gone]
    first = run.of(changed)[:1]
    run.rows = [row for row in run.rows if row["image_id"] != changed or row in first]
    run.masks[changed] = run.masks[changed][:1]
    write(run)
    assert main(command(run, output)) == 0
    assert {row["image_id"] for row in rows(output, "images")} == {each["image_id"] for each in run.images}
    assert len(rows(output, "images")) == 4
    for each in run.images:
        ids, segments = fused_by_loop(run, each["image_id"])
        assert np.array_equal(ids_of_png(output / f"panoptic/{each['image_id']}.png"), ids)
        own = [row for row in rows(output, "segments") if row["image_id"] == each["image_id"]]
        assert len(own) == len(segments)
    assert not (output / f"panoptic/{gone}.png").exists()
    kept = f"panoptic/{run.images[0]['image_id']}.png"
    assert files(output)[kept] == before[kept]


# what costs an image


def test_what_cannot_be_fused_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, output = made(tmp_path, count=9), tmp_path / "out"
    ids = [each["image_id"] for each in run.images]
    write(run, extra=[{**run.images[0], "image_id": "f" * 32, "status": "annotated", "instances": 0}])
    labels = [run.maps / f"labels/{image_id}.png" for image_id in ids]
    labels[0].unlink()
    labels[2].write_bytes(labels[2].read_bytes()[:-40])
    labels[3].write_bytes(b"no picture")
    shutil.copy(labels[4], tmp_path / "whole.png")
    run.rows[run.rows.index(run.of(ids[5])[2])]["segmentation"]["counts"] = "01"
    run.images[6] |= {"status": "rejected", "error_type": "timeout", "error": "slow"}
    run.images[7] |= {"height": 51}
    for name in ("labels/images", "labels/instances"):
        shutil.rmtree(tmp_path / name)
    saved = {path: path.read_bytes() for path in labels if path.exists()}
    write(run, extra=[{**run.images[0], "image_id": "f" * 32, "status": "annotated", "instances": 0}])
    for path in labels:
        path.write_bytes(saved[path]) if path in saved else path.unlink()
    assert main(command(run, output)) == 3
    found = {row["image_id"]: row for row in rows(output, "images")}
    kinds = {image_id: row["error_type"] for image_id, row in found.items() if row["status"] == "rejected"}
    assert kinds == {
        ids[0]: "missing", ids[2]: "truncated", ids[3]: "corrupt", ids[5]: "corrupt", ids[6]: "timeout",
        ids[7]: "unsupported", "f" * 32: "missing",
    }  # fmt: skip
    assert "not in the maps" in found["f" * 32]["error"]
    assert f"the mask of {ids[5]}-0000002 is broken" in found[ids[5]]["error"]
    assert sorted(path.stem for path in (output / "panoptic").iterdir()) == sorted({*ids} - {*kinds})
    content = json.loads((output / "panoptic.json").read_text())
    assert len(content["images"]) == len(content["annotations"]) == 3
    told = capsys.readouterr().out
    assert "10 images: 3 fused, 7 rejected" in told
    assert "rejected as missing: 2" in told
    assert main(command(run, output, "--max-rejects", "1")) == 0
    labels[0].write_bytes((tmp_path / "whole.png").read_bytes())
    assert main(command(run, output)) == 3
    assert counts(output)["rejected"] == 7, "rejected images are tried again on request"
    assert main(command(run, output, "--retry-rejected")) == 3
    assert counts(output)["rejected"] == 6
    assert len(rows(output, "images")) == 10


def test_a_scene_with_rejected_tiles_is_rejected_until_they_are_tried_again(tmp_path: Path) -> None:
    """Else stuff would fill the holes."""
    run, output = made(tmp_path, count=3), tmp_path / "out"
    run.images[0]["tiles_rejected"] = 2
    write(run)
    assert main(command(run, output)) == 3
    image_id = run.images[0]["image_id"]
    (bad,) = [row for row in rows(output, "images") if row["status"] == "rejected"]
    assert (bad["image_id"], bad["error_type"]) == (image_id, "missing")
    assert bad["error"] == "annotate rejected 2 of its tiles: use --retry-rejected"
    assert not (output / f"panoptic/{image_id}.png").exists()
    run.images[0]["tiles_rejected"] = 0
    write(run)
    assert main(command(run, output)) == 0
    assert np.array_equal(ids_of_png(output / f"panoptic/{image_id}.png"), fused_by_loop(run, image_id)[0])


def test_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = made(tmp_path), made(tmp_path / "other")
    for each in other.images:
        each["image_id"] = each["image_id"][:-1] + "z"
    shutil.rmtree(other.maps / "images")
    write(other)
    run.maps = other.maps
    assert main(command(run, tmp_path / "out")) == 4
    assert "no image is in both runs (4 in the instances only, 4 in the maps only)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_problems_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path)
    (run.maps / "run.json").unlink()
    swapped = Made(tmp_path / "nothing", run.maps)
    assert main(command(swapped, tmp_path / "file.txt")) == 2
    told = capsys.readouterr().err
    assert "instances: " in told
    assert "no finished output of annotate" in told
    assert "maps: " in told
    assert "is not finished; run its command again" in told
    write(run)
    assert main(command(Made(run.maps, run.instances), tmp_path / "out")) == 2
    assert "is an output of predict, not of annotate" in capsys.readouterr().err
    options = ("--things", "tree,boat", "--void", "moon", "--stuff-ids-from", "3")
    assert main(command(run, tmp_path / "out", *options)) == 2
    told = capsys.readouterr().err
    assert f"things: the maps have no class boat; they have {', '.join(MAP_CLASSES)}" in told
    assert "void: the maps have no class moon" in told
    assert "stuff_ids_from: category 3 of the instances, car, has an id of the stuff; set it above 3" in told


@pytest.mark.parametrize("image_id", ["../../victim", "/victim", "a/b", "..", ""])
def test_an_id_that_is_no_file_name_is_refused(
    image_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, victim = made(tmp_path), tmp_path / "victim.png"
    victim.write_bytes(b"of somebody")
    write(run, extra=[{**run.images[0], "image_id": image_id, "status": "rejected"}])
    assert main(command(run, tmp_path / "out", "--max-rejects", "1")) == 2
    told = capsys.readouterr().err
    assert f"instances: {run.instances} has the image_id {image_id!r}" in told
    assert victim.exists()
    assert not (tmp_path / "out").exists()


def test_things_and_void_are_no_stuff(tmp_path: Path) -> None:
    run, output = made(tmp_path), tmp_path / "out"
    options = ("--things", "tree", "--void", "ROAD", "--min-score", "0.7", "--stuff-ids-from", "50")
    assert main(command(run, output, *options)) == 0
    segments = rows(output, "segments")
    assert {row["category_id"] for row in segments if not row["isthing"]} == {52}
    scores = [row["score"] for row in segments if row["isthing"]]
    assert None in scores, "what a person drew stays"
    assert min(score for score in scores if score is not None) >= np.float32(0.7)


def test_what_the_model_knows_is_a_thing_though_it_found_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An output that was made before stays the same where the record does not say."""
    run = made(tmp_path)
    assert main(command(run, tmp_path / "before")) == 0
    told = "does not record which categories there are: of the maps' classes, road, sky, tree are stuff"
    assert told in capsys.readouterr().err
    known = [{"id": number, "name": name} for number, name in ((1, "person"), (3, "car"), (9, "Tree"))]
    (run.instances / "run.json").write_text(json.dumps({"verb": "annotate", "categories": known}))
    assert main(command(run, tmp_path / "out")) == 0
    assert told not in capsys.readouterr().err
    record = json.loads((tmp_path / "out/run.json").read_text())
    kinds = {each["name"]: (each["id"], each["isthing"]) for each in record["categories"]}
    assert kinds == {"person": (1, 1), "car": (3, 1), "Tree": (9, 1), "road": (1000, 0), "sky": (1002, 0)}
    assert {row["category"] for row in rows(tmp_path / "out", "segments")} == {"person", "car", "road", "sky"}
    write(run)
    assert main(command(run, tmp_path / "before", "--things", "car")) == 0
    assert "does not record" not in capsys.readouterr().err
    (run.instances / "run.json").write_text(json.dumps({"verb": "annotate", "categories": [{"id": 1}]}))
    assert main(command(run, tmp_path / "new")) == 2
    assert "its categories are damaged" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path)
    assert main(command(run, tmp_path / "out", "--dry-run")) == 0
    told = capsys.readouterr().out
    assert "4 images in both runs; 0 in the instances only, 0 in the maps only" in told
    assert "stuff: road, sky, tree" in told
    assert not (tmp_path / "out").exists()


def test_buckets(s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    run = made(tmp_path, count=3)
    assert main(command(run, tmp_path / "out")) == 0
    for path in (*run.instances.rglob("*.*"), *run.maps.rglob("*.*")):
        s3_server.put(f"pano/{path.relative_to(tmp_path)}", path.read_bytes())
    there = ("--instances", s3_server.url("pano/labels"), "--maps", s3_server.url("pano/maps"))
    for _ in range(2):
        assert main(["panoptic", *there, "--output", s3_server.url("pano/out")]) == 0
    for each in run.images:
        name = f"panoptic/{each['image_id']}.png"
        assert s3_server.get(f"pano/out/{name}") == (tmp_path / "out" / name).read_bytes()
    assert s3_server.get("pano/out/panoptic.json") == (tmp_path / "out/panoptic.json").read_bytes()
    url = s3_server.url("pano/out")
    assert main(["evaluate", "--predictions", url, "--labels", url, "--output", s3_server.url("pano/s")]) == 0
    assert json.loads(s3_server.get("pano/s/metrics.json"))["metrics"]["all"]["pq"] == 1
