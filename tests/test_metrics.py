"""Prometheus metrics: what the dashboard asks for is exported, is right, and is on loopback alone."""

import json
import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from segray.prometheus import labels
from tests.bulk.runs import MODELS, descendants, make_images, running
from tests.servers import free_port
from tests.test_log import objects
from tests.train.squares import EPOCHS, lines, train, write_squares

DASHBOARD = Path(__file__).parents[1] / "jobs/cluster/grafana.json"
IMAGES = 60
QUERY = re.compile(r"(ray_segray_\w+)\{([^}]*)\}")
LABEL = re.compile(r"(\w+)=~?\"")
BY = re.compile(r"by \(([^)]*)\)")


@dataclass
class Scraped:
    """Name -> values in the order of the scrapes, and the labels of the last one."""

    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    labels: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def scrape(self, port: int) -> None:
        """Once; an endpoint that is not there, not yet or no more, has nothing."""
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer,
        ):
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    if sample.name.startswith("ray_segray_"):
                        self.values[sample.name].append(sample.value)
                        self.labels[sample.name] = sample.labels


def listens_elsewhere(pid: int) -> set[str]:
    """Addresses other than loopback on which a process, or one below it, listens."""
    pids = {pid, *descendants(pid)}
    found = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    addresses = {each.laddr.ip for each in found if each.pid in pids}
    return addresses - {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@dataclass
class Watched:
    """A run of `annotate` on a Ray of its own that was looked at while it worked."""

    scraped: Scraped
    elsewhere: set[str]
    record: dict[str, Any]
    seconds: float


@dataclass
class Trained:
    """A run of `train`, and what it said as JSON."""

    scraped: Scraped
    output: Path
    said: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Sixty pictures at four a second, and one that is none."""
    folder = tmp_path_factory.mktemp("watched")
    images, out = make_images(folder / "in", IMAGES), folder / "nuclei"
    (images / "broken.png").write_bytes(b"no picture")
    port, scraped, elsewhere, started = free_port(), Scraped(), set[str](), time.monotonic()
    options = ("--output", out, "--weights", MODELS + "slower", "--max-rejects", 1, "--actors", 1)
    with running(images, *options, "--metrics-port", port) as driver:
        while driver.poll() is None:
            scraped.scrape(port)
            elsewhere |= listens_elsewhere(driver.pid)
            time.sleep(0.3)
        _, told = driver.communicate()
    assert driver.returncode == 0, told
    seconds = time.monotonic() - started
    return Watched(scraped, elsewhere, json.loads((out / "run.json").read_text()), seconds)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Trained:
    """A training on a Ray that was there before: nobody has asked for metrics."""
    folder = tmp_path_factory.mktemp("trained")
    options = ("--epochs", EPOCHS, "--log-format", "json")
    with redirect_stderr(StringIO()) as said:
        assert train(write_squares(folder / "in"), folder / "squares", *options) == 0
    scraped, nodes = Scraped(), ray.nodes()  # type: ignore[no-untyped-call]
    port = nodes[0]["MetricsExportPort"]
    for _ in range(100):  # Ray's processes report every ten seconds
        scraped.scrape(port)
        if scraped.values["ray_segray_epoch"][-1:] == [EPOCHS]:
            break
        time.sleep(0.3)
    return Trained(scraped, folder / "squares", said.getvalue())


def test_the_figures_of_a_run(watched: Watched) -> None:
    values, counts = watched.scraped.values, watched.record["counts"]
    done = values["ray_segray_items_done"]
    assert done == sorted(done)
    assert len(set(done)) > 5
    assert done[-1] == counts["items"] == IMAGES + 1
    left = values["ray_segray_items_left"]
    assert left[-1] == 0 < max(left)
    assert values["ray_segray_items_rejected"][-1] == 1
    assert values["ray_segray_instances"][-1] == counts["instances"]
    assert values["ray_segray_tiles"][-1] == 0
    assert 2 < values["ray_segray_images_per_second"][-1] <= 4.1
    busy = values["ray_segray_model_seconds_total"]
    assert busy == sorted(busy)
    assert 0.25 * IMAGES * 0.8 < busy[-1] < watched.seconds
    assert (
        watched.scraped.labels["ray_segray_items_done"].items()
        >= {"verb": "annotate", "run": "nuclei"}.items()
    )


def test_nobody_else_can_look(watched: Watched) -> None:
    assert watched.elsewhere == set()


def test_the_figures_of_a_training(trained: Trained) -> None:
    scraped, last = trained.scraped, lines(trained.output)[-1]
    for name, key in {"epoch": "epoch", "train_loss": "train_loss", "val_loss": "val_loss",
                      "images_per_second": "images_per_s"}.items():  # fmt: skip
        assert scraped.values[f"ray_segray_{name}"][-1] == pytest.approx(last[key])
    assert scraped.labels["ray_segray_epoch"].items() >= {"verb": "train", "run": "squares"}.items()


def test_what_a_training_says_as_json(trained: Trained) -> None:
    said, written = objects(trained.said, "train"), lines(trained.output)
    record = json.loads((trained.output / "run.json").read_text())
    epochs = [line for line in said if line["message"].startswith("epoch ")]
    assert [line["epoch"] for line in epochs] == list(range(1, EPOCHS + 1))
    assert [line["train_loss"] for line in epochs] == [each["train_loss"] for each in written]
    assert {line["epochs"] for line in epochs} == {EPOCHS}
    assert record["machine_hours"].keys() == {"4 CPU"}
    end = said[-1]
    assert (end["exit_code"], end["epochs"], end["best"]) == (0, EPOCHS, record["best"])


def test_the_dashboard_asks_for_what_is_there(watched: Watched, trained: Trained) -> None:
    there = watched.scraped.labels | trained.scraped.labels
    board = json.loads(DASHBOARD.read_text())
    asked = set()
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            (*queries,) = QUERY.findall(target["expr"])
            assert queries, target
            by = {name.strip() for names in BY.findall(target["expr"]) for name in names.split(",")}
            for name, chosen in queries:
                asked.add(name)
                assert {*by, *LABEL.findall(chosen)} <= there[name].keys(), name
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= by
    assert asked == there.keys()
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert variables.keys() == {"datasource", "verb", "run"}
    assert variables["run"]["query"]["query"] == 'label_values({__name__=~"ray_segray_.+"}, run)'


def test_a_run_has_a_short_name_without_secrets() -> None:
    assert labels("predict", "s3://key:secret@bucket/maps/2026/?token=x") == {
        "verb": "predict",
        "run": "2026",
    }
    assert labels("train", "/data/model") == {"verb": "train", "run": "model"}
    assert labels("train", "s3://bucket") == {"verb": "train", "run": "bucket"}
