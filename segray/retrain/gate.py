"""The gate: a challenger replaces the champion only where its higher score is unlikely to be noise.

Paired bootstrap over images (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993): images are
drawn with replacement, both models are scored on the same draw, and the lower bound of the difference must
exceed the margin. `bounds.look_level` gives the error level of each further look at one holdout.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from segray.evaluate.matching import Bools, Floats
from segray.retrain import reasons
from segray.retrain.bounds import bootstrap, detectable, interval, look_level, lower_bound, seed_of
from segray.retrain.decision import Decision, Estimate, Gain, GroupRow
from segray.retrain.matches import Matches


@dataclass(frozen=True, slots=True)
class Gate:
    """The rules of promotion. Raises ValueError for invalid rules, all of them at once."""

    margin: float = 0.0
    """Minimum of the lower bound of the gain, in the score's own unit: 0.01 is a point."""
    level: float = 0.05
    """Probability that noise is ever promoted, over all looks at one holdout."""
    draws: int = 10_000
    floors: Mapping[str, float] = field(default_factory=dict)
    """Lowest score of a group, by its name."""
    group_drop: float | None = None
    """Maximum drop of any group's score below the champion's; None: not judged."""
    least: int = 10
    """Minimum number of images to judge a group; smaller groups are only reported."""
    least_figure: float = 0.0
    """Score that a first version, without a champion, must exceed."""

    def __post_init__(self) -> None:
        wrong = {
            "margin: must be 0 or more": not 0 <= self.margin < math.inf,
            "level: must be above 0 and below 0.5": not 0 < self.level < 0.5,
            "draws: must be 100 or more": self.draws < 100,
            "least: must be 1 or more": self.least < 1,
            "group_drop: must be 0 or more": self.group_drop is not None and not self.group_drop >= 0,
            "least_figure: must be a number": math.isnan(self.least_figure),
            "floors: must be numbers": any(map(math.isnan, self.floors.values())),
        }
        if any(wrong.values()):
            raise ValueError("; ".join(line for line, is_wrong in wrong.items() if is_wrong))

    def decide(
        self,
        challenger: Matches,
        champion: Matches | None,
        *,
        holdout: str,
        look: int,
        promotions: int = 0,
        groups: Mapping[str, str] | None = None,
    ) -> Decision:
        """Compare both on one holdout; `look` counts the decisions on it, this one included, from 1.

        `promotions` is the number of earlier ones that replaced a champion; they lower the error level, too.
        `groups` is image name to group, for images that have one. The same arguments give the same decision:
        the draws are seeded by the names of holdout and look.

        Raises ValueError for models that were scored on different images or by different metrics, and for a
        look below 1.
        """
        level, seed = look_level(self.level, look, promotions), seed_of(holdout, look)
        pair = [challenger] if champion is None else [challenger, champion]
        if len({(model.images, model.metric) for model in pair}) > 1:
            raise ValueError("champion and challenger are scored on different images or metrics")
        whole = np.ones(len(challenger.images), bool)
        figures = [_figure(model, whole) for model in pair]
        drawn = bootstrap(pair, self.draws, seed)
        estimates = [self._estimate(*each) for each in zip(figures, drawn, strict=True)]
        gain = None
        if champion is not None:
            differing = int(challenger.differing(champion).sum())
            gain = self._gain(figures[0] - figures[1], drawn[0] - drawn[1], level, differing)
        undecided = Decision(
            metric=challenger.metric,
            holdout=holdout,
            images=len(challenger.images),
            look=look,
            level=self.level,
            look_level=level,
            margin=self.margin,
            draws=self.draws,
            seed=seed,
            challenger=estimates[0],
            champion=None if champion is None else estimates[1],
            gain=gain,
            groups=tuple(_Groups(self, challenger, champion, groups or {}).rows()),
        )
        problems = reasons.problems(undecided, self.least_figure)
        return replace(
            undecided,
            promoted=not problems,
            reasons=tuple(problems or reasons.merits(undecided, self.least_figure)),
            notes=tuple(reasons.notes(undecided, self.least)),
        )

    def _estimate(self, figure: float, drawn: Floats) -> Estimate:
        return Estimate(figure, *interval(drawn, self.level))

    def _gain(self, figure: float, drawn: Floats, level: float, differing: int) -> Gain:
        known = drawn[np.isfinite(drawn)]
        error = float(known.std(ddof=1)) if len(known) > 1 else math.nan
        return Gain(
            difference=self._estimate(figure, drawn),
            standard_error=error,
            lower=lower_bound(figure, drawn, level, differing),
            detectable=detectable(error, level, differing, self.margin),
            differing=differing,
            undefined=len(drawn) - len(known),
        )


class _Groups:
    """Scores of the groups of one holdout."""

    def __init__(
        self, gate: Gate, challenger: Matches, champion: Matches | None, groups: Mapping[str, str]
    ) -> None:
        self._gate, self._challenger, self._champion = gate, challenger, champion
        self._members = [groups.get(name) for name in challenger.images]

    def rows(self) -> list[GroupRow]:
        """Return one row a group, by name, including groups with a floor and without an image."""
        names = {name for name in self._members if name is not None} | set(self._gate.floors)
        return [self._row(name) for name in sorted(names)]

    def _row(self, name: str) -> GroupRow:
        gate, mask = self._gate, np.array([member == name for member in self._members], bool)
        images, floor = int(mask.sum()), gate.floors.get(name)
        mine = _figure(self._challenger, mask)
        theirs = None if self._champion is None else _figure(self._champion, mask)
        judged = images >= gate.least and not math.isnan(mine)
        return GroupRow(name, images, mine, theirs, floor, judged, self._problem(name, images, mine, theirs))

    def _problem(self, name: str, images: int, mine: float, theirs: float | None) -> str | None:
        gate, metric = self._gate, self._challenger.metric
        floor = gate.floors.get(name)
        if not images:
            return f"Group {name}: has a floor, and no image in the holdout."
        if images < gate.least or math.isnan(mine):
            return None
        if floor is not None and mine < floor:
            return f"Group {name}: {mine:.4f} {metric} is below its floor of {floor:.4f}."
        if gate.group_drop is None or theirs is None or theirs - mine <= gate.group_drop:
            return None
        drop = f"by more than {gate.group_drop:.4f}"
        return f"Group {name}: falls from {theirs:.4f} to {mine:.4f} {metric}, {drop}."


def _figure(model: Matches, images: Bools) -> float:
    """Return the score on these images, bool (images,); NaN without truth or without any image."""
    return float(model.figure(images.astype(np.int64)[None])[0]) if images.any() else math.nan
