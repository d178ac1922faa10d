"""Which names are images, archives and manifests: by suffix alone, so that a listing opens no file."""

from pathlib import PurePosixPath
from typing import Literal

from segray.sources.item import SourceKind

DECODED_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf", ".avif", ".avifs", ".mpo",
    ".heic", ".heif",  # with the extra `heic`
)  # fmt: skip
VOLUME_SUFFIXES = (".nii", ".nii.gz")
"""Read only as volumes."""
_OTHER_SUFFIXES = (
    *VOLUME_SUFFIXES, ".jxl", ".ico", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".psd", ".exr",
)  # fmt: skip
IMAGE_SUFFIXES = (*DECODED_SUFFIXES, *_OTHER_SUFFIXES)
"""Compared in lower case. Images in formats that `decode` does not read are items too: they are rejected
as `unsupported`, where ignoring them would lose photographs without a message."""
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
ManifestKind = Literal["parquet", "csv", "tsv", "jsonl", "txt"]
_MANIFESTS: dict[str, ManifestKind] = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl",
    ".ndjson": "jsonl", ".txt": "txt",
}  # fmt: skip


def is_image_name(name: str) -> bool:
    """Return whether a name in a folder or an archive is an item."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def without_suffix(path: str) -> str:
    """Return a path without the suffix of its last part; `.nii.gz` is one suffix."""
    is_nifti = path.lower().endswith(".nii.gz")
    return str(PurePosixPath(path[: -len(".gz")] if is_nifti else path).with_suffix(""))


def archive_kind(name: str) -> SourceKind | None:
    """Return `tar` or `zip` by suffix; None where the name is not an archive's."""
    lower = name.lower()
    if lower.endswith(_TAR_SUFFIXES):
        return "tar"
    return "zip" if lower.endswith(".zip") else None


def manifest_kind(name: str) -> ManifestKind | None:
    """Return the format of a manifest by its suffix; None where the name is not a manifest's."""
    lower = name.lower()
    return next((kind for suffix, kind in _MANIFESTS.items() if lower.endswith(suffix)), None)


def printable(name: str) -> str:
    r"""Return the name as valid UTF-8, for tables: bytes that are not UTF-8 become `\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_utf8(name: str) -> bool:
    """Return False for a file name with bytes that are not UTF-8 (Python keeps them as lone surrogates)."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def one_line(words: str) -> str:
    """Return a library's message on one line, without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(words.split()))


def fault(error: Exception) -> str:
    """Return a parser's error on one line, without the document: a UnicodeDecodeError holds all of it."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start:,} is not UTF-8"
    if isinstance(error, KeyError):
        return f"it has no {one_line(str(error))[:200]}"
    return f"{type(error).__name__}: {one_line(str(error))[:200]}"
