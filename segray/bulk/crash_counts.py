"""Count attempts per item, begun and not ended, to find one that kills its worker.

Imports nothing heavy: it runs in an actor of its own that outlives the model's process.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

MOST_ATTEMPTS = 3
"""Number of times an item may kill its worker before it is rejected as `crashed`."""


class AttemptsLike(Protocol):
    """`Attempts`, here or in another process."""

    def begin(self, names: Sequence[str], most: int) -> bool: ...
    def end(self, names: Sequence[str]) -> None: ...


class Attempts:
    """Counts of items that were begun; ending one deletes it: those in flight and those refused are held."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._asked = False

    def was_asked(self) -> bool:
        """Return whether any worker has begun anything."""
        return self._asked

    def begin(self, names: Sequence[str], most: int) -> bool:
        """Count before the work; return False, uncounted, where one was begun `most` times and not ended."""
        self._asked = True
        if any(self._begun[name] >= most for name in names):
            return False
        self._begun.update(names)
        return True

    def end(self, names: Sequence[str]) -> None:
        """Delete the counts after the work."""
        for name in names:
            del self._begun[name]
