"""Folders of images and labels -> one Stem per image: the files of one split and one name without suffix.

    images/{train,val,test}/a.jpg   labels/{train,val,test}/a.png     or without the split folders
    {train,val,test}/images/a.jpg   {train,val,test}/labels/a.png
    {train,val,test}/a.jpg          {train,val,test}annot/a.png       CamVid

`masks` and `annotations` are other names for `labels`; the split folders may have the names in SPLIT_NAMES,
any may be written with capitals, and folders may be nested below them. Other files are ignored.
"""

import posixpath
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

from segray.errors import SettingsError
from segray.sources.item import Source
from segray.sources.listing import Listing
from segray.sources.names import without_suffix
from segray.storage import StorageSettings, canonical_uri

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of splits in data -> our names. A folder `valid` must not be split at random as if it were nested."""
_LABEL_FOLDERS = ("labels", "masks", "annotations")
_ANNOTATED = "annot"
LAYOUTS = (
    "images/ and labels/ (or masks/, annotations/), with or without train/, val/, test/ below or above them, "
    "or train/ and trainannot/"
)
"""For error messages."""


@dataclass(slots=True)
class Stem:
    """The files of one stem; normally one image and one label."""

    split: str | None
    images: list[Source] = field(default_factory=list)
    labels: list[Source] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Folder:
    """The files below a data folder."""

    stems: list[Stem]
    unlisted: list[Source]
    """Folders that could not be listed, each with its error."""
    ignored: int
    """Files without an image suffix or outside the folders of images and labels."""


@dataclass(frozen=True, slots=True)
class _Place:
    is_label: bool
    split: str | None
    stem: str
    """Path below the folder of images or labels, without suffix."""


def read_folder(data: str, storage: StorageSettings) -> Folder:
    """Return every file below the folder `data`, by stem, listed as `annotate` lists.

    Raises SettingsError when the folder cannot be listed, or has none of the layouts.
    """
    listing = Listing([data], storage)
    files = list(listing)
    base = folder_uri(data)
    annotated = any(_is_annotated(_below(file, base)[0]) for file in files)
    stems: dict[tuple[str | None, str], Stem] = {}
    unlisted, outside = list[Source](), 0
    for file in files:
        place = _place(_below(file, base), annotated)
        if file.uri.endswith("/"):
            unlisted.append(file)
        elif place is None:
            outside += 1
        else:
            stem = stems.setdefault((place.split, place.stem), Stem(place.split))
            (stem.labels if place.is_label else stem.images).append(file)
    if not stems and not unlisted:
        raise SettingsError(_no_layout(data, files, base, listing.ignored))
    return Folder(list(stems.values()), unlisted, listing.ignored + outside)


def folder_uri(address: str) -> str:
    """Return the canonical URL of a folder, with one `/` at its end."""
    uri = canonical_uri(address)
    return "file:///" if uri == "file:///" else uri.rstrip("/") + "/"


def _below(file: Source, base: str) -> list[str]:
    return file.uri.removeprefix(base).split("/")


def _is_annotated(folder: str) -> bool:
    return folder.lower().removesuffix(_ANNOTATED) in SPLIT_NAMES and folder.lower().endswith(_ANNOTATED)


def _place(parts: list[str], annotated: bool) -> _Place | None:
    """Return split and stem of a file; `annotated` says that the folder has CamVid's layout."""
    first, second = ([part.lower() for part in parts[:-1]] + ["", ""])[:2]
    if first == "images" or first in _LABEL_FOLDERS:
        split = SPLIT_NAMES.get(second)
        return _Place(first != "images", split, _stem(parts[1 if split is None else 2 :]))
    if _is_annotated(first):
        return _Place(True, SPLIT_NAMES[first.removesuffix(_ANNOTATED)], _stem(parts[1:]))
    if first in SPLIT_NAMES and annotated:
        return _Place(False, SPLIT_NAMES[first], _stem(parts[1:]))
    if first in SPLIT_NAMES and (second == "images" or second in _LABEL_FOLDERS):
        return _Place(second != "images", SPLIT_NAMES[first], _stem(parts[2:]))
    return None


def _stem(parts: list[str]) -> str:
    """Return the stem in NFC: archives made on a Mac hold decomposed accents, often for half of the files."""
    path = "/".join(parts)
    is_nifti = path.lower().endswith(".nii.gz")
    stem = without_suffix(path) if is_nifti else posixpath.splitext(path)[0]
    return unicodedata.normalize("NFC", stem)


def _no_layout(data: str, files: list[Source], base: str, ignored: int) -> str:
    there = ", ".join(_names(files, base)) or "nothing"
    return (
        f"{canonical_uri(data)}: no images with labels: it needs {LAYOUTS}; of images it has {there}, of "
        f"other files {ignored:,} (name a manifest or a list in it as the data)"
    )


def _names(files: list[Source], base: str) -> Iterator[str]:
    """Yield the first names at the top of the folder."""
    tops = [parts[0] + "/" * (len(parts) > 1) for parts in (_below(file, base) for file in files)]
    distinct = list(dict.fromkeys(tops))
    yield from (name if name.isprintable() else repr(name) for name in distinct[:8])
    if len(distinct) > 8:
        yield f"{len(distinct) - 8:,} more"
