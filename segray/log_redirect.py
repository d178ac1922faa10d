"""Redirect other libraries' output to a file: the terminal shows progress, errors and the summary only."""

import logging
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO

from segray.errors import NothingToDoError, SettingsError
from segray.log import LOG

LOGGERS = ("ray", "ray.data", "ray.train", "py.warnings")

_TIME = "@TIME@"
_NOW = f"s/{_TIME}/$(date -u +%Y-%m-%dT%H:%M:%S.000Z)/"
_SPEAK = f'trap "" TERM HUP; read word || printf "%s\\n" "$0" | sed "{_NOW}" >&2'
"""Shell script: print the first argument with the current time, unless a line arrives on stdin first."""


@contextmanager
def noise_to_file() -> Iterator[Path]:
    """Redirect output of C++ code and child processes, and Python warnings, to the yielded file.

    The traceback of a failure goes there too.

    Our own `sys.stdout` and `sys.stderr` still reach the terminal, through copies of the descriptors. The
    file is removed at the end unless the job failed.
    """
    descriptor, name = tempfile.mkstemp(prefix="segray-", suffix="-ray.log")
    log, keep = Path(name), False
    logging.captureWarnings(True)
    try:
        with _last_word(log), _noise_to(descriptor, "stdout"), _noise_to(descriptor, "stderr"):
            yield log
    except (SettingsError, NothingToDoError):
        raise
    except BaseException as error:
        keep = True
        with log.open("a", encoding="utf-8") as file:
            file.writelines(traceback.format_exception(error))
        raise
    finally:
        logging.captureWarnings(False)
        _loggers_from(log)
        os.close(descriptor)
        if not keep:
            log.unlink(missing_ok=True)


def _is_own(stream: TextIO, name: str) -> bool:
    """Return whether the stream is the process's own; in tests and notebooks it may be another one."""
    try:
        return stream.fileno() == {"stdout": 1, "stderr": 2}[name]
    except (OSError, ValueError):
        return False


@contextmanager
def _last_word(log: Path) -> Iterator[None]:
    """Print a message, from a second process, if this process is killed and cannot print its own.

    Ray's C++ code ends the process when Ray's own processes die (at once for the raylet, after a minute for
    the gcs_server); so do the out-of-memory killer and `kill -9`. A shell reads a pipe and prints the message
    if the pipe is closed without a line.
    """
    if not _is_own(sys.stderr, "stderr"):
        yield
        return
    line = LOG.line(
        "the job died without an error message: it was killed, memory ran out, or Ray's own processes died "
        f"(see {log}); what is committed is safe, run the same command again to continue",
        "error",
        _TIME,
    )
    waiting = subprocess.Popen(
        ["/bin/sh", "-c", _SPEAK, line],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # so that Ctrl-C does not reach it
    )
    try:
        yield
    finally:
        waiting.communicate(b"ended\n")


@contextmanager
def _noise_to(descriptor: int, name: Literal["stdout", "stderr"]) -> Iterator[None]:
    """Redirect what others write to the stream to `descriptor`; our own writes still reach the terminal."""
    ours: TextIO = getattr(sys, name)
    if not _is_own(ours, name):
        yield
        return
    number = ours.fileno()
    ours.flush()
    terminal = os.dup(number)
    os.dup2(descriptor, number)
    stream = os.fdopen(os.dup(terminal), "w", buffering=1, encoding=ours.encoding, errors="replace")
    setattr(sys, name, stream)
    try:
        yield
    finally:
        stream.close()
        setattr(sys, name, ours)
        os.dup2(terminal, number)
        os.close(terminal)


def loggers_to(log: Path) -> None:
    """Let Ray's loggers write to `log` and nowhere else; call after Ray has set them up.

    From INFO up: Ray Data's DEBUG lines grow with the job, by 600 MB a day.
    """
    handler = logging.FileHandler(log, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for old in logger.handlers:
            if isinstance(old, logging.StreamHandler) and not isinstance(old, logging.FileHandler):
                old.setLevel(logging.CRITICAL + 1)
        logger.addHandler(handler)
        logger.setLevel(max(logger.getEffectiveLevel(), logging.INFO))
        logger.propagate = False


def _loggers_from(log: Path) -> None:
    """Detach Ray's loggers from `log`: the next job of this process would create the removed file again."""
    for logger in map(logging.getLogger, LOGGERS):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == log:
                logger.removeHandler(handler)
                handler.close()
