"""Every way segray can fail, on one page.

Two families. A `SegrayError` ends the command with its exit code and one line for each problem. An
`ItemError` costs one item: it becomes a rejected row of the ledger and nothing else is lost.
"""

from enum import IntEnum
from typing import Literal, get_args

ErrorType = Literal[
    "missing", "corrupt", "truncated", "too_large", "unsupported", "timeout", "memory", "crashed", "storage"
]
ERROR_TYPES: tuple[str, ...] = get_args(ErrorType)


class ExitCode(IntEnum):
    """What the shell sees; the contract of every verb."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REJECTED = 3
    NOTHING_TO_DO = 4
    REFUSED = 5
    INTERRUPTED = 130


class SegrayError(Exception):
    """Ends the command. `lines` are printed to stderr, one problem a line, without a traceback."""

    exit_code = ExitCode.FAILED

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class SettingsError(SegrayError):
    """Bad usage, bad settings, or anything else that can be known before work begins."""

    exit_code = ExitCode.USAGE


class HeldError(SettingsError):
    """Another run is live on the output."""


class NothingToDoError(SegrayError):
    """The sources hold no item."""

    exit_code = ExitCode.NOTHING_TO_DO


class JobFailedError(SegrayError):
    """The job broke after work began; running it again continues."""


class ItemError(Exception):
    """One item cannot be annotated: why, in the ledger's own words."""

    def __init__(self, error_type: ErrorType, reason: str) -> None:
        super().__init__(reason)
        self.error_type: ErrorType = error_type
        self.reason = reason

    def __reduce__(self) -> tuple[type["ItemError"], tuple[str, str]]:
        return ItemError, (self.error_type, self.reason)
