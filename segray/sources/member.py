"""One member of an archive, its bytes still unread."""

import posixpath
from collections.abc import Callable
from dataclasses import dataclass

from segray.errors import ItemError
from segray.sources.signature import describe_signature

LONGEST_PATH = 4096
"""Linux PATH_MAX."""


@dataclass(frozen=True, slots=True)
class Member:
    """What the archive says about a member; folders are never yielded."""

    index: int
    """Position among all members of the archive, folders included."""
    name: str
    size: int
    """Bytes as the archive claims them: enough to plan by, never to trust."""
    read: Callable[[int], bytes | ItemError]
    """`read(max_bytes)`: the content, or what is wrong with this member; raises what breaks the archive."""


def too_large(size: int, max_bytes: int) -> ItemError:
    """The rejection of a member that claims, or grows to, more than `max_bytes`."""
    return ItemError(
        "too_large",
        f"the member has {size:,} bytes or more, above the limit of {max_bytes:,}; --max-file-mib",
    )


def link_target(link: str, path: str) -> str:
    """Name of the member that a symbolic link of this name leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(link), path))


def no_target(place: str) -> ItemError:
    """The rejection of a link; place: where it leads."""
    return ItemError(
        "unsupported", f"the member is a link to {place[:200]!r}, which is no file before it in this archive"
    )


def check_start(kind: str, start: bytes) -> None:
    """Raises ItemError where the first bytes of an unreadable archive tell what is wrong with it."""
    if not start:
        raise ItemError("truncated", f"the {kind} is empty")
    form, _ = describe_signature(start)
    if form:
        raise ItemError("corrupt", f"no {kind}; by its first bytes: {form}")
