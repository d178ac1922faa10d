"""Which images are labelled already: by address and member, so that a new version of a file is still it."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from segray.errors import SettingsError
from segray.output.io import files_below
from segray.selection.reading import Pool, batches, ledger_of
from segray.sources.item import Source
from segray.sources.manifest import addresses_in
from segray.sources.names import manifest_kind
from segray.storage import StorageSettings, canonical_uri, shown

Address = tuple[str, str | None]
"""Canonical URI and member."""


def mark_labelled(pool: Pool, run: str, labels: Iterable[str], storage: StorageSettings) -> None:
    """Set `pool.labelled`. Raises SettingsError for labels that cannot be read.

    Memory: 8 bytes a labelled image. Of 10^6 images two have one hash with a probability of 3 in 10^8.
    """
    known = [_hashes(addresses_of(each, storage)) for each in labels]
    if not known:
        return
    joined = np.unique(np.concatenate(known))
    for file in ledger_of(run, storage):
        for batch in batches(file, ("image_id", "uri"), ("member",), storage):
            image = pool.index(batch)
            members = batch["member"].to_pylist() if "member" in batch.schema.names else [None] * len(image)
            own = _hashes(zip(batch["uri"].to_pylist(), members, strict=True))
            pool.labelled[image[(image >= 0) & np.isin(own, joined)]] = True


def addresses_of(labels: str, storage: StorageSettings) -> Iterator[Address]:
    """Yield the images that labels are of: tables of annotate, COCO JSON, or a manifest.

    Raises SettingsError, which names `labels`, for what is none of these.
    """
    try:
        if labels.lower().endswith(".json"):
            from segray.data.coco_listing import list_coco

            yield from ((pair.image.uri, None) for pair in list_coco(labels, storage).pairs)
        elif manifest_kind(labels) is not None:
            file = Source(canonical_uri(labels), labels, "file", "", -1)
            yield from addresses_in(file, storage, "member")
        else:
            yield from _of_tables(labels, storage)
    except SettingsError as error:
        raise SettingsError(*(f"labels: {line}" for line in error.lines)) from error


def _of_tables(labels: str, storage: StorageSettings) -> Iterator[Address]:
    if not files_below(f"{labels.rstrip('/')}/images", (".parquet",), storage):
        raise SettingsError(
            f"{shown(labels)} is no output in annotate's format (it has no images/*.parquet), no COCO .json "
            "and no manifest (.csv, .parquet)"
        )
    for file in ledger_of(labels, storage):
        for batch in batches(file, ("uri",), ("member", "status"), storage):
            for row in batch.to_pylist():
                if row.get("status") != "rejected":
                    yield row["uri"], row.get("member")


def _hashes(addresses: Iterable[Address]) -> NDArray[np.uint64]:
    digests = b"".join(
        hashlib.blake2b(f"{uri}\0{member or ''}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
        for uri, member in addresses
    )
    return np.frombuffer(digests, np.uint64)
