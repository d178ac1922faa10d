"""Hours of machines that come and go, by kind, over attempts, and what they cost; the clock is ours."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from segray.machines import Machines, cost_of, hours_in, hours_line, kind_of
from segray.output.lease import Lease
from segray.output.store import Store
from segray.storage import StorageSettings
from tests.bulk.runs import MODELS, annotate, make_images


def node(resources: Mapping[str, float], *, alive: bool = True, **labels: str) -> dict[str, Any]:
    """As `ray.nodes()` has it."""
    return {"Alive": alive, "Resources": dict(resources), "Labels": {f"ray.io/{key.replace('_', '-')}": each
            for key, each in labels.items()}}  # fmt: skip


SMALL = node({"CPU": 16.0, "memory": 1e9, "node:1.2.3.4": 1.0})
LARGE = node({"CPU": 8.0, "GPU": 2.0, "accelerator_type:A100": 1.0})


def test_the_kind_is_the_autoscalers_word_or_what_it_has() -> None:
    assert kind_of(SMALL) == "16 CPU"
    assert kind_of(LARGE) == "8 CPU + 2 A100"
    assert kind_of(node({"CPU": 3.5, "GPU": 1.0})) == "3.5 CPU + 1 GPU"
    assert kind_of(node({"CPU": 4.0}, instance_type="m5.xlarge", node_id="ab")) == "m5.xlarge"
    assert kind_of(node({"CPU": 4.0}, instance_type="m5.xlarge", node_group="readers")) == "readers"
    assert kind_of({"Alive": True, "Resources": {}}) == "0 CPU"


def test_each_machine_counts_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    machines = Machines({"16 CPU": 2.0})
    assert machines.hours() == {}
    now[0] += 360  # before the first look, which counts from the start
    machines.see([SMALL, node({"CPU": 16.0}, alive=False)])
    assert machines.hours() == pytest.approx({"16 CPU": 0.1})
    now[0] += 360
    machines.see([SMALL, LARGE, LARGE])
    now[0] += 720
    machines.see([SMALL, LARGE, {**LARGE, "Alive": False}])
    now[0] += 360
    hours = {"16 CPU": 0.1 + 0.1 + 0.2 + 0.1, "8 CPU + 2 A100": 0.4 + 0.1}
    assert machines.hours() == pytest.approx(hours)
    machines.inherit({"16 CPU": 3.0, "another": 1.0})
    assert machines.record() == {
        "machine_hours": pytest.approx({"16 CPU": 3.5, "8 CPU + 2 A100": 0.5, "another": 1.0}),
        "cost": {"16 CPU": pytest.approx(7.0), "8 CPU + 2 A100": None, "another": None, "total": None},
    }
    assert "cost" not in Machines({}).record()


def test_the_total_is_told_when_all_prices_are_known() -> None:
    hours = {"16 CPU": 1.5, "gpu": 0.25}
    cost = cost_of(hours, {"16 CPU": 2.0, "gpu": 8.0, "unused": 1.0})
    assert cost == {"16 CPU": 3.0, "gpu": 2.0, "total": 5.0}
    told = hours_line({"machine_hours": hours, "cost": cost})
    assert told == "machine-hours: 1.500 of 16 CPU, 0.250 of gpu; cost 5.00"
    told = hours_line({"machine_hours": hours, "cost": cost_of(hours, {"gpu": 8.0})})
    assert told.endswith("; cost not known: ray.prices has no 16 CPU")
    assert hours_line({"machine_hours": hours}).endswith(" of gpu")


@pytest.mark.parametrize("told", [{}, {"machine_hours": 7}, {"machine_hours": {"16 CPU": "many", "x": -1}}])
def test_what_is_no_number_of_hours_is_none(told: dict[str, Any]) -> None:
    assert hours_in(told) == {}


def dead(run: Path, told: dict[str, Any]) -> None:
    """The lease of an attempt that was killed."""
    lock = Lease(Store(str(run), StorageSettings()))
    lock.tell = lambda: told
    (run / "_segray").mkdir(parents=True)
    (run / "_segray/lease.json").write_text(json.dumps(json.loads(lock._lease()) | {"pid": 2**22 + 1}))


def test_a_lease_hands_the_hours_on(tmp_path: Path) -> None:
    """Also through an attempt that is killed before it tells any of its own."""
    dead(tmp_path, {"machine_hours": {"16 CPU": 5.0}, "total": 3})
    lock = Lease(Store(str(tmp_path), StorageSettings()))
    with lock:
        assert lock.hours == {"16 CPU": 5.0}
        told = json.loads((tmp_path / "_segray/lease.json").read_bytes())["told"]
        assert told == {"machine_hours": {"16 CPU": 5.0}}


def test_a_run_adds_its_hours_to_those_of_earlier_attempts(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a cluster that was there before: its kind is that of its only node, of four CPUs."""
    out = tmp_path / "out"
    dead(out, {"machine_hours": {"4 CPU": 5.0, "8 CPU": 1.0}})
    prices = '{"4 CPU": 2, "8 CPU": 3}'
    images = make_images(tmp_path / "in", 3)
    options = ("--output", out, "--weights", MODELS + "seeded", "--ray.prices", prices)
    assert annotate(images, *options) == 0
    record = json.loads((out / "run.json").read_text())
    hours, seconds = record["machine_hours"], record["rates"]["seconds"]
    assert hours.keys() == {"4 CPU", "8 CPU"}
    assert hours["8 CPU"] == 1.0
    assert 5 + 0.5 * seconds / 3600 < hours["4 CPU"] < 5.05
    assert record["cost"]["4 CPU"] == pytest.approx(2 * hours["4 CPU"], abs=1e-5)
    assert record["cost"]["total"] == pytest.approx(record["cost"]["4 CPU"] + 3, abs=1e-5)
    told = capsys.readouterr().out
    assert re.search(r"machine-hours: 5\.0\d\d of 4 CPU, 1\.000 of 8 CPU; cost 13\.\d\d\n", told)
    lease = json.loads((out / "_segray/lease.json").read_bytes())
    assert lease["told"]["machine_hours"]["4 CPU"] >= hours["4 CPU"]
