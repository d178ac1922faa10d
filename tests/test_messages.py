"""What is told of wrong data, in one short line."""

import json
import logging
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segray.cli import main
from segray.data.coco_file import read_truth, score_of
from segray.data.vector_files import find_file, open_features
from segray.errors import ItemError, JobFailedError, SettingsError
from segray.log_redirect import loggers_to, noise_to_file
from segray.output.lease import Lease
from segray.output.store import Store
from segray.sources.decode import decode_rgb
from segray.storage import StorageSettings

STORAGE = StorageSettings()
NOISE = bytes(os.urandom(1 << 20))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.gml", NOISE, "KML or GML is not read: convert it with `ogr2ogr footprints.gpkg FILE`"),
        (
            "a.shp",
            NOISE,
            "not GeoJSON (features), GeoParquet, GeoPackage, Shapefile or FlatGeobuf: byte ",
        ),
        ("a.bin", b"\0\0\x27\x0a" + NOISE, "the file a.shx next to it is missing"),
        ("a.fgb", b"fgb\x03fgb\x01" + NOISE, "it has no layer of features"),
        ("a.gpkg", b"SQLite format 3\0" + NOISE, "it cannot be read: "),
        ("a.json", b"PK\x03\x04" + NOISE, "a zip archive is not read: unpack it"),
        ("a.geojson.gz", NOISE, "a gzip archive is not read: unpack it"),
        ("a.geojson", b'{"features": "M\xfcnchen' + NOISE, "byte 15 is not UTF-8"),
        ("a.geojson", b"\xff" + NOISE, "not GeoJSON (features)"),
        ("a.geojson", b"{}", "it has no 'features'"),
        (
            "a.geojson",
            json.dumps({"features": [], "crs": {"properties": {"name": "x" * 100_000}}}).encode(),
            "it cannot be read: Invalid projection",
        ),
    ],
)
def test_a_wrong_kind_of_footprints_is_one_short_line(
    name: str, data: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with (
        pytest.raises(SettingsError) as caught,
        open_features(find_file(str(tmp_path / name), STORAGE), None, STORAGE),
    ):
        pass
    (line,) = caught.value.lines
    assert words in line
    assert "\n" not in line
    assert len(line) < 600


def test_no_value_of_the_data_is_told_whole() -> None:
    huge = ["x" * 1000] * 1000
    with pytest.raises(ItemError) as number:
        score_of(huge)
    content = {"images": [], "annotations": [], "categories": [{"id": huge, "name": "a"}]}
    with pytest.raises(SettingsError) as category:
        read_truth(json.dumps(content).encode(), "labels")
    assert max(len(str(number.value)), len(str(category.value))) < 400


def test_a_manifest_whose_paths_start_elsewhere_asks_for_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one well-known data set has it: names relative to the folder above the manifest's."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.csv").write_text("images,masks\nset/a.png,set/b.png\n")
    for name in "ab":
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / f"set/{name}.png")
    run = ["train", "--data", f"{tmp_path}/set/train.csv", "--output", f"{tmp_path}/out", "--dry-run"]
    assert main(run) == 2
    assert "set with --root what its paths are relative to" in capsys.readouterr().err
    assert main([*run, "--root", str(tmp_path)]) == 0
    assert main([*run, "--root", f"{tmp_path}/set"]) == 2
    assert "--root what" not in capsys.readouterr().err


def test_evaluate_names_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    way = "evaluate {--predictions P {--labels L | --footprints F} | --weights W --data D} --output URL"
    assert main(["evaluate"]) == 2
    assert way in capsys.readouterr().err
    assert main(["evaluate", "--output", "o"]) == 2
    way = "give --predictions and --labels (or --footprints), or --weights and --data"
    assert way in capsys.readouterr().err


def test_a_picture_that_is_too_large_names_the_limit_and_the_setting(tmp_path: Path) -> None:
    Image.new("L", (1200, 1000)).save(tmp_path / "a.png")
    with pytest.raises(ItemError, match=r"^PNG of 1,200,000 pixels, above max_pixels 1,000,000; --max-p"):
        decode_rgb((tmp_path / "a.png").read_bytes(), 1_000_000)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which nobody may write")
def test_an_output_that_takes_nothing_is_bad_usage() -> None:
    with (
        pytest.raises(SettingsError, match=r"^output: cannot write /proc/segray/_segray/lease.json: "),
        Lease(Store("/proc/segray", STORAGE)),
    ):
        pass


def test_the_file_of_a_job_that_did_well_stays_away() -> None:
    with noise_to_file() as log:
        loggers_to(log)
        logging.getLogger("ray").error("said while it works")
        assert "said while it works" in log.read_text()
    logging.getLogger("ray").error("said afterwards")
    assert not log.exists()


def test_what_ray_data_says_of_each_task_is_not_kept() -> None:
    """Its DEBUG lines would fill a disk in the weeks of a large job."""
    logger = logging.getLogger("ray.data")
    logger.setLevel(logging.DEBUG)  # as Ray does when it is imported
    with noise_to_file() as log:
        loggers_to(log)
        logger.debug("of each task")
        logger.info("of the job")
        text = log.read_text()
    assert "of the job" in text
    assert "of each task" not in text


def break_down(log: Path) -> None:
    log.write_text("said by others\n")
    try:
        raise KeyError("deep down")
    except KeyError as error:
        raise JobFailedError("in a line") from error


def test_what_broke_a_job_is_in_the_file_that_is_kept() -> None:
    with pytest.raises(JobFailedError), noise_to_file() as log:
        break_down(log)
    text = log.read_text()
    log.unlink()
    assert text.startswith("said by others\n")
    assert text.index("KeyError: 'deep down'") < text.index("JobFailedError: in a line")


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_for_metrics_that_is_taken(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told with everything else, before Ray is started."""
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with socket.socket() as taken:
        taken.bind((address, 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = ("--weights", "none-such", "--output", str(tmp_path / "out"), "--metrics-port", str(port))
        assert main(["annotate", str(tmp_path), *options]) == 2
    told = capsys.readouterr().err
    assert f"segray: metrics_port: cannot listen on {port}: Address already in use\n" in told
    assert "none-such" in told
