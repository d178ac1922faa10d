"""The labels of a round: a snapshot of each image and its labels, and what is new since an earlier one."""

import hashlib
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.data.coco_listing import AnnotatedPair
from segray.data.pairs import Pair
from segray.errors import JobFailedError

SNAPSHOT = pa.schema(
    [
        ("address", pa.string()),  # canonical URL of the image
        ("etag", pa.string()),  # or size and mtime
        ("label_address", pa.string()),
        ("label_etag", pa.string()),
        ("digest", pa.string()),  # sha256 of the image's file, hex
        ("label_digest", pa.string()),  # sha256 of its labels, hex: see `digest_of_instances`
        ("split", pa.string()),  # train, val, test; or left_out: a look-alike of a held-out image
        ("group", pa.string()),  # images of one group are in one split
        ("likeness", pa.uint64()),  # perceptual hash
    ]
)
"""Images and labels on which a model was trained and scored; sorted by address."""
_NAMES = pa.schema([("name", pa.string())])
TEST, LEFT_OUT = "test", "left_out"


@dataclass(frozen=True, slots=True)
class News:
    """Number of new, changed and removed images since an earlier snapshot."""

    new: int
    changed: int
    removed: int

    @property
    def number(self) -> int:
        """Number that is compared with `min_new`."""
        return self.new + self.changed

    def text(self) -> str:
        """Return the numbers as text."""
        return f"{self.new:,} new, {self.changed:,} changed, {self.removed:,} removed"


def digest_of_instances(pair: AnnotatedPair, categories: Mapping[int, str]) -> str:
    """Return the sha256, hex, of the contents of an image's annotations.

    Ids and the order of annotations, which change in every export, are not included; names of categories are:
    a renamed category is another label.
    """
    content = json.loads(pair.annotations)
    meant = [
        [categories.get(each.get("category_id")), each.get("iscrowd") or 0, each.get("segmentation")]
        for each in content["annotations"]
    ]
    lines = sorted(json.dumps(each, sort_keys=True) for each in meant)
    return hashlib.sha256("\n".join([str(content["size"]), *lines]).encode()).hexdigest()


def unread_news(
    pairs: Sequence[Pair], before: pa.Table | None, categories: Mapping[int, str] | None = None
) -> News:
    """Return an upper limit of what is new, by addresses and versions only, without opening images.

    categories: id -> name, for instance labels, which are in the listing and compared by contents.
    """
    label = "label_etag" if categories is None else "label_digest"
    known = _by_address(before, ("address", "etag", label))
    listed = {pair.image.uri: (pair.image.version, _label_version(pair, categories)) for pair in pairs}
    return _compared(listed, known)


def _label_version(pair: Pair, categories: Mapping[int, str] | None) -> str:
    if categories is None or not isinstance(pair, AnnotatedPair):
        return pair.label.version
    return digest_of_instances(pair, categories)


def news(snapshot: pa.Table, before: pa.Table | None) -> News:
    """Compare two snapshots (schema SNAPSHOT) by contents; images that were left out count, too."""
    columns = ("address", "digest", "label_digest")
    return _compared(_by_address(snapshot, columns), _by_address(before, columns))


def _by_address(table: pa.Table | None, columns: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    if table is None:
        return {}
    address, *others = (table[name].to_pylist() for name in columns)
    return dict(zip(address, zip(*others, strict=True), strict=True))


def _compared(now: Mapping[str, tuple[Any, ...]], before: Mapping[str, tuple[Any, ...]]) -> News:
    shared = now.keys() & before.keys()
    changed = sum("" in now[address] or now[address] != before[address] for address in shared)
    return News(len(now.keys() - before.keys()), changed, len(before.keys() - now.keys()))


def snapshot_of(
    pairs: Sequence[Pair],
    rows: pa.Table,
    splits: Sequence[str],
    categories: Mapping[int, str] | None = None,
) -> pa.Table:
    """Return the snapshot (schema SNAPSHOT) of readable pairs.

    rows: their figures (schema FIGURES); categories: id -> name, for instance labels.
    """
    digests = rows["label_digest"].to_pylist()
    if categories is not None:
        digests = [_label_version(pair, categories) for pair in pairs]
    columns = {
        "address": [pair.image.uri for pair in pairs],
        "etag": [pair.image.version for pair in pairs],
        "label_address": [pair.label.uri for pair in pairs],
        "label_etag": [pair.label.version for pair in pairs],
        "split": list(splits),
        "group": [pair.group for pair in pairs],
        "label_digest": digests,
        **{name: rows[name].to_pylist() for name in ("digest", "likeness")},
    }
    return pa.table({field.name: columns[field.name] for field in SNAPSHOT}, schema=SNAPSHOT).sort_by(
        "address"
    )


def to_bytes(table: pa.Table) -> bytes:
    """Return a table (any schema) as Parquet, the same bytes for the same rows."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def from_bytes(data: bytes | None) -> pa.Table | None:
    """Return the snapshot (schema SNAPSHOT) in a file; None for None. Raises JobFailedError if damaged."""
    return None if data is None else table_of(data, SNAPSHOT, "snapshot.parquet")


def table_of(data: bytes, schema: pa.Schema, name: str) -> pa.Table:
    """Return the table of this schema in a file. Raises JobFailedError where it is damaged."""
    try:
        return pq.read_table(io.BytesIO(data)).cast(schema)
    except ValueError as error:  # ArrowInvalid is one
        raise JobFailedError(f"{name} is damaged ({error}); restore its last good version") from error


def trained_in(snapshot: pa.Table) -> set[str]:
    """Return addresses and digests of the images of a snapshot (schema SNAPSHOT) that were not held out."""
    rows = snapshot.filter(pc.not_equal(snapshot["split"], TEST))
    return {*rows["address"].to_pylist(), *rows["digest"].to_pylist()}


def names_to_bytes(names: Collection[str]) -> bytes:
    """Return a Parquet file of addresses and digests, which `names_from` reads."""
    return to_bytes(pa.table({"name": sorted(names)}, schema=_NAMES))


def names_from(data: bytes | None) -> set[str]:
    """Return the addresses and digests in a file; empty for None. Raises JobFailedError if damaged."""
    return set() if data is None else {*table_of(data, _NAMES, "trained.parquet")["name"].to_pylist()}


def name_of(snapshot: bytes) -> str:
    """Return the name of a snapshot: the first 12 hex digits of its sha256."""
    return hashlib.sha256(snapshot).hexdigest()[:12]
