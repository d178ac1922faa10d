"""The folders of rounds: all of them, in order, on a storage that fails at times, and damaged ones."""

import json
from pathlib import Path

import pytest

from segray.errors import JobFailedError
from segray.output.folder import Output
from segray.retrain.rounds import DECISION, ROUND, rounds
from segray.storage import StorageSettings
from tests.faults import failing
from tests.servers import Server


def test_rounds_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("0002", "10000", "9999", "notes", "²"):
        (tmp_path / "rounds" / name).mkdir(parents=True)
    store = Output(str(tmp_path), StorageSettings())
    assert [each.number for each in rounds(store, str(tmp_path))] == [2, 9999, 10000]


def test_a_damaged_round_is_told(tmp_path: Path) -> None:
    (tmp_path / "rounds/0001").mkdir(parents=True)
    store = Output(str(tmp_path), StorageSettings())
    (now,) = rounds(store, str(tmp_path))
    assert now.read_json(ROUND) is None
    for name in (ROUND, DECISION):
        for damage in ("{", "[]", json.dumps({"task": "instance"})):
            (tmp_path / "rounds/0001" / name).write_text(damage)
            with pytest.raises(JobFailedError, match=f"{name} is damaged"):
                now.read_json(name)


def test_a_storage_that_fails_once_is_asked_again(s3_server: Server) -> None:
    """And the rounds are all there, as a new round would be begun in place of the last one."""
    s3_server.put("retrained/rounds/0007/round.json", b"{}")
    with failing(s3_server, 503, times=1) as proxy:
        url = s3_server.url("retrained")
        found = rounds(Output(url, s3_server.storage_at(proxy.endpoint)), url)
        assert proxy.failed[503] == 1
    assert [each.number for each in found] == [7]
