"""What the gate decided, with everything it was decided by."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score, or a difference of two, with its interval; NaN where there is nothing to score."""

    figure: float
    low: float
    """Percentile interval of the bootstrap, at 1 - `Decision.level`, for one look."""
    high: float


@dataclass(frozen=True, slots=True)
class Gain:
    """Challenger minus champion."""

    difference: Estimate
    standard_error: float
    """Of the difference, by the bootstrap."""
    lower: float
    """What the true gain exceeds at this look's level; -inf where nothing can be said."""
    detectable: float
    """The true gain that would be promoted in 80 of 100 cases at this look."""
    differing: int
    """Images on which the models answer differently."""
    undefined: int
    """Draws without any true instance or pixel."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group of the holdout's images."""

    name: str
    images: int
    challenger: float
    champion: float | None
    floor: float | None
    """The lowest score that is allowed, or None."""
    judged: bool
    """False: too few images, or no truth; reported only."""
    problem: str | None
    """Why it refuses the challenger."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Promoted or refused, and why."""

    metric: str
    """`AP` or `mIoU`."""
    holdout: str
    images: int
    look: int
    """Decisions on this holdout, this one included."""
    level: float
    """Error probability over all looks."""
    look_level: float
    """That of this look."""
    margin: float
    draws: int
    seed: int
    challenger: Estimate
    champion: Estimate | None
    """None: there was none."""
    gain: Gain | None
    groups: tuple[GroupRow, ...]
    promoted: bool = False
    reasons: tuple[str, ...] = ()
    """Sentences: all reasons of a refusal, or those of a promotion."""
    notes: tuple[str, ...] = ()
    """Sentences: groups that were not judged, and the gain that the holdout can show."""

    def to_json(self) -> dict[str, Any]:
        """Return what `json.dumps` takes; what is not finite is None."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain

    def lines(self) -> list[str]:
        """The decision for a person."""
        return [
            f"{'promoted' if self.promoted else 'refused'} (look {self.look} at holdout {self.holdout})",
            *(f"  {line}" for line in (*self.reasons, *self.notes)),
        ]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
