"""Other libraries' noise goes to a file, so that the terminal shows progress, errors and the summary only."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGERS = ("ray", "ray.data", "py.warnings")


@contextmanager
def noise_to(log: Path) -> Iterator[None]:
    """While it lasts, what C++ code and child processes write to stderr, and Python warnings, go to `log`.

    Our own `sys.stderr` still reaches the terminal, through a copy of the descriptor.
    """
    try:
        on_terminal = sys.stderr.fileno() == 2
    except (OSError, ValueError):  # a test's or a notebook's stderr is no descriptor
        on_terminal = False
    logging.captureWarnings(True)
    if not on_terminal:
        yield
        return
    terminal, ours = os.dup(2), sys.stderr
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
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
