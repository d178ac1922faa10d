"""Which items were begun and not ended: how one that kills its worker is found.

Imports nothing heavy: it lives in an actor of its own that outlives the model's process.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

MOST_ATTEMPTS = 3
"""So often may an item kill its worker before it is rejected as `crashed`."""


class AttemptsLike(Protocol):
    """`Attempts`, here or in another process."""

    def before(self, names: Sequence[str]) -> list[int]: ...
    def begin(self, names: Sequence[str]) -> None: ...
    def end(self, names: Sequence[str]) -> None: ...


class Attempts:
    """Counts of items that were begun; ending one forgets it, so only items in flight are held."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def before(self, names: Sequence[str]) -> list[int]:
        """How often each was begun and not ended."""
        return [self._begun[name] for name in names]

    def begin(self, names: Sequence[str]) -> None:
        """Mark before the work."""
        self._begun.update(names)

    def end(self, names: Sequence[str]) -> None:
        """Forget after the work."""
        for name in names:
            del self._begun[name]
