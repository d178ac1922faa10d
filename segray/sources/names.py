"""Which names are images, archives and manifests: by suffix alone, so that a listing opens nothing."""

from typing import Literal

from segray.sources.item import SourceKind

DECODED_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf", ".avif", ".avifs", ".mpo",
    ".heic", ".heif",  # with the extra `heic`
)  # fmt: skip
_OTHER_SUFFIXES = (
    ".jxl", ".ico", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".psd", ".exr",
)  # fmt: skip
IMAGE_SUFFIXES = (*DECODED_SUFFIXES, *_OTHER_SUFFIXES)
"""Compared in lower case. Pictures in formats that `decode` does not read are items too: they are rejected
as `unsupported`, where ignoring them would let photographs vanish without a word."""
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
ManifestKind = Literal["parquet", "csv", "tsv", "jsonl", "txt"]
_MANIFESTS: dict[str, ManifestKind] = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl",
    ".ndjson": "jsonl", ".txt": "txt",
}  # fmt: skip


def is_image_name(name: str) -> bool:
    """Whether a name in a folder or an archive is an item."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def archive_kind(name: str) -> SourceKind | None:
    """`tar` or `zip` by suffix; None where the name is no archive's."""
    lower = name.lower()
    if lower.endswith(_TAR_SUFFIXES):
        return "tar"
    return "zip" if lower.endswith(".zip") else None


def manifest_kind(name: str) -> ManifestKind | None:
    """Which form of manifest a name stands for, by suffix; None where it is no manifest's."""
    lower = name.lower()
    return next((kind for suffix, kind in _MANIFESTS.items() if lower.endswith(suffix)), None)


def printable(name: str) -> str:
    r"""The name as UTF-8 that any table holds: bytes that are not UTF-8 become `\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_utf8(name: str) -> bool:
    """False for a local file name with bytes that are not UTF-8 (Python keeps them as lone surrogates)."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def one_line(words: str) -> str:
    """What a library said, on one line, without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(words.split()))


def fault(error: Exception) -> str:
    """What is wrong with a document, on one line, without it: a UnicodeDecodeError holds it all."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start:,} is not UTF-8"
    if isinstance(error, KeyError):
        return f"it has no {one_line(str(error))[:200]}"
    return f"{type(error).__name__}: {one_line(str(error))[:200]}"
