"""Histograms and counts over all rows of a run: the profile that `segray drift` computes, for the page."""

from collections.abc import Mapping
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
_LOGARITHMIC = ("area", "sharpness")
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
    scale, counts = SCALES[name], profile.overall.counts[name].tolist()
    step = _MERGED.get(name, 1)
    bars = [
        (scale.bounds(first, min(first + step, len(counts)) - 1), sum(counts[first : first + step]))
        for first in range(0, len(counts), step)
    ]
    filled = [index for index, (_, count) in enumerate(bars) if count]
    kept = bars[filled[0] : filled[-1] + 1]
    return {
        "name": name,
        "title": TITLES[name],
        "logarithmic": name in _LOGARITHMIC,
        "edges": [low for (low, _), _ in kept] + [kept[-1][0][1]],
        "counts": [count for _, count in kept],
    }


def classes_of(profile: Profile) -> Mapping[str, int]:
    """Return class -> instances, the most frequent first."""
    return dict(sorted(profile.overall.classes.items(), key=lambda each: (-each[1], each[0])))
