"""`segray doctor` tells what slows a machine down."""

import sys
from pathlib import Path

import pytest

from segray.doctor import findings


def test_packages_that_each_worker_compiles_again_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert next(each for each in findings() if each.what == "bytecode").works
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    told = next(each for each in findings() if each.what == "bytecode")
    assert not told.works
    assert not told.needed
    assert "PYTHONDONTWRITEBYTECODE" in told.told
