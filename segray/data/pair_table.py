"""The pairs of a run as one Arrow table, which all processes of a machine share: 0.6 KB a pair, once.

As a list of `Pair`, each process that reads would hold its own, at 1.1 KB a pair.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import pyarrow as pa

from segray.data.coco_listing import AnnotatedPair
from segray.data.pair_reader import CocoExample, Example
from segray.data.pairs import Pair
from segray.errors import ItemError
from segray.sources.item import Source

T = TypeVar("T", bound=Example | CocoExample | ItemError)

_FILE = ("uri", "address", "version", "size")
PAIRS = pa.schema(
    [("item", pa.string()), ("name", pa.string())]
    + [
        (f"{part}_{name}", pa.int64() if name == "size" else pa.large_string())
        for part in ("image", "label")
        for name in _FILE
    ]
    + [("digest", pa.string()), ("label_digest", pa.string()), ("annotations", pa.large_string())]
)
"""`digest`s: sha256 of the two files when they were scanned, hex; `annotations` as in `AnnotatedPair`."""


def pair_table(pairs: Sequence[Pair], digests: pa.Table | None = None) -> pa.Table:
    """Return a table of schema PAIRS, a row per pair; `digests`: columns `digest` and `label_digest`."""
    columns = {
        "item": [pair.item for pair in pairs],
        "name": [pair.name for pair in pairs],
        "digest": [None] * len(pairs) if digests is None else digests["digest"],
        "label_digest": [None] * len(pairs) if digests is None else digests["label_digest"],
        "annotations": [getattr(pair, "annotations", None) for pair in pairs],
    }
    for part in ("image", "label"):
        files = [getattr(pair, part) for pair in pairs]
        columns |= {f"{part}_{name}": [getattr(file, name) for file in files] for name in _FILE}
    return pa.table({field.name: columns[field.name] for field in PAIRS}, schema=PAIRS).combine_chunks()


def pairs_at(table: pa.Table, indices: Sequence[int]) -> list[Pair]:
    """Return the pairs of these rows of `table` (schema PAIRS), without their split."""
    rows = table.take(pa.array(indices, pa.int64())).to_pylist()
    return [_pair(row) for row in rows]


def _pair(row: dict[str, Any]) -> Pair:
    image, label = _file(row, "image"), _file(row, "label")
    if row["annotations"] is None:
        return Pair(row["item"], row["name"], image, label, None)
    return AnnotatedPair(row["item"], row["name"], image, label, None, row["annotations"])


def _file(row: dict[str, Any], part: str) -> Source:
    uri, address, version, size = (row[f"{part}_{name}"] for name in _FILE)
    return Source(uri, address, "file", version, size)


def as_scanned(example: T, digest: str, label_digest: str) -> T | ItemError:
    """Return the example, or an error where its files have changed since the scan."""
    if isinstance(example, ItemError):
        return example
    for what, there, then in (
        ("the image", example.digest, digest),
        ("the label", example.label_digest, label_digest),
    ):
        if there != then:
            return ItemError("unsupported", f"{what} changed since the data were scanned")
    return example
