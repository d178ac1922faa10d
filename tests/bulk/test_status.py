"""`segray status` of runs that ended, that were killed, that others hold."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from segray.cli import main
from segray.output.lease import Holder, Lease
from segray.output.store import Store
from segray.storage import StorageSettings
from tests.bulk.runs import tables
from tests.bulk.tables import answer, table
from tests.servers import Server


def told(capsys: pytest.CaptureFixture[str], run: object) -> tuple[dict[str, Any], str]:
    """What it says as JSON, and in words."""
    assert main(["status", str(run)]) == 0
    words = capsys.readouterr().out
    assert main(["status", str(run), "--json"]) == 0
    return json.loads(capsys.readouterr().out), words


@pytest.fixture
def unfinished(expected: Path, tmp_path: Path) -> Path:
    """A run of which all is there but its last word."""
    shutil.copytree(expected, tmp_path / "out")
    (tmp_path / "out/run.json").unlink()
    return tmp_path / "out"


def write_lease(run: Path, **others: object) -> None:
    lock = Lease(Store(str(run), StorageSettings()))
    worked = {"machine_hours": {"8 CPU": 1.5}, "cost": {"8 CPU": 3.0, "total": 3.0}}
    lock.tell = lambda: {"total": 123, "images_per_s": 0.5, **worked}
    (run / "_segray/lease.json").write_text(json.dumps(json.loads(lock._lease()) | others))


def test_a_finished_run(expected: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, instances = tables(expected)
    found, words = told(capsys, expected)
    assert (found["verb"], found["state"], found["holder"]) == ("annotate", "finished", None)
    counts = {"done": 100, "total": 100, "left": 0, "rejected": 0, "instances": len(instances), "vanished": 0}
    assert found["counts"] == counts
    assert len(images) == 100
    assert "annotate, finished" in words
    assert f"100 of 100 items, 0 rejected, {len(instances):,} instances" in words
    hours = json.loads((expected / "run.json").read_text())["machine_hours"]
    assert found["machine_hours"] == hours
    assert list(hours) == ["4 CPU"]
    assert "machine-hours: " in words


def test_one_that_stopped(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is committed is counted from the tables."""
    found, words = told(capsys, unfinished)
    generation = json.loads((unfinished / "_segray/lease.json").read_bytes())["generation"]
    assert (found["state"], found["attempts"], found["holder"]) == ("stopped", generation, None)
    _, instances = tables(unfinished)
    assert (found["counts"]["done"], found["counts"]["instances"]) == (100, len(instances))
    assert "run the same command again" in words


def test_who_holds_it(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lease(unfinished, generation=3)
    found, words = told(capsys, unfinished)
    assert (found["state"], found["attempts"], found["holder"]["pid"]) == ("running", 3, os.getpid())
    assert (found["counts"]["total"], found["counts"]["left"], found["rate"]) == (123, 23, 0.5)
    assert "100 of 123 items" in words
    assert "2.0 s/image, 0:00:46 left" in words
    assert "started 3 times" in words
    assert (found["machine_hours"], found["cost"]) == ({"8 CPU": 1.5}, {"8 CPU": 3.0, "total": 3.0})
    assert "machine-hours: 1.500 of 8 CPU; cost 3.00" in words
    write_lease(unfinished, pid=2**22 + 1)
    found, words = told(capsys, unfinished)
    assert found["state"] == "killed"
    assert "gone; run the same command again" in words
    write_lease(unfinished, host="elsewhere", boot="x")
    found, words = told(capsys, unfinished)
    assert (found["state"], found["holder"]["host"]) == ("held", "elsewhere")
    assert "on elsewhere" in words
    assert found["holder"]["host"] != socket.gethostname()


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"run_id": "x", "told": 7}', b'{"pid": "many"}'])
def test_a_damaged_lease_is_of_nobody_known(
    damage: bytes, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (unfinished / "_segray/lease.json").write_bytes(damage)
    found, _ = told(capsys, unfinished)
    assert (found["state"], found["counts"]["done"]) == ("held", 100)
    assert found["holder"]["host"] == Holder().host


def test_an_item_that_was_done_again_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its newest row, also where a merge was cut off and its commits are still there."""
    store = Store(str(tmp_path), StorageSettings())
    store.write_json("_segray/plan.json", {})
    store.commit(table(answer("a", error_type="storage"), answer("b", instances=3)))
    second = store.commit(table(answer("a", instances=5), answer("c", error_type="corrupt")))
    kept = (tmp_path / second.name).read_bytes()
    store.merge([second])
    (tmp_path / second.name).write_bytes(kept)
    found, _ = told(capsys, tmp_path)
    counts = {name: found["counts"][name] for name in ("done", "rejected", "instances")}
    assert counts == {"done": 3, "rejected": 1, "instances": 8}


@pytest.mark.parametrize("damage", ["{}", '{"counts": {}}', '{"counts": {"items": 1}}', '{"counts": 7}'])
def test_a_damaged_record_is_named(damage: str, unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or is as if it were not there."""
    (unfinished / "run.json").write_text(damage)
    code = main(["status", str(unfinished)])
    told = capsys.readouterr()
    if code:
        assert code == 1
        assert "run.json, metrics.jsonl or _segray/lease.json is damaged" in told.err
        assert told.err.count("\n") == 1
    else:
        assert "100 items" in told.out
    (unfinished / "run.json").write_text("{")
    assert main(["status", str(unfinished)]) == 1
    assert "run.json is damaged" in capsys.readouterr().err


def test_commits_that_are_merged_meanwhile_are_looked_for_again(
    unfinished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Store.parts
    gone = iter([True, True, False])

    def parts(store: Store) -> Any:
        found = listed(store)
        return [type(found[0])(found[0].folder, 999, 1), *found] if next(gone, False) else found

    monkeypatch.setattr(Store, "parts", parts)
    found, _ = told(capsys, unfinished)
    assert found["counts"]["done"] == 100


def test_no_run_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in (tmp_path, tmp_path / "nowhere"):
        assert main(["status", str(run)]) == 4
        assert f"{run}: no segray run found there" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["status"]) == 2
    assert "run: is required" in capsys.readouterr().err
    assert main(["status", "one", "another"]) == 2
    assert "run: List should have at most 1 item" in capsys.readouterr().err


def test_in_a_bucket(
    expected: Path, s3_server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    for path in expected.rglob("*"):
        if path.is_file():
            s3_server.put(f"status/{path.relative_to(expected)}", path.read_bytes())
    found, _ = told(capsys, s3_server.url("status"))
    assert (found["state"], found["counts"]["done"]) == ("finished", 100)
    assert main(["status", s3_server.url("nothing")]) == 4
