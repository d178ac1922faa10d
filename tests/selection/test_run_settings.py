"""Which settings of a run the selection takes over."""

import pytest

from segray.predict.settings import PredictSettings
from segray.selection.checks import Run
from segray.selection.second_pass import MeasureMaps, task_of
from segray.selection.settings import SelectSettings


def test_a_pass_blurs_nothing() -> None:
    there = {"sources": ["/photos"], "weights": "model.pt", "batch_size": 3}
    record = {"settings": there | {"blur": ["face"], "blur_margin": 0.5}}
    settings = SelectSettings(run=["/maps"], output="/next.parquet", budget=1)
    task = task_of(settings, "predict", record)
    assert isinstance(task, MeasureMaps)
    assert isinstance(task.settings, PredictSettings)
    assert (task.settings.blur, task.settings.blur_margin, task.settings.batch_size) == ([], 0.2, 3)


@pytest.mark.parametrize(
    ("known", "threshold"),
    [({"score_threshold": 0.0}, 0.0), ({"score_threshold": 0.3}, 0.3), ({}, 0.5), (None, 0.5)],
)
def test_a_threshold_of_zero_is_one(known: dict[str, float] | None, threshold: float) -> None:
    assert Run("annotate", {"settings": known}).threshold == threshold
