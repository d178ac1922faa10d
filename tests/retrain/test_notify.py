"""Telling how a retraining ended: whatever the target is, the retraining has ended as it did."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from segray.retrain.notify import notify


@pytest.fixture
def rubbish() -> Iterator[str]:
    """A server that does not speak HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"rubbish\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/token"


@pytest.mark.parametrize(
    "target", ["", "  ", '"open', "no-such-command token", "https://host:token/", "sh -c 'exit 3'"]
)
def test_a_target_that_cannot_be_told_costs_a_warning(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "told.json"
    notify([SecretStr(target), SecretStr(f"tee {told}")], {"outcome": "promoted"})
    assert json.loads(told.read_text()) == {"outcome": "promoted"}
    err = capsys.readouterr().err
    assert "notify: number 1 was not told" in err
    assert "token" not in err


def test_a_server_that_answers_rubbish_costs_a_warning(
    rubbish: str, capsys: pytest.CaptureFixture[str]
) -> None:
    notify([SecretStr(rubbish)], {"outcome": "promoted"})
    err = capsys.readouterr().err
    assert "notify: number 1 was not told" in err
    assert "token" not in err
