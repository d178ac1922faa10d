"""What broke a job, with its traceback, goes where Ray's messages are: the terminal shows one line of it."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segray.errors import JobFailedError


@contextmanager
def failure_to(log: Path) -> Iterator[None]:
    """Append the traceback of a JobFailedError, with those of its causes, to `log`."""
    try:
        yield
    except JobFailedError as error:
        with log.open("a", encoding="utf-8") as file:
            file.writelines(traceback.format_exception(error))
        raise
