"""A program watched from outside: started with all its processes, its memory, a kill of the whole tree.

Memory is the sum over the driver and everything below it of PSS (private pages, and of shared ones each
process' part, so that Ray's object store and the decoders' shared files count once), from smaps_rollup.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.benchmarks.commands import ENVIRONMENT, ROOT

SAMPLE_S = 0.2
LIMIT_S = 3600.0


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program in the background; what is left of it is killed at the end.

    Raises RuntimeError with its last words when it ended by itself with anything but 0 (interrupts: 130).
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            kill(process)
        if process.returncode not in (0, 130, -signal.SIGKILL):
            said.seek(0)
            words = said.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(map(str, arguments))}: exit {process.returncode}\n{words}")


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a program and of everything below it; no error where it has ended."""
    for pid in tree(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Poll until it holds. Raises RuntimeError when the program has ended and it still does not."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if (process.poll() is not None and not condition()) or time.monotonic() > deadline:
            raise RuntimeError("the program ended, or took too long, before what was waited for")
        time.sleep(0.02)


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    """Waits for the program's end; the most memory that it and everything below it held at a time."""
    most = 0
    while process.poll() is None:
        most = max(most, sum(map(pss, tree(process.pid))))
        time.sleep(SAMPLE_S)
    return most


def tree(pid: int) -> set[int]:
    """`pid` and every process below it."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    below, last = {pid}, set[int]()
    while below != last:
        last = set(below)
        below |= {child for child, parent in parents.items() if parent in below}
    return below


def pss(pid: int) -> int:
    """Bytes of one process; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)
