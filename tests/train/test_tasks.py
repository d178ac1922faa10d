"""The protocol of training tasks: what carries samples, and who knows which task is trained."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from segray.arrow_rows import packed, unpacked
from segray.train.collate import SAMPLES, Arrays, sample_row, samples_in
from segray.train.settings import TrainSettings
from segray.train.tasks import kind_of
from tests.test_import_directions import PACKAGE, ours

SAMPLE: dict[str, Arrays] = {
    "näme/1.png": {
        "pixels": np.arange(24, dtype=np.uint8).reshape(3, 2, 4),
        "boxes": np.random.default_rng(0).random((5, 4), np.float32),
        "labels": np.array([1, 2**40, -3], np.int64),
        "mirrored": np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::-1],
    },
    "none": {"boxes": np.zeros((0, 4), np.float32), "masks": np.zeros(0, np.uint8)},
}


@pytest.mark.parametrize("names", [list(SAMPLE), ["none"], []])
def test_arrays_come_over_as_they_are(names: list[str]) -> None:
    """By way of the table that a loader gives: names, order, types, shapes and every bit."""
    table = pa.Table.from_pylist([sample_row(name, SAMPLE[name]) for name in names], SAMPLES)
    (back,) = unpacked(packed(table))
    found = samples_in(back)
    assert [name for name, _ in found] == names
    for name, arrays in found:
        assert list(arrays) == list(SAMPLE[name])
        for key, array in arrays.items():
            expected = SAMPLE[name][key]
            assert array.dtype == expected.dtype
            assert array.shape == expected.shape
            assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["job", "trainer", "loader", "loop", "train_step", "sampler", "collate"])
def test_only_the_tasks_know_each_other(name: str) -> None:
    """A third task changes none of these."""
    known = ours(PACKAGE / f"train/{name}.py", lazily=True)
    assert not {each for each in known if each.startswith(("train.tasks.", "train.transforms."))}


@pytest.mark.parametrize(("arch", "task"), [("unet", "SemanticTask"), ("compact-maskrcnn", "InstanceTask")])
def test_the_architecture_names_the_task(arch: str, task: str) -> None:
    settings = TrainSettings(data="data", output="out", arch=arch)
    assert kind_of(settings).__name__ == task


def test_listing_loads_no_torch() -> None:
    """What is wrong with data is told before torch is loaded, which takes seconds."""
    code = "import sys, segray.train.job, segray.train.tasks.semantic, segray.train.tasks.instance; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
