"""The run that was corrected: its images, found by id, address or name, and what it found in them."""

import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from segray.errors import ItemError, SettingsError
from segray.export.reading import batches, crs_in, finished_run, image_of, instance_of, measured
from segray.export.table import Image, Instance, LabelTable
from segray.importer.drawn import Looked
from segray.importer.pile import Pile
from segray.output.io import files_below
from segray.output.names import check_image_ids
from segray.schema import CRS84, IMAGES
from segray.storage import StorageSettings, shown

_NEEDED = ("image_id", "uri", "height", "width")
_INSTANCE = ("image_id", "category_id", "category", "score", "segmentation")
_INSTANCE_MAY = ("instance_id", "area", "bbox", "iscrowd")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")
_UPLOADS = re.compile(r"^/data/upload/\d+/")
"""What Label Studio puts before the names of uploaded files."""


class OtherFoldersError(ItemError):
    """An image has this file name, in other folders: it is meant if no other name of the file means it."""


class Images(Protocol):
    """The images that a file may be about."""

    def place(self, looked: Sequence[Looked], *, strictly: bool = False) -> list[Image | ItemError]:
        """Return the image of each; strictly: OtherFoldersError where its file name alone says which."""

    def instances(self, image: Image) -> list[Instance]:
        """Return what the run found in it."""

    def ledger(self, image: Image) -> dict[str, Any]:
        """Return its row of the ledger."""


class RunImages:
    """The images of a finished run; in a temporary SQLite file, so that memory does not grow with it."""

    def __init__(self, run: str, storage: StorageSettings, folder: Path) -> None:
        """Read the run. Raises SettingsError where it is not finished or has no such tables."""
        self.url, self._storage = run.rstrip("/"), storage
        self.verb, self.digest = finished_run(self.url, storage)
        self.crs, self.kept = CRS84, list[str]()
        self.table = LabelTable(folder)
        self._rows = Pile(folder, "ledger")
        ledger = files_below(f"{self.url}/images", (".parquet",), storage)
        if not ledger:
            raise SettingsError(f"run: {shown(run)} has no images/*.parquet: neither of annotate nor predict")
        for file in ledger:
            for _, batch in batches(file, _NEEDED, None, storage):
                self._add_images(batch.to_pylist())
        if self.verb != "predict":
            self._add_instances()
        try:
            self.table.settle()
            self.categories = self.table.categories()
        except (sqlite3.IntegrityError, ValueError) as error:
            raise SettingsError(f"run: {shown(run)}: {error}") from error
        if wrong := self.table.misfit():  # pycocotools' iou of masks of two sizes does not end
            raise SettingsError(f"run: {shown(run)}: a mask of image {wrong[0]} has {wrong[1]}")
        self._rows.settle()
        self._names = _Names(self.table, folder)

    def _add_images(self, rows: list[dict[str, Any]]) -> None:
        check_image_ids((row["image_id"] for row in rows), "run", self.url)
        own = {*IMAGES.names, "vanished"}
        self.kept = list(dict.fromkeys([*self.kept, *(name for name in rows[0] if name not in own)]))
        self._rows.add((row["image_id"], row) for row in rows)
        good = (row for row in rows if row.get("status") != "rejected" and row["height"] and row["width"])
        self.table.add_images(map(image_of, good))

    def _add_instances(self) -> None:
        for file in files_below(f"{self.url}/instances", (".parquet",), self._storage):
            for geo, batch in batches(file, _INSTANCE, _INSTANCE_MAY, self._storage):
                self.crs = crs_in(geo)
                self.table.add_instances(map(instance_of, measured(batch.to_pylist(), file)))

    def place(self, looked: Sequence[Looked], *, strictly: bool = False) -> list[Image | ItemError]:
        """Return the image of each, or why there is none; strictly: see Images."""
        return [self._place(each, strictly) for each in looked]

    def _place(self, looked: Looked, strictly: bool) -> Image | ItemError:
        image = None
        if looked.image_id is not None:
            image = self.table.image(looked.image_id)
        if image is None:
            found, fits = self._names.find(looked.name, is_stem=looked.is_stem)
            if len(found) != 1:
                return ItemError("missing", self._reason(looked, len(found), fits))
            if strictly and not fits:
                return OtherFoldersError("missing", "an image of the run has its file name alone")
            image = self.table.image(found[0])
        assert image is not None
        if looked.size not in (None, (image.height, image.width)):
            height, width = looked.size or (0, 0)
            reason = f"{width} x {height} pixels in the file, {image.width} x {image.height} in the run"
            return ItemError("unsupported", reason)
        return image

    def _reason(self, looked: Looked, found: int, fits: bool) -> str:
        if found:
            return f"{found} images of the run have this name"
        if not fits:
            return "the image of the run with this file name is another one: its folder differs"
        row = self._rows.of(looked.image_id) if looked.image_id else []
        if row and row[0].get("status") == "rejected":
            return f"the run rejected it as {row[0].get('error_type')}"
        return "no image of the run has this id, address or name"

    def instances(self, image: Image) -> list[Instance]:
        """Return what the run found in it, by `instance_id`."""
        return list(self.table.of_image(image))

    def ledger(self, image: Image) -> dict[str, Any]:
        """Return its row of the ledger."""
        found: dict[str, Any] = self._rows.of(image.image_id)[0]
        return found

    def close(self) -> None:
        """Close the temporary files."""
        self.table.close()
        self._rows.close()
        self._names.close()


class _Names:
    """Addresses and names of images -> their ids."""

    def __init__(self, table: LabelTable, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "names.db", isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE names (address TEXT, base TEXT, stem TEXT, name TEXT, image_id TEXT); BEGIN;"
        )
        rows = ((each.address, *_base(each.address), each.name, each.image_id) for each in table.images())
        self._db.executemany("INSERT INTO names VALUES (?, ?, ?, ?, ?)", rows)
        for column in ("address", "base", "stem", "name"):
            self._db.executescript(f"CREATE INDEX by_{column} ON names ({column});")

    def find(self, name: str, *, is_stem: bool) -> tuple[list[str], bool]:
        """Return the ids of the images that a name may mean, and whether its folders fit.

        By address, by its end, by file name; but not an image that `is_another`.
        """
        plain = plain_address(name)
        if is_stem:
            last = plain.rpartition("/")[2]
            return self._ids("name", last) or self._ids("stem", last), True
        if found := self._ids("address", plain):
            return found, True
        folders, slash, base = _UPLOADS.sub("", plain).rpartition("/")
        own = next((each for each in (base, _UPLOADED.sub("", base)) if self._ids("base", each)), base)
        rows, end = self._rows("base", own), f"{folders}{slash}{own}".lstrip("./")
        if ends := [image_id for address, image_id in rows if f"/{address}".endswith(f"/{end}")]:
            return ends, True
        return [image_id for address, image_id in rows if not is_another(plain, address)], not rows

    def _ids(self, column: str, value: str) -> list[str]:
        return [image_id for _, image_id in self._rows(column, value)]

    def _rows(self, column: str, value: str) -> list[tuple[str, str]]:
        query = f"SELECT address, image_id FROM names WHERE {column} = ? LIMIT 100"
        return self._db.execute(query, [value]).fetchall()

    def close(self) -> None:
        self._db.close()


def plain_address(name: str) -> str:
    """Return an address as images of a run have it; of Label Studio's local files, their path."""
    _, local, path = name.partition("/data/local-files/?d=")
    return (path if local else name).removeprefix("file://").replace("\\", "/")


def is_another(name: str, address: str) -> bool:
    """Return whether two addresses are of two files: both in one bucket, or below one folder of the root, in
    folders of other names."""
    root = _root(name)
    return bool(root) and root == _root(address) and name.split("/")[-2] != address.split("/")[-2]


def _root(address: str) -> str:
    scheme, mark, rest = address.rpartition("://")
    if not mark and not address.startswith("/"):
        return ""
    return scheme + mark + "/".join(rest.split("/")[: 1 if mark else 2])


def _base(address: str) -> tuple[str, str]:
    """Return the file name of an address, with and without its suffix."""
    base = address.rstrip("/").rpartition("/")[2]
    return base, base.rpartition(".")[0] or base
