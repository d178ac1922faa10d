"""What every job does around its own work."""

from types import SimpleNamespace
from typing import Any

import pytest

from segray.errors import ExitCode, HeldError, SettingsError
from segray.run import Problems, check_same, device_of, exit_code


def failing(error: SettingsError) -> None:
    raise error


def test_all_problems_are_one_error_and_what_is_right_is_returned() -> None:
    problems = Problems()
    assert problems.attempt(lambda: 7) == 7
    assert not problems
    assert problems.attempt(lambda: failing(SettingsError("output: a", "output: b"))) is None
    assert problems.attempt(lambda: failing(SettingsError("data: c"))) is None
    assert problems
    assert problems.error().lines == ("output: a", "output: b", "data: c")


def test_another_run_on_the_output_is_no_bad_setting() -> None:
    problems = Problems()
    with pytest.raises(HeldError):
        problems.attempt(lambda: failing(HeldError("output: is being written")))
    assert not problems


@pytest.mark.parametrize(("share", "most", "code"), [(0.0, 0.0, 0), (0.1, 0.1, 0), (0.11, 0.1, 3), (1, 1, 0)])
def test_rejects_decide_the_exit_code(share: float, most: float, code: int) -> None:
    assert exit_code(share, most) is ExitCode(code)


def test_every_setting_that_differs_is_named() -> None:
    there, here = {"tile": 512, "crs": "a", "kept": 1}, {"tile": 1024, "crs": "a", "new": None}
    check_same(there, here, ("crs", "new"), "out", "made")
    with pytest.raises(SettingsError) as raised:
        check_same(there, here, ("tile", "crs", "kept"), "out", "begun")
    first, *others = raised.value.lines
    assert first.startswith("output: out was begun with other settings;")
    assert others == ["  tile: 512 there, 1024 now", "  kept: 1 there, None now"]


@pytest.mark.parametrize(
    ("asked", "gpus", "device"), [("auto", 2.0, "cuda"), ("auto", 0.0, "cpu"), ("cpu", 2.0, "cpu")]
)
def test_the_device_is_the_clusters(asked: str, gpus: float, device: str) -> None:
    ray: Any = SimpleNamespace(in_cluster=True, cluster=lambda: SimpleNamespace(gpus=gpus))
    assert device_of(asked, ray) == device


def test_without_a_cluster_it_is_this_machines() -> None:
    ray: Any = SimpleNamespace(in_cluster=False)
    assert device_of("cpu", ray) == "cpu"
    with pytest.raises(SettingsError, match="device: 'cuda:99' cannot be used here"):
        device_of("cuda:99", ray)
