"""A real Ray cluster of one node with its job server, token authentication on, on loopback."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import segray
from tests.submit.slurm_cluster import free_ports

START_S = 120.0


@dataclass
class Head:
    """One head node; it can be killed and started again under the same addresses."""

    folder: Path
    session: Path
    """Of Ray's files."""
    ports: dict[str, int]
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    cpus: int = 3
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Of the job server."""
        return f"http://127.0.0.1:{self.ports['dashboard-port']}"

    @property
    def environment(self) -> dict[str, str]:
        """Of its nodes, and of who may use it."""
        package = str(Path(segray.__file__).parents[1])
        return os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": package,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start(self) -> None:
        """Return once its job server answers."""
        options = [f"--{name}={port}" for name, port in self.ports.items()]
        command = [
            *(sys.executable, "-m", "tests.submit.ray_head", "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
            *(f"--num-cpus={self.cpus}", f"--temp-dir={self.session}", "--object-store-memory=200000000"),
            *options,
        ]
        with (self.folder / "head.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "head.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (self.folder / "head.log").read_text()[-3000:]
            time.sleep(0.3)

    def _answers(self) -> bool:
        request = urllib.request.Request(
            f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"}
        )
        with suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        """Its power fails: no process of it is left."""
        assert self.process is not None
        with suppress(psutil.NoSuchProcess):
            family = [*psutil.Process(self.process.pid).children(recursive=True)]
            for each in [psutil.Process(self.process.pid), *family]:
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def ray_head(folder: Path, cpus: int = 3) -> Iterator[Head]:
    """A head that runs; ended with all of its processes. Its sockets want a short path."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:
        head = Head(folder, Path(short), dict(zip(names, free_ports(len(names)), strict=True)), cpus=cpus)
        head.start()
        try:
            yield head
        finally:
            head.kill()


if __name__ == "__main__":  # the command `ray`, whose workers are forked
    import runpy

    from tests import warm_workers

    with warm_workers.used():
        runpy.run_module("ray.scripts.scripts", run_name="__main__")
