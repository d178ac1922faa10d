"""`segray retrain`, killed whole at each of its steps, goes on: one version and one history, undisturbed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from segray.registry.registry import Registry
from segray.storage import StorageSettings
from tests.bulk.runs import kill_tree, running, wait_for
from tests.retrain.cells import write_config, write_labels

START_S = 300.0
ROUND = "rounds/rounds/0001"
STEPS: dict[str, Callable[[Path], bool]] = {
    "labels are frozen": lambda folder: (folder / ROUND / "labels.json").exists(),
    "the round is begun": lambda folder: (folder / ROUND / "round.json").exists(),
    "an epoch is trained": lambda folder: (folder / ROUND / "train/metrics.jsonl").exists(),
    "the holdout is annotated": lambda folder: any((folder / ROUND / "scored/challenger").glob("images/*")),
    "a report is written": lambda folder: (folder / ROUND / "report.html").exists(),
    "a decision is taken": lambda folder: (folder / ROUND / "decision.json").exists(),
    "the registry has the model": lambda folder: any(folder.glob("registry/cells/versions/*/model.pt")),
    "the champion is another": lambda folder: (folder / "registry/cells/aliases.json").exists(),
    "the run has a record": lambda folder: (folder / "rounds/run.json").exists(),
    "the round has a record": lambda folder: (folder / ROUND / "run.json").exists(),
}
"""What has just happened when everything is killed."""


def test_killed_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose mark is there already when it is looked for was passed in one go with the one before."""
    monkeypatch.chdir(tmp_path)
    write_labels(tmp_path / "cells", 12)
    write_config(tmp_path, epochs=3)
    kills = []
    for step, has_happened in STEPS.items():
        if has_happened(tmp_path):
            continue
        with running("--config", "retrain.yaml", verb="retrain") as process:
            wait_for(lambda: has_happened(tmp_path) or process.poll() is not None, START_S, step)  # noqa: B023
            if process.poll() is None:
                kill_tree(process.pid)
                kills.append(step)
    with running("--config", "retrain.yaml", verb="retrain") as process:
        _, err = process.communicate(timeout=START_S)
    assert process.returncode in (0, 4), err  # 4: the last kill came too late
    assert len(kills) >= 4, kills
    registry = Registry(str(tmp_path / "registry"), StorageSettings())
    (version,) = registry.versions("cells")
    aliases = registry.aliases("cells")
    assert aliases.champion == version.digest
    assert [event.what for event in aliases.history] == ["promote"]
    record = json.loads((tmp_path / "rounds/run.json").read_text())
    assert (record["round"], record["version"]) == (1, version.digest)
    assert not (tmp_path / "rounds/rounds/0002/round.json").exists()
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / ROUND / "train/metrics.jsonl").open()]
    assert epochs == [1, 2, 3]
    assert not list((tmp_path / "rounds").rglob("unpublished/*"))
