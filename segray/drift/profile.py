"""A `Profile`: the distribution of a run's images and instances, as counts in fixed bins.

Counts can be added, over parts of a run and over groups. So a profile is computed in one pass over some
columns and its size does not depend on the number of images; a registry stores it with the model.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.errors import SettingsError

FORMAT = 1
"""Version of the JSON format; increased when a bin changes."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scale:
    """The bins of one measure; bin 0 is below edges[0], bin i is edges[i - 1] <= value < edges[i]."""

    edges: tuple[float, ...]
    low: float = 0.0
    """Lower end of bin 0: no value is below it."""
    high: float | None = None
    """Upper end of the last bin; None: unbounded."""
    of_images: bool = True
    """One value an image; False: one value an instance."""

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self.edges) + 1

    def bin_of(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the bin of each value: float64 (n,) to int64 (n,)."""
        return np.searchsorted(self.edges, values, side="right").astype(np.int64)

    def bounds(self, first: int, last: int) -> tuple[float, float | None]:
        """Return (from, to) of merged neighbouring bins; to: None for the last bin of an unbounded scale."""
        ends: tuple[float | None, ...] = (*self.edges, self.high)
        return (self.low, *self.edges)[first], ends[last]


def _halves(first: int, last: int) -> tuple[float, ...]:
    """Return 2^(first / 2), ..., 2^(last / 2): two bins for each doubling."""
    return tuple(2.0 ** (power / 2) for power in range(first, last + 1))


SCALES: Mapping[str, Scale] = {
    "score": Scale(tuple(step / 50 for step in range(1, 50)), high=1.0, of_images=False),
    "area": Scale(_halves(1, 80), of_images=False),  # pixels
    "instances": Scale((*map(float, range(1, 17)), *map(round, _halves(9, 40)))),  # an image
    "brightness": Scale(tuple(map(float, range(4, 256, 4))), high=255.0),
    "sharpness": Scale(_halves(-8, 40)),
}
"""Numeric measures; `class` is the other one."""
CLASS = "class"
INSTANCE_MEASURES = (*(name for name, scale in SCALES.items() if not scale.of_images), CLASS, "instances")
"""Measures that a run without instances lacks."""


def _no_counts() -> dict[str, Counts]:
    return {name: np.zeros(scale.bins, np.int64) for name, scale in SCALES.items()}


@dataclass
class Sample:
    """Counts of some images and their instances."""

    images: int = 0
    """Number of annotated images; all other counts are of these."""
    rejected: int = 0
    instances: int = 0
    squares: int = 0
    """Sum over images of the square of their number of instances."""
    counts: dict[str, Counts] = field(default_factory=_no_counts)
    """Measure -> images or instances in each bin of its scale."""
    classes: Counter[str] = field(default_factory=Counter)

    @property
    def clusters(self) -> float:
        """Minimum number of independent instances to which the sample's are equivalent (0 without instances).

        Instances of one image are correlated. If they were all the same, a share among them would vary as
        that of (sum n_i)^2 / sum n_i^2 independent ones (Kish, Survey Sampling, 1965: effective sample size
        of clusters of n_i); this lower bound is used.
        """
        return self.instances**2 / self.squares if self.squares else 0.0

    def add(self, other: "Sample") -> None:
        """Add the counts of another sample."""
        for name in ("images", "rejected", "instances", "squares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for measure, counts in other.counts.items():
            self.counts[measure] = self.counts[measure] + counts
        self.classes.update(other.classes)

    def as_plain(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            **{name: getattr(self, name) for name in ("images", "rejected", "instances", "squares")},
            "counts": {measure: counts.tolist() for measure, counts in self.counts.items()},
            "classes": dict(sorted(self.classes.items())),
        }

    @staticmethod
    def of_plain(plain: Any) -> "Sample":
        """Read the values of `as_plain`. Raises LookupError, TypeError or ValueError for invalid ones."""
        numbers = {name: _count(plain[name]) for name in ("images", "rejected", "instances", "squares")}
        counts = {}
        for measure, scale in SCALES.items():
            counts[measure] = np.array([_count(each) for each in plain["counts"][measure]], np.int64)
            if len(counts[measure]) != scale.bins:
                raise ValueError(f"{measure} has {len(counts[measure])} bins, not {scale.bins}")
        classes = Counter({str(name): _count(each) for name, each in plain["classes"].items()})
        return Sample(**numbers, counts=counts, classes=classes)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


@dataclass
class Profile:
    """Counts of one run, overall and by group."""

    run: str
    """URL of the run, without credentials."""
    lacks: Sequence[str] = ()
    """Measures that are not in its tables: for label maps those of instances, for an older version's output
    brightness and sharpness."""
    overall: Sample = field(default_factory=Sample)
    group_by: str | None = None
    groups: dict[str | None, Sample] = field(default_factory=dict)
    """Value of `group_by` -> its sample; None: images without a value."""

    def to_json(self) -> str:
        """Return the profile as JSON for `from_json`."""
        groups = [{"group": group, **sample.as_plain()} for group, sample in sorted_groups(self.groups)]
        plain = {
            "format": FORMAT,
            "run": self.run,
            "lacks": list(self.lacks),
            "overall": self.overall.as_plain(),
            "group_by": self.group_by,
            "groups": groups,
        }
        return json.dumps(plain, ensure_ascii=False)

    @staticmethod
    def from_json(text: str | bytes, where: str = "profile") -> "Profile":
        """Read the JSON of `to_json`. Raises SettingsError, which names `where`, for invalid text."""
        try:
            plain = json.loads(text)
            if plain["format"] != FORMAT:
                raise ValueError(f"its format is {plain['format']!r}, not {FORMAT}; create it again")
            groups = {each["group"]: Sample.of_plain(each) for each in plain["groups"]}
            overall = Sample.of_plain(plain["overall"])
            lacks = [str(each) for each in plain["lacks"]]
            return Profile(str(plain["run"]), lacks, overall, plain["group_by"], groups)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise SettingsError(
                f"{where} is not a segray profile: {type(error).__name__}: {error}"
            ) from error


def sorted_groups(groups: Mapping[str | None, Sample]) -> list[tuple[str | None, Sample]]:
    """Return the groups by name, images without a group last."""
    return sorted(groups.items(), key=lambda each: (each[0] is None, each[0] or ""))
