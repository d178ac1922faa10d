"""Ray's workers for the tests, forked from a process that has imported already what they import.

Each worker of Ray is a new Python, which takes 3 to 7 seconds of a core to import Ray, torch and torchvision;
the tests start some hundreds. Ray starts `setup_worker_path` to become one; for the tests' Rays that is this
file. It hands over what it was given (arguments, environment, folder, files, blocked signals) and stays as
long as the worker does. Each node has a server, which ends with its raylet. Ray's own workers have those
tests that start `segray` as users do (`test_own_ray`, `test_readme`) or measure its memory.
"""

import fcntl
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

NO_JOB = "ffffffff"
"""Ray reads RAY_JOB_ID when it is imported; a worker without a job takes the one of its first task."""
TRAINS = "WARM_WORKERS_TRAIN"
"""0 in the environment of a run whose workers need nothing of training."""
_SERVER, _READY = "warm", b"r"


@contextmanager
def used() -> Iterator[None]:
    """A Ray that is started in here has such workers."""
    from ray._private.parameter import RayParams

    original = RayParams.__init__

    def made(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        self.setup_worker_path = __file__

    with mock.patch.object(RayParams, "__init__", made):
        yield


def ask(folder: Path) -> None:
    """Have a worker of this raylet's forked, and return at its end."""
    files = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    files = [file for file in files if os.path.exists(f"/proc/self/fd/{file}")]  # noqa: PTH110 - not the listing's own
    words = {
        "argv": sys.argv[1:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "files": files,
    }
    message = json.dumps(words).encode()
    here, there = socket.socketpair()
    server, started = _connected(folder / f"{_SERVER}-{os.getppid()}")
    with server, here:
        with there:
            socket.send_fds(server, [len(message).to_bytes(8, "little")], [there.fileno(), *files])
        here.sendall(message)
        here.recv(1)
    if started is not None:
        started.wait()  # whoever looks for Ray's processes finds them below Ray's


def _connected(place: Path) -> tuple[socket.socket, "subprocess.Popen[bytes] | None"]:
    """To the server there; the first who asks starts it, with the environment of Ray's workers."""
    server, started = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), None
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            environment = {**os.environ, "RAY_JOB_ID": NO_JOB, "OPENBLAS_NUM_THREADS": "1"}
            command = [sys.executable, __file__, "serve", str(place), str(os.getppid())]
            started = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
            )
            assert started.stdout is not None
            assert started.stdout.read(1) == _READY
        server.connect(str(place))
    return server, started


def serve(place: Path, raylet: str) -> None:
    """Fork a worker for each that asks, until the raylet or its folder is gone."""
    sys.path[0] = str(Path(__file__).parents[1])
    _import_all()
    gc.collect()
    gc.freeze()  # what is collected in a worker would copy all of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(place))
        server.listen(64)
        server.settimeout(1)
        os.write(1, _READY)
        while place.exists() and Path("/proc", raylet, "exe").exists():
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            client.settimeout(None)
            with client:
                length, files, _, _ = socket.recv_fds(client, 8, 250)
            if os.fork() == 0:
                server.close()
                _become(files[0], files[1:], int.from_bytes(length, "little"))
            for file in files:
                os.close(file)


def _import_all() -> None:
    """What workers import, without a draw from Ray's random numbers: all would go on from there alike."""
    import ray.actor

    drawn = mock.Mock(from_random=lambda: ray.ActorClassID(os.urandom(ray.ActorClassID.size())))
    with mock.patch.object(ray.actor, "ActorClassID", drawn):
        from segray.models.imports import import_torchvision

        import_torchvision()
        import segray.annotate.predictor
        import segray.bulk.pipeline
        import segray.predict.predictor

        if os.environ.get(TRAINS, "1") == "1":
            import segray.train.feed.stream
            import segray.train.trainer  # noqa: F401


def _become(line: int, files: list[int], length: int) -> None:
    """This process as the worker that was asked for."""
    import runpy

    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.utils import update_envs
    from ray._private.workers.setup_worker import parser

    with os.fdopen(os.dup(line), "rb") as given:
        words = json.loads(given.read(length))
    above = max(line, *files, *words["files"]) + 1
    os.dup2(line, above)  # never closed: its end is the end of this process
    for number, file in enumerate(files, above + 1):
        os.dup2(file, number)
    for number, file in enumerate(words["files"], above + 1):
        os.dup2(number, file, inheritable=True)
    os.closerange(above + 1, above + 1 + len(files))
    for file in {line, *files} - set(words["files"]):
        os.close(file)
    os.setpgid(0, 0)  # Ray ends a worker with its process group
    os.environ.clear()
    os.environ.update(words["environment"])
    os.chdir(words["folder"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, words["blocked"])
    known, sys.argv = parser.parse_known_args(words["argv"])
    context: Any = RuntimeEnvContext
    update_envs(context.deserialize(known.serialized_runtime_env_context or "{}").env_vars)
    sys.path[0] = str(Path(sys.argv[0]).parent)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        os._exit(1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]), sys.argv[3])
    else:
        ask(Path(next(word for word in sys.argv if word.startswith("--temp-dir=")).partition("=")[2]))
