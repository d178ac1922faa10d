"""A scan -> the pairs to train, validate and test with, and the statistics of them."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segray.data import LookAlikes
from segray.data.coco_listing import AnnotatedPair
from segray.data.pair_lists import COLUMNS
from segray.data.pair_table import pair_table
from segray.data.pairs import FRAGMENT, Pair, Pairs
from segray.data.repeats import repeat_factors
from segray.data.scan import column_sums, mean_and_deviation
from segray.data.splits import SPLITS, SplitRule, groups_of, split_groups
from segray.errors import SettingsError
from segray.sources.item import Source
from segray.storage import split_protocol


@dataclass(frozen=True)
class Data:
    """The pairs that can be used, with their splits and statistics."""

    pairs: list[Pair]
    """The pairs, in the order of the listing."""
    splits: list[str]
    """Split of each pair: train, val or test."""
    table: pa.Table
    """Schema PAIRS: the pairs of train, then those of val."""
    counts: list[int]
    """Pixels of each class in the training pairs; for instance models, instances of each category."""
    repeats: NDArray[np.float64] | None
    """How often each training pair is drawn in an epoch; None: once."""
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    digest: str
    """sha256 over the splits and the contents of all pairs, hex."""
    rejected: list[tuple[str, str]]
    """(address, reason)."""
    listed: int
    trained: pa.Table
    """Schema FIGURES: the training pairs, in the order of `table`."""
    empty: int = 0
    """Number of windows of scenes that hold no data."""
    ignored: int = 0
    """Instances of all splits that are ignored: crowds, and pieces of footprints that are too small."""
    alike: int = 0
    """Images in the largest group of look-alikes kept in one split; 1 where no two are alike."""

    @property
    def sizes(self) -> dict[str, int]:
        """Return split -> number of pairs."""
        number = Counter(self.splits)
        return {split: number[split] for split in SPLITS}

    @property
    def rejected_share(self) -> float:
        """Return the rejected share of everything that was listed."""
        return len(self.rejected) / max(1, self.listed)

    def summary(self) -> str:
        """Return a one-line summary; two data sets with the same line are the same."""
        parts = ", ".join(f"{number:,} {split}" for split, number in self.sizes.items())
        return f"{parts} (sha256 {self.digest[:16]})"


def assign_splits(
    listed: Pairs,
    rows: pa.Table,
    rule: SplitRule | None,
    oversample: float = 0.0,
    look_alikes: LookAlikes = "loose",
) -> Data:
    """Assign the pairs that could be read to the splits; photos that look alike stay together.

    rows: FIGURES of `listed.pairs`. rule: None for windows, whose blocks were split when they were listed;
    those without a label are left out. oversample: see `repeat_factors`. Raises SettingsError when
    no pair is left to train or to validate with.
    """
    good = pc.is_null(rows["error_type"])
    bad = zip(listed.pairs, rows["error"].to_pylist(), good.to_pylist(), strict=True)
    rejected = [(one.uri, one.error) for one in listed.rejected]
    rejected += [(pair.image.uri, str(error)) for pair, error, is_good in bad if not is_good]
    used = good if rule is not None else pc.and_(good, _labelled(listed, rows["counts"]))
    pairs = list(compress(listed.pairs, used.to_pylist()))
    kept = rows.filter(used)
    digests = kept["digest"].to_pylist()
    if rule is None:
        splits, crowds, alike = [str(pair.split) for pair in pairs], len(pairs), 0
    else:
        groups = groups_of(pairs, kept["likeness"].to_pylist(), look_alikes)
        splits = split_groups(rule, pairs, digests, groups)
        crowds, alike = len(np.unique(groups)), _most_alike(pairs, groups)
    for split in ("train", "val"):
        if split not in splits:
            crowd = f" in {crowds:,} group{'s' * (crowds > 1)} kept together" if crowds < len(pairs) else ""
            ways = "set splits in the data, or another split_seed"
            ways += ", a smaller block" * (rule is None) + ", group_look_alikes off" * (alike > 1)
            raise SettingsError(
                f"data: no pair is left in {split} ({len(pairs):,} can be used{crowd}); add some, {ways} "
                "or val_share"
            )
    train, val = ([index for index, each in enumerate(splits) if each == split] for split in ("train", "val"))
    trained = kept.take(pa.array(train))
    mean, deviation = mean_and_deviation(trained)
    return Data(
        pairs,
        splits,
        pair_table([pairs[index] for index in train + val], kept.take(pa.array(train + val))),
        column_sums(trained["counts"]).tolist(),
        repeat_factors(_matrix(trained["counts"]), oversample) if oversample else None,
        mean,
        deviation,
        _digest(splits, digests, kept["label_digest"].to_pylist()),
        rejected,
        len(listed.pairs) + len(listed.rejected),
        trained,
        pc.sum(good).as_py() - len(pairs),
        pc.sum(kept["ignored"]).as_py() or 0,
        alike,
    )


def _most_alike(pairs: Sequence[Pair], groups: NDArray[np.int64]) -> int:
    """Return the size of the largest group among pairs to which the data give neither split nor group."""
    free = [
        group for pair, group in zip(pairs, groups.tolist(), strict=True) if not (pair.split or pair.group)
    ]
    return max(Counter(free).values(), default=0)


def _labelled(listed: Pairs, counts: pa.ChunkedArray) -> pa.Array:
    return pa.array([listed.has_label(each) for each in counts.to_pylist()], pa.bool_())


def _matrix(lists: pa.ChunkedArray) -> NDArray[np.int64]:
    flat: NDArray[np.int64] = lists.combine_chunks().flatten().to_numpy()
    return flat.reshape(len(lists), -1)


def _digest(splits: Sequence[str], images: Sequence[str], labels: Sequence[str]) -> str:
    """Return a digest that depends neither on names nor on their order."""
    lines = sorted(map(" ".join, zip(splits, images, labels, strict=True)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def splits_csv(data: Data) -> bytes:
    """Return a manifest that `--data` reads back: the same pairs in the same splits.

    Local paths are absolute; URLs come without credentials and query strings. Windows of scenes have their
    addresses, for information.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS[:3])
    for pair, split in zip(data.pairs, data.splits, strict=True):
        rows.writerow([openable(pair.image), openable(pair.label), split])
    return text.getvalue().encode()


def splits_json(
    pairs: Sequence[Pair], splits: Sequence[str], categories: dict[int, str], *, groups: bool = False
) -> bytes:
    """Return a COCO file that `--data` reads back, and `segray evaluate --labels` with `--split`.

    pairs: of a CocoListing. groups: write those, too. Addresses are as in `splits_csv`.
    """
    images, annotations = [], []
    for number, (pair, split) in enumerate(zip(pairs, splits, strict=True), start=1):
        assert isinstance(pair, AnnotatedPair)
        content = json.loads(pair.annotations)
        height, width = content["size"]
        name = openable(pair.image)
        image = {"id": number, "file_name": name, "height": height, "width": width, "split": split}
        images.append(image | {"group": pair.group} if groups else image)
        annotations += [{**each, "image_id": number} for each in content["annotations"]]
    named = [{"id": number, "name": name} for number, name in sorted(categories.items())]
    return json.dumps({"images": images, "annotations": annotations, "categories": named}).encode()


def openable(file: Source) -> str:
    """Return an address that opens a file again; URLs come without credentials and query strings."""
    is_window = FRAGMENT in file.uri
    return file.uri if is_window or split_protocol(file.uri)[0] != "file" else file.address
