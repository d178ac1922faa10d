"""A `Profile`: how images and instances of a run are distributed, as counts in fixed bins.

Counts add: of parts of a run, of groups, of ten million images as of ten. So a profile is made in one pass
over some columns and stays small; a registry keeps it beside the model that was trained on these images.
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
"""Of the JSON; another one when a bin moves."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scale:
    """The bins of one measure; bin 0 is below edges[0], bin i is edges[i - 1] <= value < edges[i]."""

    edges: tuple[float, ...]
    low: float = 0.0
    """Where bin 0 begins: no value is below it."""
    high: float | None = None
    """Where the last bin ends; None: nowhere."""
    of_images: bool = True
    """A value an image; False: a value an instance."""

    @property
    def bins(self) -> int:
        """How many."""
        return len(self.edges) + 1

    def bin_of(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The bin of each value."""
        return np.searchsorted(self.edges, values, side="right").astype(np.int64)

    def bounds(self, first: int, last: int) -> tuple[float, float | None]:
        """(From, to) of neighbouring bins as one; to: None for the last bin of an open scale."""
        ends: tuple[float | None, ...] = (*self.edges, self.high)
        return (self.low, *self.edges)[first], ends[last]


def _halves(first: int, last: int) -> tuple[float, ...]:
    """2^(first / 2), ..., 2^(last / 2): two bins for each doubling."""
    return tuple(2.0 ** (power / 2) for power in range(first, last + 1))


SCALES: Mapping[str, Scale] = {
    "score": Scale(tuple(step / 50 for step in range(1, 50)), high=1.0, of_images=False),
    "area": Scale(_halves(1, 80), of_images=False),  # pixels
    "instances": Scale((*map(float, range(1, 17)), *map(round, _halves(9, 40)))),  # an image
    "brightness": Scale(tuple(map(float, range(4, 256, 4))), high=255.0),
    "sharpness": Scale(_halves(-8, 40)),
}
"""Measures that are numbers; beside them there is `class`."""
CLASS = "class"
INSTANCE_MEASURES = (*(name for name, scale in SCALES.items() if not scale.of_images), CLASS, "instances")
"""What a run without instances has not."""


def _no_counts() -> dict[str, Counts]:
    return {name: np.zeros(scale.bins, np.int64) for name, scale in SCALES.items()}


@dataclass
class Sample:
    """Counts of some images and their instances."""

    images: int = 0
    """Those that were annotated; all that is counted is of them."""
    rejected: int = 0
    instances: int = 0
    squares: int = 0
    """Sum over images of the square of their number of instances."""
    counts: dict[str, Counts] = field(default_factory=_no_counts)
    """Measure -> images or instances in each bin of its scale."""
    classes: Counter[str] = field(default_factory=Counter)

    @property
    def clusters(self) -> float:
        """To how many independent instances those of these images amount, at least (0 where there are none).

        Instances of one image are alike. Were they all the same, a share among them would vary as that of
        (sum n_i)^2 / sum n_i^2 independent ones (Kish, Survey Sampling, 1965: effective sample size of
        clusters of n_i); so few are counted on.
        """
        return self.instances**2 / self.squares if self.squares else 0.0

    def add(self, other: "Sample") -> None:
        """Count the other's images too."""
        for name in ("images", "rejected", "instances", "squares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for measure, counts in other.counts.items():
            self.counts[measure] = self.counts[measure] + counts
        self.classes.update(other.classes)

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **{name: getattr(self, name) for name in ("images", "rejected", "instances", "squares")},
            "counts": {measure: counts.tolist() for measure, counts in self.counts.items()},
            "classes": dict(sorted(self.classes.items())),
        }

    @staticmethod
    def of_plain(plain: Any) -> "Sample":
        """Raises LookupError, TypeError or ValueError for what `as_plain` did not make."""
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
        raise ValueError(f"{value!r} is no count")
    return value


@dataclass
class Profile:
    """Of one run."""

    run: str
    """Its address, without credentials."""
    lacks: Sequence[str] = ()
    """Measures that are not in its tables: of label maps those of instances, of an older version's output
    brightness and sharpness."""
    overall: Sample = field(default_factory=Sample)
    group_by: str | None = None
    groups: dict[str | None, Sample] = field(default_factory=dict)
    """By the values of `group_by`; None: images without one."""

    def to_json(self) -> str:
        """What `from_json` reads."""
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
        """Raises SettingsError, naming `where`, for what `to_json` did not write."""
        try:
            plain = json.loads(text)
            if plain["format"] != FORMAT:
                raise ValueError(f"its format is {plain['format']!r}, not {FORMAT}; make it again")
            groups = {each["group"]: Sample.of_plain(each) for each in plain["groups"]}
            overall = Sample.of_plain(plain["overall"])
            lacks = [str(each) for each in plain["lacks"]]
            return Profile(str(plain["run"]), lacks, overall, plain["group_by"], groups)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise SettingsError(
                f"{where} is not a profile that segray made: {type(error).__name__}: {error}"
            ) from error


def sorted_groups(groups: Mapping[str | None, Sample]) -> list[tuple[str | None, Sample]]:
    """By name, images without a group last."""
    return sorted(groups.items(), key=lambda each: (each[0] is None, each[0] or ""))
