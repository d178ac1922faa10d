"""Who may be held out when a round begins: nobody that a model has ever learned from."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from segray.bulk.output import Output
from segray.registry.registry import MODEL, SNAPSHOT, Registry
from segray.retrain.begin import Job, _trained
from segray.retrain.labels import names_from, names_to_bytes, snapshot_of, to_bytes, trained_in
from segray.retrain.rounds import TRAINED
from segray.retrain.settings import RetrainSettings
from segray.storage import StorageSettings
from tests.retrain.test_holdout import pair, rows


def snapshot(numbers: range, split: str) -> pa.Table:
    pairs = [pair(number) for number in numbers]
    return snapshot_of(pairs, rows(pairs), [split] * len(pairs))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    settings = RetrainSettings(
        data=str(tmp_path), registry=str(tmp_path / "registry"), model="m", output=str(tmp_path / "rounds")
    )
    nothing: Any = None
    storage = StorageSettings()
    registry = Registry(settings.registry, storage)
    return Job(settings, Output(settings.output, storage), registry, nothing, nothing)


def test_a_picture_that_trained_once_counts_when_it_comes_back(job: Job) -> None:
    """It was gone from the labels of the last round."""
    trained = trained_in(snapshot(range(5), "train"))
    job.store.write(TRAINED, names_to_bytes(trained))
    found = _trained(job, None, snapshot(range(1, 5), "train"))
    assert "s3://b/0.png" in found
    assert found == trained == names_from(names_to_bytes(trained))
    assert not _trained(job, None, snapshot(range(9, 12), "test")) & trained_in(snapshot(range(9, 12), "val"))


def test_what_a_champion_from_elsewhere_learned_from_counts(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {MODEL: b"one", SNAPSHOT: to_bytes(snapshot(range(20, 23), "val"))}
    known = job.registry.add("m", files, {})
    assert _trained(job, known, None) == trained_in(snapshot(range(20, 23), "train"))
    assert not capsys.readouterr().err
    unknown = job.registry.add("m", {MODEL: b"another"}, {})
    assert _trained(job, unknown, None) == set()
    assert "may be held out, and flatter it" in capsys.readouterr().err
