"""What a listing yields: one address of a file or an archive, and the ids made from it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from segray.errors import ErrorType

SourceKind = Literal["file", "tar", "zip"]


@dataclass(frozen=True, slots=True)
class Source:
    """One line of the listing: a file that is one item, or an archive of items."""

    uri: str
    """Canonical URL: no credentials, no query string; a local file as file:///absolute/path."""
    address: str
    """What fsspec opens; may carry a query string, so it is never printed or kept in an output."""
    kind: SourceKind
    version: str
    """ETag; locally `<size>-<mtime in ns>`; empty when it could not be read."""
    size: int
    """Bytes; -1 when unknown."""
    error_type: ErrorType | None = None
    """Set when the listing already knows that the item cannot be read."""
    error: str | None = None
    kept: str | None = None
    """See `kept_text`; None, too, for what is no row of a manifest."""


Kept = Sequence[str | None]
"""What a manifest's row says in the columns that are kept, in their order."""


def kept_text(values: Kept) -> str | None:
    """As JSON; None where nothing is said."""
    return json.dumps(list(values)) if any(value is not None for value in values) else None


def image_id(uri: str, member: str | None, occurrence: int, version: str) -> str:
    """First 32 hex digits of sha256 over canonical URL, member (with its occurrence) and version.

    `occurrence` counts equal names inside one archive from 0; parts are joined by NUL, which no URL holds.
    """
    name = "" if member is None else f"{member}\0{occurrence}"
    return hashlib.sha256(f"{uri}\0{name}\0{version}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
