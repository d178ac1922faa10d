"""Sentences of a decision: reasons of a refusal or promotion, and what was not judged."""

import math

from segray.retrain.bounds import least_differing
from segray.retrain.decision import Decision


def problems(decision: Decision, least_figure: float) -> list[str]:
    """Return all reasons to refuse the challenger; empty: it is promoted."""
    if not decision.images:
        found = [f"The holdout {decision.holdout} has no image."]
    elif decision.gain is None:
        found = _of_first_version(decision, least_figure)
    else:
        found = _without_truth(decision) or _of_gain(decision)
    return found + [row.problem for row in decision.groups if row.problem]


def merits(decision: Decision, least_figure: float) -> list[str]:
    """Return the reasons of a promotion."""
    metric, mine, champion = decision.metric, decision.challenger.figure, decision.champion
    if champion is None or decision.gain is None:
        lines = [f"It is the first version, and its {metric} of {mine:.4f} is above {least_figure:.4f}."]
    else:
        lines = [
            f"The {metric} rises from {champion.figure:.4f} to {mine:.4f}: {_at(decision)} the gain exceeds "
            f"{decision.gain.lower:+.4f}, which is above the margin of {decision.margin:.4f}."
        ]
    judged = sum(row.judged for row in decision.groups)
    return [*lines, f"No group fails, of {judged} that were judged."] if judged else lines


def notes(decision: Decision, least: int) -> list[str]:
    """Return which groups are only reported, and which gain this holdout can show."""
    lines = []
    for row in decision.groups:
        if row.images and not row.judged:
            why = f"fewer than {least:,}" if row.images < least else "and none has any truth"
            lines.append(f"Group {row.name}: reported, not judged; its images are {row.images:,}, {why}.")
    if decision.gain is not None and math.isfinite(decision.gain.detectable):
        lines.append(
            f"At this look {decision.images:,} images show a true gain of {decision.gain.detectable:.4f} "
            f"{decision.metric} in 80 of 100 cases; smaller ones need more images."
        )
    return lines


def _of_first_version(decision: Decision, least_figure: float) -> list[str]:
    figure = decision.challenger.figure
    if math.isnan(figure) or figure > least_figure:
        return _without_truth(decision)
    return [
        f"A first version must score above {least_figure:.4f} {decision.metric}; this one has {figure:.4f}."
    ]


def _without_truth(decision: Decision) -> list[str]:
    pair = {"challenger": decision.challenger, "champion": decision.champion}
    return [
        f"The {decision.metric} of the {name} cannot be computed: the holdout has no truth."
        for name, score in pair.items()
        if score is not None and math.isnan(score.figure)
    ]


def _of_gain(decision: Decision) -> list[str]:
    gain, champion, images = decision.gain, decision.champion, decision.images
    if gain is None or champion is None:
        return []
    if not gain.differing:
        return [f"Champion and challenger predict the same on all {images:,} images of the holdout."]
    change = f"The {decision.metric} goes from {champion.figure:.4f} to {decision.challenger.figure:.4f}"
    if gain.difference.figure <= decision.margin:
        return [f"{change}, which is not above the margin of {decision.margin:.4f}."]
    if gain.differing < least_differing(decision.look_level):
        return [
            f"{change}, but the models differ on {gain.differing:,} of {images:,} images; {_at(decision)} "
            f"no outcome on fewer than {least_differing(decision.look_level)} is beyond chance."
        ]
    if gain.lower > decision.margin:
        return []
    if not math.isfinite(gain.lower):
        return [
            f"{change}, but too few images have any truth: {gain.undefined:,} of {decision.draws:,} draws "
            "had none."
        ]
    return [
        f"{change}, which noise may explain: {_at(decision)} the gain is only known to exceed "
        f"{gain.lower:+.4f}, and that must be above the margin of {decision.margin:.4f}."
    ]


def _at(decision: Decision) -> str:
    return f"at level {decision.look_level:.2g} (look {decision.look})"
