"""Who may be held out when a round begins: nobody that a model has ever learned from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from segray.errors import SettingsError
from segray.output.folder import Output
from segray.output.names import MODEL
from segray.registry.registry import SNAPSHOT, Registry
from segray.retrain import data as data_of
from segray.retrain.labels import names_from, names_to_bytes, snapshot_of, to_bytes, trained_in
from segray.retrain.rounds import TRAINED, Round
from segray.retrain.settings import RetrainSettings
from segray.retrain.start_round import Job, _trained, _unknown_to, _warn_of_leakage, write_groups
from segray.storage import StorageSettings
from tests.registry.models import write_model
from tests.retrain.cells import TRAIN
from tests.retrain.test_holdout import pair, rows
from tests.train.cells import write_cells


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
    assert "may be held out and inflate its score" in capsys.readouterr().err


def test_a_champion_is_compared_with_before_work_begins(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the other task cannot be; one of other classes can, which is said."""
    data = write_cells(tmp_path / "cells", images=3)
    settings = job.settings.model_copy(update={"data": str(data), "train": TRAIN, "start": "scratch"})
    here = replace(job, settings=settings)
    labels = data_of.listed(settings, None)
    nuclei = (Path(data_of.__file__).parents[1] / "models/bundled/nuclei-small.pt").read_bytes()
    assert _unknown_to(here, None, labels) == []
    assert _unknown_to(here, job.registry.add("m", {MODEL: nuclei}, {}), labels) == ["cell"]
    assert "The champion lacks the class cell, and scores 0 there" in capsys.readouterr().err
    road = job.registry.add("m", {MODEL: write_model(tmp_path / "road.pt")}, {})
    with pytest.raises(SettingsError, match="a model for semantic labels, this would train one for instance"):
        _unknown_to(here, road, labels)


def test_groups_that_no_held_out_picture_has_are_told(job: Job, tmp_path: Path) -> None:
    """As of a manifest whose paths mean something else to the group than to training."""
    (tmp_path / "list.csv").write_text("images,masks,camera\na.png,b.png,left\n")
    more = {"data": str(tmp_path / "list.csv"), "group_by": "camera"}
    here = replace(job, settings=job.settings.model_copy(update=more))
    with pytest.raises(SettingsError, match="group_by: none of the 3 held-out images has a camera"):
        write_groups(here, Round(job.store, 1, here.settings.output), snapshot(range(3), "test"))


@pytest.mark.parametrize("url", ["my#models", "memory://models"])
def test_a_registry_that_no_address_could_name_is_refused(tmp_path: Path, url: str) -> None:
    where = url if "://" in url else str(tmp_path / url)
    with pytest.raises(SettingsError, match="--weights could not address its models"):
        Registry(where, StorageSettings()).check_usable()


def test_a_champion_that_trained_on_what_is_held_out_here_is_named(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {MODEL: b"one", SNAPSHOT: to_bytes(snapshot(range(4), "train"))}
    champion = job.registry.add("m", files, {})
    _warn_of_leakage(job, champion, snapshot(range(2, 12), "train"))
    _warn_of_leakage(job, None, snapshot(range(2, 12), "test"))
    assert not capsys.readouterr().err
    _warn_of_leakage(job, champion, snapshot(range(2, 12), "test"))
    assert "2 of 10 held-out images trained the champion" in capsys.readouterr().err
