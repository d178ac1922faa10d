"""One member of an archive, whose bytes are not read yet."""

import posixpath
from collections.abc import Callable
from dataclasses import dataclass

from segray.errors import ItemError
from segray.sources.signature import describe_signature

LONGEST_PATH = 4096
"""Linux PATH_MAX."""


@dataclass(frozen=True, slots=True)
class Member:
    """What the archive's headers say about a member; folders are never yielded."""

    index: int
    """Index among all members of the archive, folders included."""
    name: str
    size: int
    """Bytes as the header claims them: enough to plan with, never to rely on."""
    read: Callable[[int], bytes | ItemError]
    """`read(max_bytes)`: the content or the member's error; raises errors of the archive as a whole."""


def too_large(size: int, max_bytes: int) -> ItemError:
    """Return the rejection of a member that claims, or grows to, more than `max_bytes`."""
    return ItemError(
        "too_large",
        f"the member has {size:,} bytes or more, above the limit of {max_bytes:,}; --max-file-mib",
    )


def link_target(link: str, path: str) -> str:
    """Return the name of the member that a symbolic link of this name refers to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(link), path))


def no_target(place: str) -> ItemError:
    """Return the rejection of a link; place: its target."""
    return ItemError(
        "unsupported", f"the member is a link to {place[:200]!r}, which is no file before it in this archive"
    )


def check_start(kind: str, start: bytes) -> None:
    """Raise ItemError where the first bytes show why an archive is unreadable."""
    if not start:
        raise ItemError("truncated", f"the {kind} is empty")
    form, _ = describe_signature(start)
    if form:
        raise ItemError("corrupt", f"no {kind}; by its first bytes: {form}")
