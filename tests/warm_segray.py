"""`segray` as a process of its own that has imported already what it imports, as have its Ray's workers.

`python -m tests.warm_segray` imports it itself; `WarmSegray` is forked from a process that has.
"""

import importlib
import multiprocessing
import multiprocessing.process
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from segray.cli import main as segray
from segray.cluster import set_environment
from tests import warm_workers

_FORKS = multiprocessing.get_context("forkserver")


def main() -> int:
    """Its exit code."""
    set_environment()  # before Ray is imported
    os.environ[warm_workers.TRAINS] = str(int(sys.argv[1] in ("train", "retrain")))
    with warm_workers.used():
        return segray()


class WarmSegray(subprocess.Popen[str]):
    """`Popen` of a module of the tests that has a `main`, as a process group of its own."""

    _process: multiprocessing.process.BaseProcess

    def __init__(self, module: str, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        super().__init__(
            [module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )

    def _execute_child(self, args: list[str], *rest: Any) -> None:
        """Of what `Popen` hands over: the command, the environment, the ends of the pipes."""
        environment = rest[5]
        files = [Connection(os.dup(rest[number]), readable=False) for number in (12, 14)]
        self._process = _FORKS.Process(target=_run, args=(args, dict(environment), *files))
        with warm_workers.preloaded():
            self._process.start()
        for each in (*files, *(Connection(rest[number], readable=False) for number in (12, 14))):
            each.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        self._process.join(timeout)
        if self._internal_poll() is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


def _run(command: list[str], environment: dict[str, str], output: Connection, errors: Connection) -> None:
    """In the new process."""
    import atexit

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    for number, file in enumerate((output, errors), 1):
        os.dup2(file.fileno(), number)
        file.close()
    warm_workers.serve_own()
    sys.argv = command
    try:
        sys.exit(importlib.import_module(command[0]).main())
    finally:
        atexit._run_exitfuncs()


if __name__ == "__main__":
    raise SystemExit(main())
