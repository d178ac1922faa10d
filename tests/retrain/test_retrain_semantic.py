"""`segray retrain` of a semantic model: label maps in, mIoU compared."""

import json
from pathlib import Path

import pytest

from segray.registry.registry import Registry
from segray.storage import StorageSettings
from tests.retrain.cells import retrain
from tests.retrain.semantic import write_config, write_squares


def test_a_semantic_model_is_retrained(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path, 6)
    write_config(tmp_path, epochs=1)
    assert retrain() == 0
    registry = Registry(str(tmp_path / "registry"), StorageSettings())
    first = registry.aliases("squares").champion
    assert retrain() == 4
    write_squares(tmp_path, 12)
    write_config(tmp_path, epochs=10)
    assert retrain() == 0
    aliases = registry.aliases("squares")
    assert aliases.champion is not None
    assert (aliases.previous, len(aliases.history)) == (first, 2)
    metrics = registry.read_json("squares", aliases.champion, "metrics.json")
    assert metrics is not None
    assert metrics["decision"]["metric"] == "mIoU"
    assert metrics["figures"]["miou"] > metrics["champion"]["figures"]["miou"] + 0.05
    decision = json.loads((tmp_path / "rounds/rounds/0002/decision.json").read_text())
    assert decision["images"] == 12
    label = tmp_path / "squares/labels/train/0.png"
    for number in range(1, 6):  # labels of another picture each, more than `min_new`
        (tmp_path / f"squares/labels/train/{number}.png").write_bytes(label.read_bytes())
    write_config(tmp_path, epochs=1, start="scratch")
    assert retrain() == 5
    assert registry.aliases("squares").champion == aliases.champion
