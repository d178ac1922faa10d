"""Noise is not drift, a shift is; and all that may be wrong with a run is said."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from segray.cli import main
from segray.drift.compare import Thresholds, compare
from segray.drift.job import compare_runs, profile_of
from segray.drift.page import page
from segray.drift.profile import Profile
from segray.errors import NothingToDoError
from segray.output.names import MODEL
from segray.registry.registry import PROFILE, Registry
from segray.storage import StorageSettings
from tests.drift.made import Archive, archive, halves, write
from tests.servers import Server

STORAGE = StorageSettings()
ANYTHING = Thresholds(psi=1e-12, js=1e-12, min_images=1, noise=0.05)
"""Noise alone decides."""


def compared(tmp_path: Path, run: Archive, against: Archive, **more: Any) -> dict[str, Any]:
    """Their record."""
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    both = write(tmp_path / "runs/a", run), write(tmp_path / "runs/b", against)
    return compare_runs(*both, STORAGE, more.pop("group_by", None), more.pop("thresholds", None))


def crossed(record: dict[str, Any]) -> set[tuple[str | None, str]]:
    return {(each["group"], each["measure"]) for each in record["crossed"]}


@pytest.mark.parametrize("number", [120, 1000])
def test_two_halves_of_one_archive_are_no_drift(number: int, tmp_path: Path) -> None:
    for seed in range(15):
        record = compared(tmp_path, *halves(seed, number), group_by="camera")
        assert record["judged"] == (6 if number == 120 else 24)
        assert not record["drifted"], (seed, record["crossed"])


def test_noise_is_what_it_is_said_to_be(tmp_path: Path) -> None:
    """Where noise alone decides, no more pairs of halves drift than was allowed."""
    trials, wrong = 60, 0
    for seed in range(trials):
        wrong += compared(tmp_path, *halves(seed, 150), thresholds=ANYTHING)["drifted"]
    assert wrong <= 8  # 3 are expected; more than 8 come with a chance of 0.5 %
    record = compared(tmp_path, *halves(0, 150))
    assert max(measure["psi"] for measure in record["overall"]["measures"]) > 0.05


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        ({"darker": 40}, {(None, "brightness")}),
        ({"classes": (0.15, 0.3, 0.05, 0.5)}, {(None, "class")}),
        ({"dark_camera": "left"}, {("left", "brightness")}),
    ],
)
def test_a_shift_is_drift(seed: int, shift: dict[str, Any], expected: set[Any], tmp_path: Path) -> None:
    """And nothing else is, but the whole, where a third of it turned dark."""
    run, against = archive(seed, 900, **shift), archive(seed + 100, 900)
    found = crossed(compared(tmp_path, run, against, group_by="camera"))
    assert expected <= found
    measures = {measure for _, measure in expected}
    assert {measure for _, measure in found} == measures
    if "dark_camera" in shift:
        assert found <= {("left", "brightness"), (None, "brightness")}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", archive(1, 600, dark_camera="top"))
    against, report = write(tmp_path / "against", archive(2, 600)), tmp_path / "report"
    command = ["drift", run, "--against", against, "--group-by", "camera"]
    assert main([*command, "--output", str(report)]) == 3
    told = capsys.readouterr().out
    assert f"{run} against {against}: drift: " in told
    assert "brightness of camera top" in told
    assert re.search(r"camera left: \d+ images \(0 rejected\), .*; no drift", told)
    record = json.loads((report / "drift.json").read_text())
    assert record["drifted"]
    page = (report / "drift.html").read_text()
    assert "camera: top" in page
    assert not re.search(r"(src|href)=", page)
    assert page.count("<rect") > 50
    assert main([*command, "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == record
    assert main([*command[:-2], "--psi", "5", "--js", "0.9"]) == 0
    assert ": no drift" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["against", "report", "run"]


def test_few_images_are_reported_and_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, against = write(tmp_path / "a", archive(1, 60, darker=80)), write(tmp_path / "b", archive(2, 600))
    assert main(["drift", run, "--against", against, "--group-by", "camera"]) == 0
    told = capsys.readouterr().out
    assert "not judged: fewer than 100 images" in told
    assert re.search(r"brightness +\d+\.\d+ ", told)
    assert main(["drift", run, "--against", against, "--min-images", "50"]) == 3


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    """A group of one side, a run without instances, columns that an older version did not write."""
    whole = archive(3, 600)
    right = whole.part(np.asarray(whole.images["camera"]) != "left")
    record = compared(tmp_path, right, archive(4, 600), group_by="camera")
    left = next(each for each in record["groups"] if each["group"] == "left")
    assert {each["why"] for each in left["measures"] if each["measure"] == "brightness"} == {
        "no images with a known brightness in run"
    }
    assert not record["drifted"]
    empty = Archive(
        whole.images | {"instances": np.zeros(600, np.int32)}, whole.part(np.zeros(600, bool)).instances
    )
    record = compared(tmp_path, empty, archive(4, 600))
    assert crossed(record) == {(None, "instances")}
    reasons = {each["measure"]: each["why"] for each in record["overall"]["measures"]}
    assert reasons["score"] == "no instances with a score in run"
    assert reasons["class"] == "no instances in run"
    assert [note for note in record["notes"] if "has no instances" in note]
    old = Archive(
        {n: c for n, c in whole.images.items() if n not in ("brightness", "sharpness")}, whole.instances
    )
    record = compared(tmp_path, archive(4, 600), old)
    reasons = {each["measure"]: each["why"] for each in record["overall"]["measures"]}
    assert reasons["brightness"] == reasons["sharpness"] == "not recorded in against"
    assert [note for note in record["notes"] if note.endswith("has no brightness, sharpness")]
    null = Archive(whole.images | {"brightness": np.full(600, np.nan)}, whole.instances)
    (seen,) = [
        each
        for each in compared(tmp_path, null, whole)["overall"]["measures"]
        if each["measure"] == "brightness"
    ]
    assert seen["why"] == "no images with a known brightness in run"


def test_names_are_no_markup(tmp_path: Path) -> None:
    made = archive(1, 300)
    made.images["camera"] = np.full(300, "<script>alert(1)</script>")
    made.instances["category"] = np.full(len(made.instances["score"]), "<img src=x>")
    text = page(compared(tmp_path, made, made, group_by="camera"))
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text


def test_maps_have_no_instances(tmp_path: Path) -> None:
    both = [write(tmp_path / name, archive(seed, 300), verb="predict") for seed, name in enumerate("ab")]
    record = compare_runs(both[0], both[1], STORAGE)
    assert record["judged"] == 2
    reasons = {each["measure"]: each["why"] for each in record["overall"]["measures"]}
    assert reasons["instances"] == reasons["score"] == "not recorded in run and against"


@pytest.mark.parametrize(
    ("damage", "code", "line"),
    [
        ("no run", 4, "no segray run found there"),
        ("unfinished", 2, "its run is not finished"),
        ("bad record", 2, "its run.json is damaged"),
        ("train", 2, "an output of train without images/*.parquet"),
        ("other schema", 2, "has no column status, instances"),
        ("no parquet", 2, "cannot be read"),
        ("all rejected", 4, "has no annotated images (200 rejected): nothing to compare"),
        ("empty table", 4, "has no annotated images: nothing to compare"),
        ("no group", 2, "group_by: "),
        ("many groups", 2, "group_by: camera has more than 1,000 values"),
        ("list group", 2, "group_by: "),
        ("lost image", 2, "has instances of images that are not in part-000000.parquet"),
        ("bad output", 2, "output: "),
        ("no against", 2, "against: is required"),
        ("no storage", 2, "unknown protocol gopher://"),
    ],
)
def test_a_run_that_is_slightly_wrong(
    damage: str, code: int, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = archive(1, 200)
    if damage == "all rejected":
        made.images["status"] = np.full(200, "rejected")
    if damage == "empty table":
        made = made.part(np.zeros(200, bool))
    run, against = write(tmp_path / "a", made), write(tmp_path / "b", archive(2, 200))
    options, ledger = ["--group-by", "camera"], tmp_path / "a/images/part-000000.parquet"
    if damage in ("no run", "unfinished"):
        (tmp_path / "a/run.json").unlink()
    if damage == "unfinished":
        (tmp_path / "a/_segray").mkdir()
        (tmp_path / "a/_segray/plan.json").write_text("{}")
    if damage == "bad record":
        (tmp_path / "a/run.json").write_text("[")
    if damage == "train":
        shutil.rmtree(tmp_path / "a/images")
        (tmp_path / "a/run.json").write_text('{"verb": "train"}')
    if damage == "other schema":
        pq.write_table(pa.table({"image_id": ["a"], "camera": ["b"]}), ledger)
    if damage == "no parquet":
        ledger.write_bytes(b"PAR1 and so on")
    if damage == "no group":
        options = ["--group-by", "kamera"]
    if damage == "many groups":
        many = archive(1, 1500)
        many.images["camera"] = many.images["image_id"]
        write(tmp_path / "a", many)
    if damage == "list group":
        pq.write_table(pq.read_table(ledger).set_column(5, "camera", pa.array([[1]] * 200)), ledger)
    if damage == "lost image":
        there = pq.read_table(ledger)
        pq.write_table(there.filter(pc.less(there["instances"], there["instances"].to_numpy().max())), ledger)
    if damage == "bad output":
        options += ["--output", f"{ledger}/here"]
    if damage == "no storage":
        run = "gopher://a/b"
    arguments = ["drift", run, *options] + ([] if damage == "no against" else ["--against", against])
    assert main(arguments) == code
    told = capsys.readouterr()
    assert line in told.err
    assert "Traceback" not in told.err
    assert told.out == ""


def test_a_kept_profile(tmp_path: Path) -> None:
    """As a registry keeps it: what comes back compares as the run itself."""
    run = profile_of(write(tmp_path / "a", archive(1, 500), parts=3), STORAGE, "camera")
    against = profile_of(write(tmp_path / "b", archive(2, 500, darker=50)), STORAGE, "camera")
    kept = Profile.from_json(against.to_json())
    assert compare(run, kept, Thresholds()) == compare(run, against, Thresholds())
    assert kept.to_json() == against.to_json()
    whole = profile_of(str(tmp_path / "b"), STORAGE)
    record = compare(run, Profile.from_json(whole.to_json().encode()), Thresholds())
    assert record["groups"] == []
    assert record["drifted"]
    assert any("was made without groups" in note for note in record["notes"])


def test_a_version_in_a_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The champion's kept profile stands for the run that it is of."""
    run, dark = write(tmp_path / "a", archive(1, 300)), write(tmp_path / "b", archive(2, 300, darker=60))
    registry = Registry(str(tmp_path / "models"), STORAGE)
    kept = profile_of(dark, STORAGE).to_json().encode()
    versions = [
        registry.add("roads", {MODEL: name.encode(), **files}, {})
        for name, files in (("whole", {PROFILE: kept}), ("none", {}), ("bad", {PROFILE: b"{}"}))
    ]
    registry.change("roads", lambda now: now.promoted(versions[0], "the first", None))
    monkeypatch.chdir(tmp_path)
    for address in ("registry:models#roads", f"registry://{tmp_path}/models#roads@{versions[0]}"):
        assert main(["drift", run, "--against", address, "--json"]) == 3
        record = json.loads(capsys.readouterr().out)
        assert record["against"].startswith(f"registry://{tmp_path}/models#roads@")
        assert crossed(record) == {(None, "brightness")}
    for version, line in (
        (versions[1], "against: "),
        (versions[2], f"against: registry://{tmp_path}/models#roads@{versions[2]} is not a segray profile"),
        ("challenger", "roads has no challenger"),
    ):
        assert main(["drift", run, "--against", f"registry:models#roads@{version}"]) == 2
        assert line in capsys.readouterr().err


def test_nothing_is_printed_by_the_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "a", archive(1, 300))
    assert not compare_runs(run, run, STORAGE)["drifted"]
    with pytest.raises(NothingToDoError):
        compare_runs(run, str(tmp_path / "nowhere"), STORAGE)
    assert capsys.readouterr() == ("", "")


def test_in_a_bucket(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    local = Path(write(tmp_path / "a", archive(1, 300), parts=2))
    for path in local.rglob("*"):
        if path.is_file():
            server.put(f"drift/run/{path.relative_to(local)}", path.read_bytes())
    command = ["drift", server.url("drift/run"), "--against", str(local), "--group-by", "camera"]
    assert main([*command, "--output", server.url("drift/report")]) == 0
    assert "no drift" in capsys.readouterr().out
