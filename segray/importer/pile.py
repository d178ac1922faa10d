"""Values by key in a temporary SQLite file of our own: what a file holds in no order, image by image."""

import pickle
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_KEPT = 2_000


class Pile:
    """Add rows, then read those of a key."""

    def __init__(self, folder: Path, name: str) -> None:
        self._db = sqlite3.connect(folder / f"{name}.db", isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE;"
            "CREATE TABLE rows (key TEXT, value BLOB); BEGIN;"
        )

    def add(self, rows: Iterable[tuple[str, Any]]) -> None:
        """Add rows: key and value."""
        self._db.executemany(
            "INSERT INTO rows VALUES (?, ?)", ((key, pickle.dumps(value)) for key, value in rows)
        )

    def settle(self) -> None:
        """Sort what was added."""
        self._db.executescript("CREATE INDEX by_key ON rows (key);")  # it commits what was added

    def of(self, key: str) -> list[Any]:
        """Return the rows of a key in the order in which they were added."""
        found = self._db.execute("SELECT value FROM rows WHERE key = ? ORDER BY rowid", [key])
        return [pickle.loads(value) for (value,) in found]

    def keys(self) -> Iterator[str]:
        """Yield each key once, in order."""
        cursor = self._db.execute("SELECT DISTINCT key FROM rows ORDER BY key")
        while keys := cursor.fetchmany(_KEPT):
            yield from (key for (key,) in keys)

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._db.execute("SELECT count(*) FROM rows").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()
