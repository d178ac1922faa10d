"""`segray doctor` tells what slows a machine down."""

import json
import sys
from pathlib import Path

import pytest

from segray.cli import main
from segray.doctor import findings
from tests.faults import ignoring
from tests.servers import Server, env_of


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


@pytest.mark.parametrize("condition", ["", "If-None-Match", "If-Match"])
def test_a_storage_that_ignores_conditions_is_named(
    condition: str,
    s3_server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = s3_server.url(f"doctor/{tmp_path.name}")
    with ignoring(s3_server, condition or "nothing") as proxy:
        for name, value in env_of(s3_server.storage_at(proxy.endpoint)).items():
            monkeypatch.setenv(name, value)
        assert main(["doctor", url, str(tmp_path / "new/deep"), "s3://no-such-bucket/x", "--json"]) == 1
    found = {each["what"]: each for each in json.loads(capsys.readouterr().out)}
    assert found[url]["works"] == (not condition)
    assert (f"ignores {condition}: two runs" in found[url]["told"]) == bool(condition)
    assert found[str(tmp_path / "new/deep")]["works"]
    assert "there is no bucket or container no-such-bucket" in found["s3://no-such-bucket/x"]["told"]
    assert s3_server.names(f"doctor/{tmp_path.name}") == []
    assert not (tmp_path / "new").exists()
