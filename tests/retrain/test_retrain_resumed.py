"""Rounds that are gone on with: what may have changed meanwhile, and what is left to do after the end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segray.errors import JobFailedError
from tests.retrain.cells import TRAIN, retrain, write_config, write_labels

LABEL = {"sources": ["night"], "output": "labelled", "precision": "fp32"}


@pytest.fixture
def here(tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_labels(tmp_path / "cells", 12)
    return tmp_path


def test_what_changed_since_a_round_began_is_told_with_a_way_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed when it has begun to train; then the rate is another, then a picture is gone."""
    from segray.train import job as training

    def killed(*_: Any) -> None:
        raise JobFailedError("killed")

    write_config(here, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_train", killed)
        assert retrain() == 1
    write_config(here, epochs=1, train={**TRAIN, "epochs": 1, "lr": 0.1})
    assert retrain() == 2
    told = capsys.readouterr().err
    assert "lr: 0.005 there, 0.1 now" in told
    assert f"to restart it, delete {here}/rounds/rounds/0001" in told
    write_config(here, epochs=1)
    (here / "cells/images/cells-1.png").rename(here / "gone.png")
    assert retrain() == 2
    assert "to restart it, delete" in capsys.readouterr().err
    (here / "gone.png").rename(here / "cells/images/cells-1.png")
    assert retrain() == 0


def test_labelling_that_failed_is_tried_again_and_changes_no_outcome(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pictures are not there when the champion is made; an hour later they are."""
    write_config(here, epochs=1, label=LABEL)
    assert retrain() == 0
    assert "the next run tries again" in capsys.readouterr().err
    (here / "night").mkdir()
    Image.fromarray(np.full((96, 96, 3), 90, np.uint8)).save(here / "night/one.png")
    assert retrain() == 4
    record = here / "labelled/run.json"
    assert record.exists()
    done = record.stat().st_mtime_ns
    assert retrain() == 4
    assert record.stat().st_mtime_ns == done
