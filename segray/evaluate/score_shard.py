"""One shard of images -> checked -> matched: what a process does with it, and what it gives back."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

from segray.errors import ItemError
from segray.evaluate.instance_rows import table_of
from segray.evaluate.matching import Instances, Kind, Matches, match
from segray.evaluate.spatial_blocks import BlockGrid
from segray.masks.coco_segmentation import rle_of
from segray.masks.run_ends import RunEnds

DIGESTS = 1 << 256
"""Sums of digests are modulo this."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Neighbouring images: what is needed besides their rows."""

    first: int
    """Index of the first one."""
    names: Sequence[str]
    """Of each image."""
    sizes: Sequence[tuple[int, int]]
    """Height, width of each."""
    broken: frozenset[int]
    """Indices of images that are left out."""
    kinds: tuple[Kind, ...]
    side: int | None = None
    """Of spatial blocks, see `BlockGrid`; None: images are whole."""

    @classmethod
    def of(
        cls,
        there: range,
        names: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        broken: Mapping[int, str],
        kinds: tuple[Kind, ...],
        side: int | None = None,
    ) -> "Shard":
        """Return the part of all images that has these indices."""
        here = slice(there.start, there.stop)
        return cls(there.start, names[here], sizes[here], frozenset(there) & broken.keys(), kinds, side)


@dataclass(frozen=True, slots=True)
class ShardScores:
    """What was found in a shard."""

    matches: Matches
    broken: dict[int, str]
    """Index of an image whose masks cannot be used -> why; it is in no score."""
    digests: tuple[int, int]
    """Of truth and predictions: sums, modulo 2**256, of the sha256 of each row, so that shards add."""


def score_shard(data: bytes, shard: Shard) -> ShardScores:
    """Check the masks of a shard, and match its images."""
    rows, runs, broken = checked(data, shard)
    true = np.isnan(rows["score"].to_numpy())
    digests = _digests(rows, shard)
    of_truth, of_found = (
        sum(digests[row] for row in np.flatnonzero(each).tolist()) for each in (true, ~true)
    )
    columns = {name: rows[name].to_numpy() for name in ("image", "category", "score", "area")}
    instances = Instances(
        columns["image"].astype(np.int64),
        columns["category"].astype(np.int64),
        columns["score"],
        np.asarray(rows["crowd"].to_numpy(zero_copy_only=False), bool),
        columns["area"],
        np.stack([rows[name].to_numpy() for name in ("x", "y", "width", "height")], axis=1),
        runs,
        None if runs is None else _bounds(rows, shard),
    )
    grid = None if shard.side is None else BlockGrid(shard.first, shard.sizes, shard.side)
    matches = match(instances, shard.kinds, grid)
    return ShardScores(matches, broken, (of_truth % DIGESTS, of_found % DIGESTS))


def checked(data: bytes, shard: Shard) -> tuple[pa.Table, RunEnds | None, dict[int, str]]:
    """Return (rows of usable images, their masks, images that cannot be used with the reason)."""
    rows = table_of(data)
    rows = rows.filter(pa.array(~np.isin(rows["image"].to_numpy(), list(shard.broken))))
    if "segm" not in shard.kinds:
        return rows, None, {}
    counts = [value or b"" for value in rows["counts"].to_pylist()]
    runs, image = RunEnds.of(counts), rows["image"].to_numpy()
    height, width = np.array(shard.sizes, np.int64).reshape(-1, 2)[image - shard.first].T
    wrong = np.flatnonzero(~runs.valid | (runs.pixels != height * width))
    if not len(wrong):
        return rows, runs, {}
    broken = dict[int, str]()
    for row in wrong.tolist():
        broken.setdefault(int(image[row]), _reason(rows.slice(row, 1).to_pylist()[0], shard))
    again = Shard(shard.first, shard.names, shard.sizes, shard.broken | broken.keys(), shard.kinds)
    rows, rest, _ = checked(data, again)
    return rows, rest, broken


def _reason(row: dict[str, Any], shard: Shard) -> str:
    """Return what is wrong with a mask."""
    size = shard.sizes[row["image"] - shard.first]
    who = "prediction" if row["name"] is None else f"truth: annotation {row['name']}"
    try:
        rle_of({"size": list(size), "counts": row["counts"]}, *size)
    except ItemError as error:
        return f"{who}: {error.reason}"
    return f"{who}: invalid run lengths"


def _bounds(rows: pa.Table, shard: Shard) -> Any:
    """Return the boxes around the masks, float64 (n, 4)."""
    if not len(rows):
        return np.zeros((0, 4))
    sizes = [shard.sizes[image - shard.first] for image in rows["image"].to_pylist()]
    counts = rows["counts"].to_pylist()
    return coco_mask.toBbox(
        [{"size": size, "counts": each} for size, each in zip(sizes, counts, strict=True)]
    )


def _digests(rows: pa.Table, shard: Shard) -> list[int]:
    """Return the sha256 of each row, over its image's name and its values."""
    numbers = ("category", "score", "crowd", "area", "x", "y", "width", "height")
    values = np.stack([rows[name].to_numpy(zero_copy_only=False).astype("<f8") for name in numbers], axis=1)
    names = [name.encode("utf-8", "surrogateescape") + b"\0" for name in shard.names]
    images = rows["image"].to_pylist()
    return [
        int.from_bytes(
            hashlib.sha256(names[image - shard.first] + value.tobytes() + (counts or b"")).digest(), "big"
        )
        for image, value, counts in zip(images, values, rows["counts"].to_pylist(), strict=True)
    ]
