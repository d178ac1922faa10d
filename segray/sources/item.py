"""The listing's record: the address of a file or an archive, and the ids made from it."""

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
    """What fsspec opens; may have a query string, so it is never printed or kept in an output."""
    kind: SourceKind
    version: str
    """ETag; locally `<size>-<mtime in ns>`; empty when it could not be read."""
    size: int
    """Bytes; -1 when unknown."""
    error_type: ErrorType | None = None
    """Set where the listing already found that the item cannot be read."""
    error: str | None = None
    kept: str | None = None
    """See `kept_text`; None, too, for a source that is not a manifest's row."""
    taken_at: int | None = None
    """Microseconds since 1970, UTC, by the STAC Item that names it."""


Kept = Sequence[str | None]
"""Values of a manifest's row in the columns that are kept, in their order."""


def kept_text(values: Kept) -> str | None:
    """Return the values as JSON; None where all of them are null."""
    return json.dumps(list(values)) if any(value is not None for value in values) else None


def image_id(uri: str, member: str | None, occurrence: int, version: str) -> str:
    """Return the first 32 hex digits of sha256 over canonical URL, member (with its occurrence) and version.

    `occurrence` counts equal names inside one archive from 0; parts are joined by NUL, which no URL holds.
    """
    name = "" if member is None else f"{member}\0{occurrence}"
    return hashlib.sha256(f"{uri}\0{name}\0{version}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
