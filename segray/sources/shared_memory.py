"""Files in memory that a process and its child map: both see the same bytes, without a copy."""

import mmap
import os
import tempfile
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt


def shared_file() -> int:
    """Return a descriptor of an anonymous file in memory; of a deleted one on disk where unsupported."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("segray", os.MFD_CLOEXEC)
    descriptor, path = tempfile.mkstemp(prefix="segray")
    Path(path).unlink()
    return descriptor


class SharedFile:
    """One such file in one of the processes; it grows to the furthest offset that either uses.

    Its descriptor is closed with it; mapped memory stays valid.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._bytes: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    @property
    def mapped(self) -> int:
        """Return the bytes of this process's address space that are mapped."""
        return len(self._bytes)

    def place(self, offset: int, size: int) -> npt.NDArray[np.uint8]:
        """Return a view, (size,) uint8, from `offset` on; valid until the file is emptied."""
        held = os.fstat(self.descriptor).st_size
        if held < offset + size:
            held = offset + size
            os.ftruncate(self.descriptor, held)
        if held != len(self._bytes):
            self._bytes = np.frombuffer(mmap.mmap(self.descriptor, held), np.uint8)
        return self._bytes[offset : offset + size]

    def empty(self) -> None:
        """Give the memory back to the system."""
        self._bytes = np.empty(0, np.uint8)
        os.ftruncate(self.descriptor, 0)
