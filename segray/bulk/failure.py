"""An output that takes nothing is bad usage."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from segray.bulk.lock import Lock
from segray.bulk.store import Store
from segray.errors import JobFailedError, SettingsError
from segray.sources.roundtrips import describe


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
