"""`segray submit --address`, on a real Ray cluster with token authentication, from another working folder."""

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import requests

from segray.cli import main
from tests.retrain.semantic import write_config, write_squares
from tests.submit.ray_head import Head, ray_head
from tests.train.squares import SMALL, squares

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "tests/data/nuclei/images"
_SLOW = """
import time
from pathlib import Path

import torch

class Slow(torch.nn.Module):
    digest = "1"
    categories = {1: "thing"}

    def forward(self, images):
        time.sleep(0.1 if Path("GATE").exists() else 4.0)
        found = {"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([1])}
        found["scores"] = torch.tensor([0.9])
        return [found | {"masks": torch.ones(1, 1, *image.shape[1:])} for image in images]

def make():
    return Slow()
"""

FOLLOW = """
import sys
from segray.command_line import load_settings
from segray.submit.ray_cluster import RayCluster
from segray.submit.settings import SubmitSettings

cluster = RayCluster(load_settings(SubmitSettings, ["--address", sys.argv[1]], ""))
lines = "for i in $(seq 40); do echo line $i; sleep 0.2; done; exit 7"
cluster._client.submit_job(entrypoint=lines, submission_id="lines")
sys.exit(cluster.follow("lines"))
"""


def slow_model(gate: Path) -> str:
    """A module with a model that takes four seconds an image until the file `gate` is there."""
    return _SLOW.replace("GATE", str(gate))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("head")) as head:
        yield head


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Where the user stands: nothing of the project is there."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/slow_model.py").write_text(slow_model(tmp_path / "gate"))
    return tmp_path / "elsewhere"


Submit = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def submit(head: Head, elsewhere: Path) -> Submit:
    """Starts `segray submit` as its user does."""

    def start(*words: str, address: str = head.address, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "segray.cli", "submit", "--address", address, *words],
            cwd=elsewhere, env=head.environment | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(Exit code, stdout, stderr)."""
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def jobs(head: Head) -> dict[str, Any]:
    """By submission id: those that do the user's work."""
    headers = {"Authorization": f"Bearer {head.token}"}
    found = requests.get(f"{head.address}/api/jobs/", headers=headers, timeout=30).json()
    return {job["submission_id"]: job for job in found if job["submission_id"]}


def everything(folder: Path) -> Iterator[Path]:
    """All files below: logs of Ray's processes and of jobs, packages, settings."""
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def wait_for(condition: Callable[[], bool], timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_logs_and_exit_codes_come_back(submit: Submit, tmp_path: Path, head: Head) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for photo in sorted(PHOTOS.glob("*.png"))[:3]:
        (photos / photo.name).symlink_to(photo)
    (photos / "broken.png").write_bytes(b"no picture")
    (tmp_path / "nothing").mkdir()
    output = ("--output", f"{tmp_path}/out", "--weights", "nuclei-small")
    secret = {"SEGRAY_STORAGE__S3__KEY": "mine", "SEGRAY_STORAGE__S3__SECRET": "the-secret-itself"}
    code, out, err = ended(
        submit("--shared-filesystem", "annotate", str(photos), *output, "--max-rejects", "1", **secret)
    )
    assert code == 0, err
    assert "4 items: 3 annotated, 1 rejected" in out
    assert "segray: submit: sent annotate-" in err
    kept, _ = err.splitlines()
    assert "not sent, because secret: storage.s3.key, storage.s3.secret" in kept
    assert not any(b"the-secret-itself" in path.read_bytes() for path in everything(head.session))
    assert "the-secret-itself" not in f"{jobs(head)}"
    again = [  # together, since each of them waits for most of its time
        submit("--shared-filesystem", "annotate", str(photos), *output),
        submit("--shared-filesystem", "annotate", str(photos), *output, "--score-threshold", "0.7"),
        submit("--shared-filesystem", "annotate", f"{tmp_path}/nothing", "--output", f"{tmp_path}/none"),
    ]
    (rejected, _, _), (refused, told, _), (nothing, _, _) = map(ended, again)
    assert (rejected, refused, nothing) == (3, 2, 4)
    assert "score_threshold: 0.5 there, 0.7 now" in told
    assert not [name for name in jobs(head) if name.startswith("segray-look")]


def test_training(submit: Submit, tmp_path: Path) -> None:
    for split in ("train", "val"):
        squares(tmp_path / "squares", split, 2, seed=1)
    words = ("train", "--data", f"{tmp_path}/squares", "--output", f"{tmp_path}/model", "--epochs", "1")
    code, out, err = ended(submit("--shared-filesystem", *words, *SMALL))
    assert code == 0, out + err
    assert "epoch 1" in out
    assert (tmp_path / "model/model.pt").is_file()


def test_a_job_with_a_name_is_met_again(submit: Submit, head: Head, tmp_path: Path) -> None:
    """While it runs, when it was stopped, and when the head was killed and started anew: the rows are exact.

    The model is a module of the user's own, which is sent.
    """
    photos = tmp_path / "photos"
    photos.mkdir()
    for photo in sorted(PHOTOS.glob("*.png"))[:9]:
        (photos / photo.name).symlink_to(photo)
    model = ("--weights", "python:slow_model:make", "--batch-size", "1", "--commit-every-s", "1")
    words = (
        "--shared-filesystem",
        "--name",
        "slow",
        "annotate",
        str(photos),
        "--output",
        f"{tmp_path}/out",
        *model,
    )
    first = submit(*words)
    staged = tmp_path / "out/_segray/staging"
    wait_for(lambda: len(list(staged.glob("*.parquet"))) >= 1)
    second, other = submit(*words), submit(*words, "--score-threshold", "0.7")
    assert second.stderr is not None
    assert "slow is running already; following it" in second.stderr.readline()
    second.send_signal(signal.SIGINT)
    code, _, err = ended(second)
    assert code == 130
    assert "slow continues; to follow it: the same command; to stop it: RAY_AUTH_MODE=token ray job" in err
    code, _, err = ended(other)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "slow is another job" in err
    head.kill()
    head.start()
    code, _, err = ended(first)
    assert code == 1
    sent, lost, gone = err.splitlines()
    assert "sent slow to" in sent
    assert f"the connection to {head.address} is lost; retrying for 600 s" in lost
    assert "has no job slow any more: its head was restarted" in gone

    before = set(staged.glob("*.parquet"))
    first = submit(*words)
    wait_for(lambda: bool(set(staged.glob("*.parquet")) - before))
    stop = [str(Path(sys.executable).with_name("ray")), "job", "stop", "--address", head.address, "slow"]
    subprocess.run(stop, env=head.environment, check=True, capture_output=True)
    code, out, err = ended(first)
    assert code in (1, 130), err
    assert "segray: annotate: " in out
    (tmp_path / "gate").touch()
    code, out, err = ended(submit(*words))
    assert code == 0, err
    assert "sent slow-2 to" in err
    uris = pq.read_table(tmp_path / "out/images")["uri"].to_pylist()
    assert sorted(Path(uri).name for uri in uris) == sorted(photo.name for photo in photos.iterdir())
    assert {"slow", "slow-2"} == {name for name in jobs(head) if name.startswith("slow")}


class Tunnel(threading.Thread):
    """To a port, through a port of its own, until it is cut; then it may be dug again."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port, self._server = port, socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._ends = list[socket.socket]()
        self.is_cut = False
        self.start()

    def run(self) -> None:
        while True:
            here, _ = self._server.accept()
            if self.is_cut:
                here.close()
                continue
            there = socket.create_connection(("127.0.0.1", self._port))
            self._ends += [here, there]
            for pair in ((here, there), (there, here)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Every connection breaks, and new ones too."""
        self.is_cut = True
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_line_is_printed_once_through_connections_that_break(head: Head, elsewhere: Path) -> None:
    """In a process of its own, for Ray reads its token when it is imported."""
    tunnel = Tunnel(head.ports["dashboard-port"])
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", FOLLOW, tunnel.address],
        env=head.environment, cwd=elsewhere, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    printed = list[str]()
    for cut_after in ("line 5\n", "line 20\n"):
        while not printed or printed[-1] != cut_after:
            printed.append(process.stdout.readline())
            assert printed[-1]
        tunnel.cut()
        time.sleep(1)
        tunnel.is_cut = False
    assert process.stderr is not None
    printed += process.stdout.readlines()  # `communicate` knows nothing of what is buffered
    err = process.stderr.read()
    lines = [line.strip() for line in printed if line.startswith("line ")]
    assert lines == [f"line {number}" for number in range(1, 41)]
    assert process.wait(30) == 7
    assert err.count("is lost; retrying") == 2
    assert err.count("reconnected") == 2


def test_what_is_wrong_is_told_in_one_line(submit: Submit, tmp_path: Path, elsewhere: Path) -> None:
    """Before anything is sent."""
    words = ("annotate", "s3://bucket/photos", "--output", "s3://bucket/labels")
    (elsewhere / "segray-9.9.9.dist-info").mkdir()
    (elsewhere / "segray-9.9.9.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: segray\nVersion: 9.9.9\n"
    )
    here = os.pathsep.join([str(elsewhere), str(ROOT)])
    (tmp_path / "home").mkdir()
    wrong = {
        "rejects the token of RAY_AUTH_TOKEN": submit(*words, RAY_AUTH_TOKEN="0" * 64),
        "requires a token: set RAY_AUTH_TOKEN": submit(
            *words, RAY_AUTH_TOKEN="", RAY_AUTH_MODE="disabled", HOME=f"{tmp_path}/home"
        ),
        "no Ray job server answers at http://127.0.0.1:1": submit(*words, address="http://127.0.0.1:1"),
        f"has segray {importlib.metadata.version('segray')} (Python": submit(*words, PYTHONPATH=here),
    }
    for told, process in wrong.items():
        code, out, err = ended(process)
        assert (code, out) == (2, ""), err
        (line,) = err.splitlines()
        assert line.startswith("segray: address: ")
        assert told in line


class Rubbish(BaseHTTPRequestHandler):
    """A server that knows its version, and then answers what no job server does."""

    jobs, sent = b"[]", b"<html>"

    def do_GET(self) -> None:
        self._answer(b'{"ray_version": "2.60.0"}' if "version" in self.path else self.jobs)

    def do_POST(self) -> None:
        if self.sent:
            self._answer(self.sent)
        self.close_connection = True

    def do_PUT(self) -> None:
        self._answer(b"{}")

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("jobs", "sent"), [(b'{"a": 1}', b""), (b"null", b""), (b"[]", b"<html>"), (b"[]", b"")]
)
def test_a_server_that_answers_rubbish(
    jobs: bytes, sent: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Rubbish, "jobs", jobs)
    monkeypatch.setattr(Rubbish, "sent", sent)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Rubbish)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    words = ("--any-version", "--name", "labels", "annotate", "s3://b/p", "--output", "s3://b/o")
    assert main(["submit", "--address", address, *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segray")]
    assert line.startswith("segray: address: ")
    assert ("the job may have been sent" in line) == (jobs == b"[]")
    server.shutdown()


def test_retraining(
    ray_session: None, submit: Submit, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first champion is made here; the cluster's is refused, with its report where all nodes see it."""
    monkeypatch.chdir(elsewhere)
    write_squares(tmp_path, 5, held_out=4)
    write_config(elsewhere, epochs=1, where=tmp_path)
    assert main(["retrain", "--config", "retrain.yaml"]) == 0
    write_squares(tmp_path, 8, held_out=4)
    write_config(elsewhere, epochs=1, where=tmp_path, margin=0.9)
    code, out, err = ended(submit("--shared-filesystem", "retrain", "--config", "retrain.yaml"))
    assert code == 5, out + err
    assert "refused: squares@" in out
    assert (tmp_path / "rounds/rounds/0002/report.html").is_file()
