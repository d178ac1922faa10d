"""Which names below a folder or in an archive are looked at at all."""

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
"""Of macOS, network storages, waste bins, thumbnailers and notebooks; in lower case."""
_METADATA_NAMES = ("._", ".trash-")
"""AppleDouble: what macOS keeps beside a file. The waste bin of a Linux disk: `.Trash-1000`."""
METADATA, EXCLUDED = "system files", "excluded"


@dataclass(frozen=True, slots=True)
class Choice:
    """Globs that choose; without any, everything is chosen that no system has put there for itself.

    A glob without `/` is compared with each name of a path, so a folder's name takes all that is below; one
    with `/` with the end of the path, and its `*` crosses folders. Upper and lower case differ.
    """

    include: Sequence[str] = ()
    """Images must match one, if there are any."""
    exclude: Sequence[str] = ()

    def leaves_out(self, path: str, *, is_archive: bool = False, named: bool = False) -> str | None:
        """Why a path, from what the user named downwards, is left out; None where it is not.

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
    """Whether a system has put a file there for itself; names: of the folders above it and its own."""
    lower = [name.lower() for name in names]
    return any(name in _METADATA_FOLDERS for name in lower[:-1]) or any(
        name.startswith(_METADATA_NAMES) for name in lower
    )


def kind_of(path: str) -> str:
    """What names that are no images are counted by: the suffix."""
    suffix = PurePosixPath(path).suffix.lower()
    return suffix if 1 < len(suffix) <= 12 else "no suffix"


def _matches(glob: str, path: str, names: Sequence[str]) -> bool:
    if "/" not in glob:
        return any(fnmatchcase(name, glob) for name in names)
    return fnmatchcase(f"/{path.lstrip('/')}", f"*/{glob.lstrip('/')}")
