"""Exceptions and exit codes.

Two families. A `SegrayError` ends the command with its exit code and one line for each problem. An
`ItemError` affects one item only: it becomes a rejected row of the ledger.
"""

from enum import IntEnum
from typing import Literal, get_args

ErrorType = Literal[
    "missing", "corrupt", "truncated", "too_large", "unsupported", "timeout", "memory", "crashed", "storage"
]
ERROR_TYPES: tuple[str, ...] = get_args(ErrorType)


class ExitCode(IntEnum):
    """Exit code of the command; the same meaning for every verb."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REJECTED = 3
    NOTHING_TO_DO = 4
    REFUSED = 5
    INTERRUPTED = 130


class SegrayError(Exception):
    """Base of errors that end the command; `lines` go to stderr, one problem a line, without a traceback."""

    exit_code = ExitCode.FAILED

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class SettingsError(SegrayError):
    """Bad usage, invalid settings, or any other problem found before work begins."""

    exit_code = ExitCode.USAGE


class HeldError(SettingsError):
    """Another live run holds the output."""


class WrongTaskError(SettingsError):
    """A model does another task than the verb; the line says which verb uses it."""


class NothingToDoError(SegrayError):
    """Nothing to process: the sources list no item, or nothing is new."""

    exit_code = ExitCode.NOTHING_TO_DO


class JobFailedError(SegrayError):
    """The job failed after work began; running the same command again continues it."""


class ItemError(Exception):
    """One item cannot be processed: `error_type` and `reason` as the ledger records them."""

    def __init__(self, error_type: ErrorType, reason: str) -> None:
        super().__init__(reason)
        self.error_type: ErrorType = error_type
        self.reason = reason

    def __reduce__(self) -> tuple[type["ItemError"], tuple[str, str]]:
        return ItemError, (self.error_type, self.reason)
