"""A command and everything it starts: watched while it runs, or killed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.benchmarks.commands import ENVIRONMENT
from jobs.benchmarks.pictures import ROOT

SAMPLE_S = 0.3
LIMIT_S = 1800.0


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program in a session of its own; nothing of it is left at the end of the block.

    Raises RuntimeError with its last words when it ended by itself with anything but 0 or 130.
    """
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=words,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            kill(process)
        if process.returncode not in (0, 130, -signal.SIGKILL):
            words.seek(0)
            said = words.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(map(str, arguments))}: exit {process.returncode}\n{said}")


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a program and everything it started; no error where it has ended."""
    for victim in tree(process.pid) if process.poll() is None else ():
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    process.wait()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Poll until it holds. Raises RuntimeError when the program has ended and it still does not."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if (process.poll() is not None and not condition()) or time.monotonic() > deadline:
            raise RuntimeError(f"ended with {process.returncode}, or took too long, before what was awaited")
        time.sleep(0.01)


def tree(pid: int) -> set[int]:
    """`pid` and all processes that it started, directly or not."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = new = {pid}
    while new:
        new = {child for parent in new for child in children.get(parent, [])} - found
        found = found | new
    return found


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    """The most memory that a program and all it started hold at a time, until it ends."""
    most = 0
    while process.poll() is None:
        most = max(most, held_bytes(tree(process.pid)))
        time.sleep(SAMPLE_S)
    return most


def held_bytes(pids: Iterable[int]) -> int:
    """Own pages, shares of files, and shared memory, each once.

    Of proportional set sizes the part that is shared memory is left out, because it misses what no process
    has mapped (a decoder's pixels) and depends on who else has; instead the files in memory that the
    processes have open are counted by what they occupy.
    """
    total, shared = 0, dict[tuple[int, int], int]()
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines[1:]}
            total += sizes["Pss"] - sizes.get("Pss_Shmem", 0)
        for descriptor in _descriptors(pid):
            with suppress(OSError):
                if str(descriptor.readlink()).startswith(("/memfd:", "/dev/shm/")):
                    status = descriptor.stat()
                    shared[status.st_dev, status.st_ino] = status.st_blocks * 512
    return total + sum(shared.values())


def _descriptors(pid: int) -> list[Path]:
    with suppress(OSError):
        return list(Path(f"/proc/{pid}/fd").iterdir())
    return []
