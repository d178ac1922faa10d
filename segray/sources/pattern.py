"""Globs over any storage, matched against names while a listing is streamed."""

import glob
import re
from dataclasses import dataclass
from functools import cached_property

from fsspec.utils import glob_translate

_MAGIC = re.compile(r"[*?\[]")


def has_magic(path: str) -> bool:
    """Return whether a path that does not exist literally may be a glob."""
    return _MAGIC.search(path) is not None


@dataclass(frozen=True)
class Pattern:
    """`*`, `?`, `[…]` within a name, `**` over any depth. A folder that matches is taken as a whole."""

    path: str
    literal: str = ""
    """The part of the path that exists literally; magic characters in it are not special."""

    @property
    def prefix(self) -> str:
        """Return the literal text before the first magic character; object stores list by it."""
        match = _MAGIC.search(self.path, len(self.literal))
        return self.path if match is None else self.path[: match.start()]

    @property
    def root(self) -> str:
        """Return the deepest folder without magic, where a walk begins."""
        return self.prefix.rpartition("/")[0] or "/"

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        return re.compile(glob_translate(glob.escape(self.literal) + self.path[len(self.literal) :]))

    @cached_property
    def _names(self) -> list[str]:
        escaped = [glob.escape(name) for name in self.literal.split("/")] if self.literal else []
        return escaped + self.path.split("/")[len(escaped) :]

    def matches(self, path: str) -> bool:
        """Return whether the file's own path matches, or a folder above it does."""
        names = path.split("/")
        least = len(self.root.split("/")) if self.root != "/" else 1
        return any(self._whole.match("/".join(names[:depth])) for depth in range(len(names), least, -1))

    def enters(self, folder: str) -> bool:
        """Return whether anything below `folder` can match, so that a walk skips the rest of a disk."""
        for name, wanted in zip(folder.split("/"), self._names, strict=False):
            if "**" in wanted:
                return True
            if not re.match(glob_translate(wanted), name):
                return False
        return True
