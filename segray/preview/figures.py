"""Histograms and counts over all rows of a run: the profile that `segray drift` computes, for the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from segray.drift.profile import SCALES, Profile
from segray.drift.reading import profile_of
from segray.preview.runs import Run

TITLES = {
    "score": "Score",
    "area": "Area of an instance, pixels",
    "instances": "Instances an image",
    "brightness": "Brightness of an image, mean grey",
    "sharpness": "Sharpness of an image, variance of the Laplacian",
}
_MERGED = {"score": 2, "brightness": 4}
"""So many of the profile's bins make one bar."""


def figures_of(run: Run) -> tuple[Profile, list[dict[str, Any]]]:
    """Return the profile of all rows, and its histograms. Raises SettingsError as `profile_of` does."""
    profile = profile_of(run.url, run.storage)
    return profile, [
        histogram(name, profile)
        for name in TITLES
        if name not in profile.lacks and profile.overall.counts[name].any()
    ]


def histogram(name: str, profile: Profile) -> dict[str, Any]:
    """Return title, edges and counts of a measure, without empty bins at its ends."""
    return _histogram(name, [profile])


def histograms_of_both(runs: Sequence[Run], profiles: Sequence[Profile]) -> list[dict[str, Any]]:
    """Return the histograms of two runs in the same bins, those that either has."""
    known = [name for name in TITLES if any(each.overall.counts[name].any() for each in profiles)]
    names = [run.name for run in runs]
    return [_histogram(name, profiles) | {"names": names} for name in known]


def _histogram(name: str, profiles: Sequence[Profile]) -> dict[str, Any]:
    """Return edges and counts (`counts`, and `counts2` of a second profile) of the bins that are filled."""
    scale, step = SCALES[name], _MERGED.get(name, 1)
    starts = range(0, scale.bins, step)
    counts = [[sum(each.overall.counts[name].tolist()[at : at + step]) for at in starts] for each in profiles]
    bounds = [scale.bounds(at, min(at + step, scale.bins) - 1) for at in starts]
    filled = [index for index, several in enumerate(zip(*counts, strict=True)) if any(several)]
    kept = slice(filled[0], filled[-1] + 1)
    ends = bounds[kept]
    found = {f"counts{side}": each[kept] for side, each in zip(("", "2"), counts, strict=False)}
    return {"name": name, "title": TITLES[name], "edges": [low for low, _ in ends] + [ends[-1][1]], **found}


def classes_of(profile: Profile) -> Mapping[str, int]:
    """Return class -> instances, the most frequent first."""
    return dict(sorted(profile.overall.classes.items(), key=lambda each: (-each[1], each[0])))
