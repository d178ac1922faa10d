"""How a job fails: tracebacks go where Ray's messages are, an output that takes nothing is bad usage."""

import errno
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from segray.bulk.lock import Lock
from segray.bulk.store import Store
from segray.errors import JobFailedError, SettingsError
from segray.sources.roundtrips import describe


@contextmanager
def failure_to(log: Path) -> Iterator[None]:
    """Append the traceback of a JobFailedError, with those of its causes, to `log`."""
    try:
        yield
    except JobFailedError as error:
        with log.open("a", encoding="utf-8") as file:
            file.writelines(traceback.format_exception(error))
        raise


@contextmanager
def lease(store: Store) -> Iterator[Lock]:
    """Hold the lease; raises SettingsError where it cannot be written: no work has begun.

    Rights alone do not tell before: root may write everywhere, but not into /proc or a read-only mount.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(Lock(store))
        except JobFailedError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and _is_refusal(cause):
                raise SettingsError(f"output: cannot write into {store.root}: {describe(cause)}") from error
            raise
        yield lock


def _is_refusal(error: OSError) -> bool:
    kinds = PermissionError | FileNotFoundError | NotADirectoryError
    return isinstance(error, kinds) or error.errno == errno.EROFS
