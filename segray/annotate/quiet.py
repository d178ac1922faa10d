"""Other libraries' noise goes to a file, so that the terminal shows progress, errors and the summary only."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segray.errors import JobFailedError

LOGGERS = ("ray", "ray.data", "py.warnings")


@contextmanager
def noise_to_file() -> Iterator[Path]:
    """What C++ code and child processes write to stderr, and Python warnings, go to the file that is given.

    Our own `sys.stderr` still reaches the terminal, through a copy of the descriptor. The file is removed
    at the end unless the job failed.
    """
    descriptor, name = tempfile.mkstemp(prefix="segray-", suffix="-ray.log")
    log, keep = Path(name), False
    logging.captureWarnings(True)
    try:
        with _stderr_to(descriptor):
            yield log
    except (JobFailedError, KeyboardInterrupt):
        keep = True
        raise
    finally:
        logging.captureWarnings(False)
        os.close(descriptor)
        if not keep:
            log.unlink(missing_ok=True)


@contextmanager
def _stderr_to(descriptor: int) -> Iterator[None]:
    try:
        on_terminal = sys.stderr.fileno() == 2
    except (OSError, ValueError):  # a test's or a notebook's stderr is no descriptor
        on_terminal = False
    if not on_terminal:
        yield
        return
    terminal, ours = os.dup(2), sys.stderr
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(os.dup(terminal), "w", buffering=1, encoding=ours.encoding, errors="replace")
    try:
        yield
    finally:
        sys.stderr.close()
        sys.stderr = ours
        os.dup2(terminal, 2)
        os.close(terminal)


def loggers_to(log: Path) -> None:
    """Ray's loggers write to `log` and nowhere else; call after Ray has set them up."""
    handler = logging.FileHandler(log, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for old in logger.handlers:
            if isinstance(old, logging.StreamHandler) and not isinstance(old, logging.FileHandler):
                old.setLevel(logging.CRITICAL + 1)
        logger.addHandler(handler)
        logger.propagate = False
