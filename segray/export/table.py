"""The images and instances to export, in a temporary SQLite file: the instances of an image in one query.

Runs hold instances in the order of their commits, scenes in the order of a Hilbert curve; most formats want
them image by image. In SQLite the size of a run is limited by the disk, not by memory.
"""

import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from segray.masks.spans import Spans, counts_of, spans_of
from segray.masks.types import Rle

MOST_NAME = 150
"""Characters of a file name that come from an image's name; file systems take 255 bytes."""
NO_SPLIT, NO_GROUP = "unsplit", "ungrouped"
"""Names for images without a split, and for those without a value in the column of groups."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_KEPT = 2_000
"""Rows fetched at a time."""


@dataclass(frozen=True, slots=True)
class Image:
    """One annotated image."""

    image_id: str
    uri: str
    member: str | None
    height: int
    width: int
    split: str | None
    group: str | None
    name: str = ""
    """Its file name without suffix, unique in the export."""
    number: int = 0
    """From 1, in the order of addresses."""
    file_name: str = ""
    """How COCO and Label Studio name it, where that is not its address."""
    part: str | None = None
    """Which file or folder of the export it is in, where there are several: its split, or its group."""

    @property
    def address(self) -> str:
        """Path of a local file, URL of others; in an archive, followed by the member."""
        whole = self.uri if self.member is None else f"{self.uri}/{self.member}"
        return whole.removeprefix("file://")


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance; of mask and geometry only what the format needs, the other is None."""

    image_id: str
    instance_id: str
    category_id: int
    category: str
    score: float | None
    """None where a person drew or confirmed it."""
    area: int
    """Pixels of the mask."""
    left: float
    top: float
    box_width: float
    box_height: float
    height: int
    """Of the image."""
    width: int
    counts: str | None
    """COCO compressed run lengths of the whole image."""
    iscrowd: int
    geometry: bytes | None
    """WKB in the run's CRS."""
    area_m2: float | None

    @property
    def spans(self) -> Spans:
        """The mask as vertical spans, int64 (n, 3), see `masks.spans`."""
        return spans_of(counts_of([self.counts or ""])[0], self.height)

    @property
    def plain_score(self) -> float | None:
        """The score with as few digits as make the same float32."""
        return None if self.score is None else float(str(np.float32(self.score)))

    @property
    def rle(self) -> Rle:
        """The mask as pycocotools takes it."""
        return {"size": [self.height, self.width], "counts": self.counts or ""}


class LabelTable:
    """Add images and instances, `settle`, then read them image by image."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "labels.db", isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE;"
            f"CREATE TABLE images ({_columns(Image)});"
            f"CREATE TABLE instances ({_columns(Instance)});"
        )
        self._db.execute("BEGIN")

    def add_images(self, images: Iterable[Image]) -> None:
        """Add annotated images."""
        self._add("images", Image, images)

    def add_instances(self, instances: Iterable[Instance]) -> None:
        """Add instances, in any order."""
        self._add("instances", Instance, instances)

    def _add(self, table: str, kind: type, rows: Iterable[Image] | Iterable[Instance]) -> None:
        marks = ", ".join("?" * len(fields(kind)))
        self._db.executemany(f"INSERT INTO {table} VALUES ({marks})", map(astuple, rows))

    def settle(self) -> None:
        """Sort and number the images, and give each a name of its own."""
        db = self._db
        db.create_function("stem", 1, _stem, deterministic=True)
        db.create_function("folded", 1, str.casefold, deterministic=True)
        db.executescript(  # it commits what was added
            """BEGIN;
            UPDATE images SET name = stem(coalesce(member, uri));
            CREATE TABLE twice AS
                SELECT folded(name) AS name FROM images GROUP BY folded(name) HAVING count(*) > 1;
            UPDATE images SET name = name || '_' || image_id
                WHERE folded(name) IN (SELECT name FROM twice);
            CREATE TABLE numbered AS
                SELECT * FROM images ORDER BY uri, coalesce(member, ''), image_id;
            UPDATE numbered SET number = rowid;
            UPDATE instances SET instance_id = image_id || '-new-' || rowid WHERE instance_id = '';
            CREATE UNIQUE INDEX by_id ON numbered (image_id);
            CREATE INDEX by_image ON instances (image_id, instance_id);
            DROP TABLE images;
            COMMIT;"""
        )

    def count_images(self) -> int:
        """Return the number of images."""
        return self._one("SELECT count(*) FROM numbered")

    def count_instances(self) -> int:
        """Return the number of instances of these images."""
        return self._one("SELECT count(*) FROM instances JOIN numbered USING (image_id)")

    def count_strays(self) -> int:
        """Return the number of instances of other images."""
        known = "SELECT 1 FROM numbered n WHERE n.image_id = i.image_id"
        return self._one(f"SELECT count(*) FROM instances i WHERE NOT EXISTS ({known})")

    def count_without_geometry(self) -> int:
        """Return how many of them have no place on Earth."""
        return self._one(
            "SELECT count(*) FROM instances JOIN numbered USING (image_id) WHERE geometry IS NULL"
        )

    def most_in_an_image(self) -> int:
        """Return the largest number of instances of one image."""
        most = "SELECT max(n) FROM (SELECT count(*) AS n FROM instances GROUP BY image_id)"
        return self._one(most)

    def misfit(self) -> tuple[str, str] | None:
        """Return image id and reason of a mask that is not of its image's size; None if all are."""
        found = self._db.execute(
            "SELECT n.image_id, i.width || ' x ' || i.height || ', not ' || n.width || ' x ' || n.height "
            "FROM instances i JOIN numbered n USING (image_id) "
            "WHERE i.height != n.height OR i.width != n.width LIMIT 1"
        ).fetchone()
        return found if found is None else (str(found[0]), str(found[1]))

    def categories(self) -> dict[int, str]:
        """Return the names of the categories that occur, by ascending id.

        Raises ValueError where one id has two names.
        """
        rows = self._db.execute("SELECT DISTINCT category_id, category FROM instances ORDER BY 1, 2")
        found: dict[int, str] = {}
        for number, name in rows:
            if number in found:
                raise ValueError(f"category {number} has two names: {found[number]!r} and {name!r}")
            found[number] = name
        return found

    def parts(self) -> list[str]:
        """Return the parts of the images: their splits, or their groups."""
        rows = self._db.execute("SELECT DISTINCT part FROM numbered WHERE part IS NOT NULL ORDER BY 1")
        return [part for (part,) in rows]

    def images(self, part: str | None = None) -> Iterator[Image]:
        """Yield the images of a part in their order; without one, all."""
        where = "" if part is None else "WHERE part = :part"
        for row in self._rows(f"SELECT * FROM numbered {where} ORDER BY number", {"part": part}):
            yield Image(*row)

    def of_image(self, image: Image, *, best_last: bool = False) -> Iterator[Instance]:
        """Yield the instances of an image by `instance_id`; best_last: by ascending score, null last."""
        order = "score IS NULL, score, instance_id DESC, rowid DESC" if best_last else "instance_id, rowid"
        query = f"SELECT * FROM instances WHERE image_id = :id ORDER BY {order}"
        for row in self._rows(query, {"id": image.image_id}):
            yield Instance(*row)

    def instances(self, part: str | None = None) -> Iterator[tuple[Image, Instance]]:
        """Yield all instances of a part, image by image."""
        for image in self.images(part):
            for instance in self.of_image(image):
                yield image, instance

    def image(self, image_id: str) -> Image | None:
        """Return an image; None where there is no such."""
        row = self._db.execute("SELECT * FROM numbered WHERE image_id = ?", [image_id]).fetchone()
        return None if row is None else Image(*row)

    def _rows(self, query: str, values: dict[str, str | None]) -> Iterator[tuple[Any, ...]]:
        cursor = self._db.execute(query, values)
        while rows := cursor.fetchmany(_KEPT):
            yield from rows

    def _one(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0] or 0)

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _columns(kind: type) -> str:
    """Return the columns of a table; `group` is a word of SQL."""
    types = {"int": "INTEGER", "float": "REAL", "bytes": "BLOB"}
    plain = {each.name: getattr(each.type, "__name__", str(each.type)) for each in fields(kind)}
    return ", ".join(f'"{name}" {types.get(of.partition(" ")[0], "TEXT")}' for name, of in plain.items())


def _stem(address: str) -> str:
    """Return the name of an image without folders and suffix, as every file system takes it."""
    name = re.split(r"[/\\]", address.rstrip("/\\"))[-1]
    stem = name.rpartition(".")[0] or name
    safe = _UNSAFE.sub("_", stem).strip(" .").encode("utf-8", "replace")[:MOST_NAME]
    return safe.decode("utf-8", "ignore") or "image"
