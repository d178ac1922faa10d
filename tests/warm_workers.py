"""Ray's workers for the tests, forked from a process that has imported already what they import.

Each worker of Ray is a new Python, which takes 3 to 7 seconds of a core to import Ray, torch and torchvision;
the tests start some hundreds. Ray starts `setup_worker_path` to become one; for the tests' Rays that is this
file. It hands over what it was given (arguments, environment, folder, files, blocked signals) and stays as
long as the worker does. The process that they are forked from is the driver's, forked itself from one that
`multiprocessing` has for a session of tests, or each raylet's. Ray's own workers have those tests that start
`segray` as users do (`test_own_ray`, `test_readme`) or measure its memory.
"""

import atexit
import fcntl
import gc
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

_ENVIRONMENT = {"RAY_JOB_ID": "ffffffff", "OPENBLAS_NUM_THREADS": "1"}
"""Ray reads RAY_JOB_ID when it is imported; a worker without a job takes the one of its first task. Also
RAY_RAYLET_PID: a worker ends when that process is gone."""
TRAINS = "WARM_WORKERS_TRAIN"
"""0 in the environment of a run whose workers need nothing of training."""
_SERVER, _READY = "warm", b"r"
_SERVED = "WARM_WORKERS_OF"
"""Process number of the driver that has a server."""
_LENT = set[int]()
_ROOT = Path(__file__).parents[1]


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


@contextmanager
def preloaded() -> Iterator[None]:
    """The first process that `multiprocessing` forks in here starts its server, which imports them all."""
    import multiprocessing

    multiprocessing.set_forkserver_preload(["tests.warm_imports"])
    words = {**_ENVIRONMENT, "PYTHONPATH": str(_ROOT), "RAY_RAYLET_PID": str(os.getpid())}
    with mock.patch.dict(os.environ, words):
        yield


@contextmanager
def lent() -> Iterator[None]:
    """A Ray that is started in here has workers of a server that ends with this process."""
    import multiprocessing

    driver = os.getpid()
    if driver not in _LENT:
        with _listening(driver) as server, preloaded():
            forks = multiprocessing.get_context("forkserver")
            process = forks.Process(target=_serve_for, args=(server, driver), daemon=True)
            process.start()
        atexit.register(process.kill)  # before multiprocessing waits for it, which waits for us
        _LENT.add(driver)
    with mock.patch.dict(os.environ, {_SERVED: str(driver)}):
        yield


def serve_own() -> None:
    """Fork a server for the workers of this process's Ray: both have imported already what they import."""
    driver = os.getpid()
    os.environ[_SERVED] = str(driver)
    with _listening(driver) as server:
        if os.fork() == 0:
            try:
                _serve_for(server, driver)
            finally:
                os._exit(0)


def _listening(driver: int) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(f"\0{_SERVER}-{driver}")
    server.listen(64)
    return server


def _serve_for(server: socket.socket, driver: int) -> None:
    """Until that process is gone; with nothing of its own that somebody would wait for."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    with open(os.devnull, "r+b") as nothing:  # noqa: PTH123
        for number in range(3):
            os.dup2(nothing.fileno(), number)
    _serve(server, lambda: _runs(driver))


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
    if driver := os.environ.get(_SERVED):
        server, started = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), None
        server.connect(f"\0{_SERVER}-{driver}")
    else:
        server, started = _connected(folder / f"{_SERVER}-{os.getppid()}")
    with server, here:
        with there:
            socket.send_fds(server, [len(message).to_bytes(8, "little")], [there.fileno(), *files])
        here.sendall(message)
        raylet = os.getppid()
        while os.getppid() == raylet and not select.select([here], [], [], 0.5)[0]:
            pass
    if started is not None:
        started.wait()  # whoever looks for Ray's processes finds them below Ray's


def _connected(place: Path) -> tuple[socket.socket, "subprocess.Popen[bytes] | None"]:
    """To the server there; the first who asks starts it, with the environment of Ray's workers."""
    server, started = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), None
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            environment = os.environ | _ENVIRONMENT
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
    sys.path[0] = str(_ROOT)
    import_all(training=os.environ.get(TRAINS, "1") == "1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(place))
        server.listen(64)
        os.write(1, _READY)
        _serve(server, lambda: place.exists() and _runs(raylet))


def _runs(process: object) -> bool:
    return Path("/proc", str(process), "exe").exists()


def _serve(server: socket.socket, wanted: Callable[[], bool]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server.settimeout(0.5)
    while wanted():
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


def import_all(*, training: bool) -> None:
    """What workers import, without a draw from Ray's random numbers: all would go on from there alike."""
    import ray.actor

    drawn = mock.Mock(from_random=lambda: ray.ActorClassID(os.urandom(ray.ActorClassID.size())))
    with mock.patch.object(ray.actor, "ActorClassID", drawn):
        from segray.models.imports import import_torchvision

        import_torchvision()
        import segray.annotate.predictor
        import segray.bulk.pipeline
        import segray.predict.predictor

        if training:
            import segray.train.loader
            import segray.train.tasks.instance_training
            import segray.train.tasks.semantic_training
            import segray.train.trainer  # noqa: F401
    gc.collect()
    gc.freeze()  # what is collected in a fork would copy all of it


def _become(line: int, files: list[int], length: int) -> None:
    """This process as the worker that was asked for."""
    import runpy

    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.utils import update_envs
    from ray._private.workers.setup_worker import parser
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    with os.fdopen(os.dup(line), "rb") as given:
        words = json.loads(given.read(length))
    above = max(line, *files, *words["files"]) + 1
    os.dup2(line, above)  # closed by none: its end is the end of this process, and the other way round
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
    Config.initialize("")  # both keep what they read before
    AuthenticationTokenLoader.instance().reset_cache()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, words["blocked"])
    known, sys.argv = parser.parse_known_args(words["argv"])
    kind: Any = RuntimeEnvContext
    context = kind.deserialize(known.serialized_runtime_env_context or "{}")
    update_envs(context.env_vars)
    if context.command_prefix:  # of a job's working directory
        cd, folder, _ = context.command_prefix
        assert cd == "cd"
        os.chdir(shlex.split(folder)[0])
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [str(Path(sys.argv[0]).parent), *(each for each in more if each not in sys.path)]
    threading.Thread(target=_end_with, args=(above,), daemon=True).start()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        os._exit(1)


def _end_with(line: int) -> None:
    """Since Ray looks for the raylet whose number the environment had when it was imported."""
    os.read(line, 1)
    os._exit(1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]), sys.argv[3])
    else:
        ask(Path(next(word for word in sys.argv if word.startswith("--temp-dir=")).partition("=")[2]))
