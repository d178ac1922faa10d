"""Commands and webhooks are told; what fails costs a warning that shows no secret."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from segray.retrain.notify import notify

RECORD = {"outcome": "refused", "reasons": ["kein Gewinn: 0,1 ü"], "exit_code": 5}


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """(Address, what was posted); a path that ends with `bad` is refused."""
    posted = list[dict[str, object]]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append({"type": self.headers["Content-Type"], **json.loads(body)})
            self.send_response(403 if self.path.endswith("bad") else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret-token", posted
        server.shutdown()


def test_a_webhook_gets_the_record(hook: tuple[str, list[dict[str, object]]]) -> None:
    address, posted = hook
    notify([SecretStr(address)], RECORD)
    assert posted == [{"type": "application/json", **RECORD}]


def test_a_command_gets_it_on_its_stdin(tmp_path: Path) -> None:
    target = tmp_path / "with blank.json"
    notify([SecretStr(f"tee '{target}'")], RECORD)
    assert json.loads(target.read_text()) == RECORD


def test_what_fails_is_said_without_what_it_is(
    hook: tuple[str, list[dict[str, object]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, posted = hook
    failing = [
        f"{address}/bad",
        "http://127.0.0.1:9/secret-token",
        "/no/such/secret-token",
        f"{sys.executable} -c 'raise SystemExit(7)' secret-token",
        "unbalanced 'secret-token",
    ]
    last = tmp_path / "last.json"
    notify([*map(SecretStr, failing), SecretStr(f"tee {last}")], RECORD)
    told = capsys.readouterr().err
    assert "secret-token" not in told
    assert "number 1 failed: HTTP 403" in told
    assert "number 4 failed: it ended with exit code 7" in told
    assert told.count(" failed: ") == len(failing)
    assert json.loads(last.read_text()) == RECORD
    assert len(posted) == 1


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
    assert "notify: number 1 failed" in err
    assert "token" not in err


def test_a_server_that_answers_rubbish_costs_a_warning(
    rubbish: str, capsys: pytest.CaptureFixture[str]
) -> None:
    notify([SecretStr(rubbish)], {"outcome": "promoted"})
    err = capsys.readouterr().err
    assert "notify: number 1 failed" in err
    assert "token" not in err
