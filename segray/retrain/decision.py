"""Record of a decision of the gate, with all figures on which it is based."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score, or a difference of two, with its interval; NaN without anything to score."""

    figure: float
    low: float
    """Lower end of the bootstrap's percentile interval at 1 - `Decision.level`, for one look."""
    high: float


@dataclass(frozen=True, slots=True)
class Gain:
    """Score of the challenger minus that of the champion."""

    difference: Estimate
    standard_error: float
    """Standard error of the difference, by the bootstrap."""
    lower: float
    """Lower bound of the true gain at this look's level; -inf where there is none."""
    detectable: float
    """True gain that would be promoted in 80 of 100 cases at this look."""
    differing: int
    """Number of images on which the models' predictions differ."""
    undefined: int
    """Number of draws without any true instance or pixel."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group of the holdout's images."""

    name: str
    images: int
    challenger: float
    champion: float | None
    floor: float | None
    """Minimum score of the group, or None."""
    judged: bool
    """False: too few images, or no truth; reported only."""
    problem: str | None
    """Why the group refuses the challenger; None where it does not."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the challenger is promoted or refused, and why."""

    metric: str
    """`AP` or `mIoU`."""
    holdout: str
    images: int
    look: int
    """Number of decisions on this holdout, this one included."""
    level: float
    """Error probability over all looks."""
    look_level: float
    """Error probability of this look."""
    margin: float
    draws: int
    seed: int
    challenger: Estimate
    champion: Estimate | None
    """None where there is no champion."""
    gain: Gain | None
    groups: tuple[GroupRow, ...]
    promoted: bool = False
    reasons: tuple[str, ...] = ()
    """Sentences: all reasons of a refusal, or those of a promotion."""
    notes: tuple[str, ...] = ()
    """Sentences: groups that were not judged, and the gain that the holdout can show."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dumps`; non-finite numbers become None."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain

    def lines(self) -> list[str]:
        """Return the decision as lines of text."""
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
