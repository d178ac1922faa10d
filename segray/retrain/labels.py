"""The labels of a round: what is known of each picture, and what is new since the round before."""

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
        ("address", pa.string()),  # canonical URL of the picture
        ("etag", pa.string()),  # or size and mtime
        ("label_address", pa.string()),
        ("label_etag", pa.string()),
        ("digest", pa.string()),  # sha256 of the picture's file, hex
        ("label_digest", pa.string()),  # sha256 of its labels, hex: see `digest_of_instances`
        ("split", pa.string()),  # train, val, test; or left_out: a look-alike of a held-out picture
        ("group", pa.string()),  # of pictures that stay together
        ("likeness", pa.uint64()),  # perceptual hash
    ]
)
"""What a model was trained on and scored with, frozen; sorted by address."""
_NAMES = pa.schema([("name", pa.string())])
TEST, LEFT_OUT = "test", "left_out"


@dataclass(frozen=True, slots=True)
class News:
    """What the labels have that an earlier snapshot had not."""

    new: int
    changed: int
    removed: int

    @property
    def number(self) -> int:
        """What counts for `min_new`."""
        return self.new + self.changed

    def told(self) -> str:
        """For a person."""
        return f"{self.new:,} new, {self.changed:,} changed, {self.removed:,} removed"


def digest_of_instances(pair: AnnotatedPair, categories: Mapping[int, str]) -> str:
    """sha256, hex, of what the annotations of a picture mean.

    Ids and the order of annotations, which every export numbers anew, are no part of it; the names of
    categories are: one that is renamed is another label.
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
    """The most that can be new, by addresses and versions alone: no picture is opened.

    categories: of labels of instances, which are in the listing and are compared by what they mean.
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
    """By contents. A picture that was left out or rejected counts as any other."""
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
    """SNAPSHOT of pairs that could be read; rows: their FIGURES; categories: of labels of instances."""
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
    """Parquet, the same bytes for the same rows."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def from_bytes(data: bytes | None) -> pa.Table | None:
    """A snapshot that was written; None where there is none. Raises JobFailedError where it is damaged."""
    return None if data is None else table_of(data, SNAPSHOT, "snapshot.parquet")


def table_of(data: bytes, schema: pa.Schema, name: str) -> pa.Table:
    """A table that was written. Raises JobFailedError for one that is damaged: nobody may begin another."""
    try:
        return pq.read_table(io.BytesIO(data)).cast(schema)
    except ValueError as error:  # ArrowInvalid is one
        raise JobFailedError(f"{name} is damaged ({error}); put its last good version back") from error


def trained_in(snapshot: pa.Table) -> set[str]:
    """Addresses and digests of the pictures that were not held out."""
    rows = snapshot.filter(pc.not_equal(snapshot["split"], TEST))
    return {*rows["address"].to_pylist(), *rows["digest"].to_pylist()}


def names_to_bytes(names: Collection[str]) -> bytes:
    """A table of addresses and digests, which `names_from` reads."""
    return to_bytes(pa.table({"name": sorted(names)}, schema=_NAMES))


def names_from(data: bytes | None) -> set[str]:
    """None where there is no table. Raises JobFailedError where it is damaged."""
    return set() if data is None else {*table_of(data, _NAMES, "trained.parquet")["name"].to_pylist()}


def name_of(snapshot: bytes) -> str:
    """The first 12 hex digits of its sha256."""
    return hashlib.sha256(snapshot).hexdigest()[:12]
