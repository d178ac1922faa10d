"""The value of `--data` -> pairs of an image and its label map, local or in a bucket; only lists are opened.

    folder      images and labels of the same stems, in the layouts of `pair_folders`
                or, if it holds train.txt, val.txt or test.txt, the rows of these lists
    manifest    CSV or Parquet, or a list without a header: the rows, see `pair_lists`

Nothing vanishes. Every image is in a pair or rejected with a reason, every label is in a pair, rejected, or
named in a rejection, and other files are counted as ignored.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from segray.data.pair_folders import SPLIT_NAMES, Stem, folder_uri, read_folder
from segray.data.pair_lists import Row, look_up, read_rows
from segray.errors import SegrayError, SettingsError
from segray.retries import retrying
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.local import local_source
from segray.sources.manifest import base_of
from segray.sources.names import DECODED_SUFFIXES, VOLUME_SUFFIXES, archive_kind, is_image_name
from segray.sources.remote import remote_source
from segray.storage import StorageSettings, canonical_uri, open_filesystem, split_protocol

_HELD_OUT = (None, "train", "val", "test")
"""Of a pair listed in two splits the last one here wins: no test image may be trained on."""

FRAGMENT = "#xywh="
"""Separates the address of a scene from a window in it, as in W3C's Media Fragments."""

Reason = Literal["no_label", "no_image", "listed_twice", "ambiguous", "unsupported", "storage"]
"""`ambiguous`: several images or labels of one stem, several labels of one image, a line of three names."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its label map; both existed when they were listed."""

    item: str
    """First 32 hex digits of sha256 over the image's canonical URL."""
    name: str
    """Path of the image below the data folder or the base of the list; its canonical URL if elsewhere."""
    image: Source
    label: Source
    split: str | None
    """`train`, `val` or `test` where the data say so."""
    group: str | None = field(default=None, kw_only=True)
    """Pairs of one group share a split; None where the data name none."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file or row that did not become a pair."""

    uri: str
    """Address of the image; of the label without an image; of the row without either."""
    reason: Reason
    error: str
    """One line, without credentials."""
    split: str | None = None
    """As in a pair; None also where it is unknown."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """All that was listed, sorted by the images' URLs, independent of the listing's order."""

    pairs: list[Pair]
    """At least one."""
    rejected: list[Rejected]
    ignored: int
    """Files of a folder that have no image suffix or lie outside its images and labels."""

    def has_label(self, counts: list[int] | None) -> bool:
        """Return whether a pair with these counts of `scan.FIGURES` is used."""
        return True

    def counts(self) -> dict[str, int]:
        """Return `pairs`, each reason that occurs and `ignored`, with their counts."""
        reasons = Counter(one.reason for one in self.rejected)
        return {"pairs": len(self.pairs), **dict(sorted(reasons.items())), "ignored": self.ignored}


def list_pairs(data: str, storage: StorageSettings, root: str | None = None) -> Pairs:
    """List `data`; relative paths of manifests and lists are relative to `root`, else to the file itself.

    Raises SettingsError for what does not exist, cannot be read, has no known layout, or gives no pair.
    """
    file = _named_file(data, storage)
    lists = [(file, None)] if file is not None else _split_lists(data, storage)
    if lists:
        base = root.rstrip("/") if root else base_of(lists[0][0])
        rows = chain.from_iterable(read_rows(one, base, split, storage) for one, split in lists)
        hint = "" if root else "; set with --root what its paths are relative to"
        return _checked(data, _of_rows(list(rows), folder_uri(base or "/")), 0, hint)
    if root:
        raise SettingsError(f"{canonical_uri(data)}: a root is for manifests and lists, this is a folder")
    folder = read_folder(data, storage)
    unlisted = [Rejected(one.uri, "storage", one.error or "") for one in folder.unlisted]
    found = (_of_stem(stem, folder_uri(data)) for stem in folder.stems)
    return _checked(data, [*unlisted, *chain.from_iterable(found)], folder.ignored)


def _named_file(data: str, storage: StorageSettings) -> Source | None:
    """Return the manifest or list that `data` names; None for a folder."""
    uri = canonical_uri(data)
    try:
        file = _first_contact(data, storage)
    except SegrayError:
        raise
    except FileNotFoundError as error:
        raise SettingsError(f"{uri}: no such file, folder or bucket") from error
    except Exception as error:  # each library has its own types
        raise SettingsError(f"{uri}: {describe(error)}") from error
    if file is None or file.uri.lower().endswith((".csv", ".parquet", ".txt")):
        return file
    if file.uri.lower().endswith(".json"):  # COCO: semantic training does not read it
        raise SettingsError(f"{uri}: COCO JSON is data for instance models, not for semantic ones")
    hint = ": unpack it" if archive_kind(file.uri) else ""
    raise SettingsError(f"{uri}: data is a folder, a .csv or .parquet manifest or a .txt list{hint}")


def _first_contact(data: str, storage: StorageSettings) -> Source | None:
    protocol, _ = split_protocol(data)
    filesystem, path = open_filesystem(data, storage)
    if protocol == "file":
        if Path(path).is_dir():
            return None
        file = local_source(path)
        if file.error_type is not None:
            raise SettingsError(f"{file.uri}: {file.error}")
        return file
    info: dict[str, Any] = retrying(lambda: filesystem.info(path), storage.hasty)
    is_folder = info.get("type") == "directory" and protocol not in ("http", "https")
    return None if is_folder else remote_source(protocol, path, info)


def _split_lists(data: str, storage: StorageSettings) -> list[tuple[Source, str | None]]:
    """Return the lists of a folder that are named like splits, with their splits."""
    folder = Source(canonical_uri(data), data, "file", "", -1)
    found = look_up([f"{name}.txt" for name in SPLIT_NAMES], folder, data.rstrip("/"), storage)
    for file in found:
        if file.error_type == "storage":
            raise SettingsError(f"{file.uri}: {file.error}")
    there = zip(found, SPLIT_NAMES.values(), strict=True)
    return [(file, split) for file, split in there if file.error_type is None]


def _of_stem(stem: Stem, base: str) -> Iterator[Pair | Rejected]:
    """Yield a pair, or a rejection for each image; for each label where there is no image."""
    images = list[Source]()
    for image in stem.images:
        problem = _problem(image, "no_image")
        if problem is None:
            images.append(image)
        else:
            yield Rejected(image.uri, *problem, stem.split)
    if not stem.images:
        error = "no image has its stem"
        yield from (Rejected(label.uri, "no_image", error, stem.split) for label in stem.labels)
    elif len(images) == 1 and len(stem.labels) == 1:
        yield _pair(images[0], stem.labels[0], stem.split, None, base)
    elif not stem.labels:
        error = "no label has its stem"
        yield from (Rejected(image.uri, "no_label", error, stem.split) for image in images)
    else:
        error = f"one stem: {_some([one.uri for one in [*images, *stem.labels]])}"
        yield from (Rejected(image.uri, "ambiguous", error, stem.split) for image in images)


def _of_rows(rows: list[Row], base: str) -> Iterator[Pair | Rejected]:
    """Yield a pair or a rejection for each row; an image is in one pair at most, in any order of rows."""
    by_image: dict[str, list[tuple[Row, Pair]]] = defaultdict(list)
    for row in rows:
        found = _of_row(row, base)
        if isinstance(found, Pair):
            by_image[found.image.uri].append((row, found))
        else:
            yield found
    for same in by_image.values():
        labels = sorted({pair.label.uri for _, pair in same})
        if len(labels) > 1:
            error = f"one image, several labels: {_some(labels)}"
            for row, pair in same:
                yield Rejected(row.place, "ambiguous", f"{pair.image.uri}: {error}", pair.split)
            continue
        kept = max(same, key=lambda one: _HELD_OUT.index(one[1].split))
        yield kept[1]
        for row, pair in same:
            if row is not kept[0]:
                yield Rejected(row.place, "listed_twice", _twice(pair, kept[1]), pair.split)


def _some(uris: list[str]) -> str:
    return ", ".join(uris[:4]) + (f" and {len(uris) - 4:,} more" if len(uris) > 4 else "")


def _twice(pair: Pair, kept: Pair) -> str:
    where = (
        "" if pair.split == kept.split else f" in {pair.split or 'no split'}; the pair in {kept.split} stays"
    )
    return f"{pair.image.uri}: listed again{where}"


def _of_row(row: Row, base: str) -> Pair | Rejected:
    if row.problem is not None:
        return Rejected(row.place, "ambiguous", row.problem, row.split)
    if row.image is None:
        return Rejected(row.place, "no_image", "the row names no image", row.split)
    problem = _problem(row.image, "no_image")
    if problem is not None:
        return Rejected(row.image.uri, *problem, row.split)
    if row.label is None:
        return Rejected(row.image.uri, "no_label", f"{row.place} names no label", row.split)
    return _pair(row.image, row.label, row.split, row.group, base)


def _pair(image: Source, label: Source, split: str | None, group: str | None, base: str) -> Pair | Rejected:
    problem = _problem(label, "no_label")
    if problem is not None:
        return Rejected(image.uri, problem[0], f"its label {label.uri}: {problem[1]}", split)
    item = hashlib.sha256(image.uri.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return Pair(item, image.uri.removeprefix(base), image, label, split, group=group)


def _problem(file: Source, missing: Reason) -> tuple[Reason, str] | None:
    """Return the error that the listing, or the name alone, gives for a file; None where there is none."""
    if file.error_type is not None:
        reasons: dict[str, Reason] = {"missing": missing, "storage": "storage"}
        return reasons.get(file.error_type, "unsupported"), file.error or file.error_type
    name = file.uri.lower()
    if archive_kind(name):
        return "unsupported", "archives are not opened for training: unpack it"
    if is_image_name(name) and not name.endswith(DECODED_SUFFIXES + VOLUME_SUFFIXES):
        return "unsupported", f"images of the format .{name.rpartition('.')[2]} are not read"
    return None


def _checked(
    data: str, found: Iterator[Pair | Rejected] | list[Pair | Rejected], ignored: int, hint: str = ""
) -> Pairs:
    """Return the listing. Raises SettingsError where no pair is left; hint: for rows without any file."""
    pairs, rejected = list[Pair](), list[Rejected]()
    for one in found:
        if isinstance(one, Pair):
            pairs.append(one)
        else:
            rejected.append(one)
    rejected.sort(key=lambda one: (one.uri, one.error))
    listed = Pairs(sorted(pairs, key=lambda pair: pair.image.uri), rejected, ignored)
    if pairs:
        return listed
    first = f"; the first: {rejected[0].uri}: {rejected[0].error}" if rejected else ""
    reasons = ", ".join(f"{name} {count:,}" for name, count in listed.counts().items())
    is_elsewhere = rejected and all(one.reason in ("no_image", "no_label") for one in rejected)
    advice = hint if is_elsewhere else ""
    raise SettingsError(f"{canonical_uri(data)}: no image with its label ({reasons}){advice}{first}")
