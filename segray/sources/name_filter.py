"""Which names below a folder or in an archive are listed at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

_METADATA_FOLDERS = frozenset(
    {
        "__macosx", ".appledouble", "@eadir", "#recycle", "$recycle.bin", ".trash", ".trashes", ".thumbnails",
        ".ipynb_checkpoints", ".spotlight-v100", ".fseventsd", "system volume information",
    }
)  # fmt: skip
"""Files of macOS, network storages, trash, thumbnailers and notebooks; in lower case."""
_METADATA_NAMES = ("._", ".trash-")
"""AppleDouble: the file that macOS keeps next to another. Trash of a Linux disk: `.Trash-1000`."""
METADATA, EXCLUDED = "system files", "excluded"


@dataclass(frozen=True, slots=True)
class Choice:
    """What of the sources is used.

    Globs choose files; without any, all files are chosen except system metadata.

    A glob without `/` is compared with each name of a path, so a folder's name selects everything below it;
    one with `/` with the end of the path, and its `*` crosses folders. Upper and lower case differ.
    """

    include: Sequence[str] = ()
    """Images must match one of these, where any are given."""
    exclude: Sequence[str] = ()
    stac: bool = False
    """Whether JSON is read as STAC: see `listing`."""
    asset: str | None = None
    """Key of the asset of a STAC Item to use."""

    def leaves_out(self, path: str, *, is_archive: bool = False, named: bool = False) -> str | None:
        """Return why a path, from what the user named downwards, is left out; None where it is chosen.

        An archive need not match `include`: its members do. named: by the user, one by one.
        """
        names = [name for name in path.split("/") if name]
        if not named and is_metadata(names):
            return METADATA
        if any(_matches(glob, path, names) for glob in self.exclude):
            return EXCLUDED
        if self.include and not is_archive and not any(_matches(each, path, names) for each in self.include):
            return EXCLUDED
        return None


EVERYTHING = Choice()


def is_metadata(names: Sequence[str]) -> bool:
    """Return whether a system wrote a file for itself; names: of the folders above it and its own."""
    lower = [name.lower() for name in names]
    return any(name in _METADATA_FOLDERS for name in lower[:-1]) or any(
        name.startswith(_METADATA_NAMES) for name in lower
    )


def kind_of(path: str) -> str:
    """Return the suffix by which names that are not images are counted."""
    suffix = PurePosixPath(path).suffix.lower()
    return suffix if 1 < len(suffix) <= 12 else "no suffix"


def _matches(glob: str, path: str, names: Sequence[str]) -> bool:
    if "/" not in glob:
        return any(fnmatchcase(name, glob) for name in names)
    return fnmatchcase(f"/{path.lstrip('/')}", f"*/{glob.lstrip('/')}")
