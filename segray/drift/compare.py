"""Compare two profiles measure by measure, overall and in each group."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segray.drift.divergence import common_classes, js, js_of_noise, merged_bins, psi, psi_of_noise
from segray.drift.profile import CLASS, SCALES, Counts, Profile, Sample, sorted_groups

MEASURES = ("score", CLASS, "area", "instances", "brightness", "sharpness")
OTHERS = "(others)"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds from which on a measure has drifted."""

    psi: float = 0.2
    """Population stability index: above 0.1 is a change, above 0.25 a large one (Siddiqi 2006)."""
    js: float = 0.1
    """Jensen-Shannon divergence in bits."""
    min_images: int = 100
    noise: float = 0.01
    """Probability that noise alone crosses any threshold, divided among all comparisons (Bonferroni)."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """One measure of two samples, counted in the bins of the comparison."""

    run: Counts
    against: Counts
    values: tuple[float, float]
    """Number of independent values of each sample."""
    bins: list[dict[str, Any]]
    medians: tuple[float | None, float | None] = (None, None)


def compare(run: Profile, against: Profile, thresholds: Thresholds) -> dict[str, Any]:
    """Return the comparison as plain values for JSON: `drifted`, and each measure overall and by group.

    A measure has crossed where its index or divergence reaches its threshold and exceeds the noise of samples
    of this size. A measure that cannot be judged has the reason in `why`.
    """
    notes = list(_notes(run, against))
    by_group = run.group_by is not None and run.group_by == against.group_by
    names = [name for name, _ in sorted_groups(run.groups | against.groups)] if by_group else []
    pairs: list[tuple[str | None, Sample, Sample]] = [(None, run.overall, against.overall)]
    pairs += [(name, run.groups.get(name, Sample()), against.groups.get(name, Sample())) for name in names]
    sections = [_section(*pair, run, against, thresholds) for pair in pairs]
    _judge(sections, thresholds)
    overall, *groups = sections
    del overall["group"]
    crossed = [
        {"group_by": None if section is overall else run.group_by, "group": section.get("group"),
         "measure": measure["measure"]}
        for section in sections for measure in section["measures"] if measure["crossed"]
    ]  # fmt: skip
    return {
        "run": run.run,
        "against": against.run,
        "group_by": run.group_by if by_group else None,
        "thresholds": asdict(thresholds),
        "drifted": bool(crossed),
        "crossed": crossed,
        "judged": sum(measure["judged"] for section in sections for measure in section["measures"]),
        "notes": notes,
        "overall": overall,
        "groups": groups,
    }


def _notes(run: Profile, against: Profile) -> Iterator[str]:
    for profile in (run, against):
        if profile.lacks:
            yield f"{profile.run} has no {', '.join(profile.lacks)}"
        if not profile.overall.images:
            yield f"{profile.run} has no annotated images"
        elif "score" not in profile.lacks and not profile.overall.instances:
            yield f"{profile.run} has no instances"
    if run.group_by is not None and run.group_by != against.group_by:
        kept = "without groups" if against.group_by is None else f"by {against.group_by}"
        yield f"the profile of {against.run} was made {kept}: groups are not compared"


def _section(
    group: str | None, run: Sample, against: Sample, of: Profile, other: Profile, thresholds: Thresholds
) -> dict[str, Any]:
    both = {"run": run, "against": against}
    counts = {
        name: {side: getattr(sample, name) for side, sample in both.items()}
        for name in ("images", "rejected", "instances")
    }
    measures = [_measure(name, run, against, of, other, thresholds) for name in MEASURES]
    return {"group": group, **counts, "measures": measures}


def _measure(
    name: str, run: Sample, against: Sample, of: Profile, other: Profile, thresholds: Thresholds
) -> dict[str, Any]:
    pair, why = None, _missing(name, of, other)
    if why is None:
        pair = _classes(run, against) if name == CLASS else _numbers(name, run, against)
        sides = [side for side, sample in (("run", run), ("against", against)) if not _values(name, sample)]
        if pair is None:
            why = f"no {_of(name)} in {' and '.join(sides)}"
        elif min(run.images, against.images) < thresholds.min_images:
            why = f"fewer than {thresholds.min_images:,} images"
    figures: dict[str, Any] = dict.fromkeys(("psi", "js", "median", "median_against"))
    if pair is not None:
        figures = {"psi": psi(pair.run, pair.against), "js": js(pair.run, pair.against)}
        figures |= dict(zip(("median", "median_against"), pair.medians, strict=True))
    return {
        "measure": name,
        **figures,
        "noise_psi": None,
        "noise_js": None,
        "judged": why is None,
        "crossed": False,
        "why": why,
        "values": None if pair is None else dict(zip(("run", "against"), pair.values, strict=True)),
        "bins": [] if pair is None else pair.bins,
    }


def _missing(name: str, run: Profile, against: Profile) -> str | None:
    sides = [side for side, profile in (("run", run), ("against", against)) if name in profile.lacks]
    return f"not recorded in {' and '.join(sides)}" if sides else None


def _of(name: str) -> str:
    """Return what a measure counts, as text."""
    if name == CLASS or not SCALES[name].of_images:
        return "instances" if name == CLASS else f"instances with a {name}"
    return f"images with a known {name}" if name != "instances" else "annotated images"


def _values(name: str, sample: Sample) -> int:
    return sample.classes.total() if name == CLASS else int(sample.counts[name].sum())


def _independent(name: str, sample: Sample) -> float:
    values = _values(name, sample)
    of_images = name != CLASS and SCALES[name].of_images
    return float(values) if of_images else min(float(values), sample.clusters or 1.0)


def _classes(run: Sample, against: Sample) -> _Pair | None:
    names = sorted(run.classes | against.classes)
    counts = [np.array([sample.classes[name] for name in names], np.int64) for sample in (run, against)]
    if not all(each.sum() for each in counts):
        return None
    values = _independent(CLASS, run), _independent(CLASS, against)
    common = common_classes(counts[0], counts[1], min(values))
    both = [np.append(each[common], each[~common].sum()) for each in counts]
    labels = [*(name for name, own in zip(names, common, strict=True) if own), OTHERS]
    if not any(each[-1] for each in both):
        both, labels = [each[:-1] for each in both], labels[:-1]
    bins = [{"class": label, **_shares(both, index)} for index, label in enumerate(labels)]
    return _Pair(both[0], both[1], values, bins)


def _numbers(name: str, run: Sample, against: Sample) -> _Pair | None:
    counts = [sample.counts[name] for sample in (run, against)]
    if not all(each.sum() for each in counts):
        return None
    values = _independent(name, run), _independent(name, against)
    merged = merged_bins(counts[0], counts[1], min(values))
    both = [np.array([each[first : last + 1].sum() for first, last in merged], np.int64) for each in counts]
    bins = []
    for index, (first, last) in enumerate(merged):
        low, high = SCALES[name].bounds(first, last)
        bins.append({"from": low, "to": high, **_shares(both, index)})
    medians = _median(name, counts[0]), _median(name, counts[1])
    return _Pair(both[0], both[1], values, bins, medians)


def _shares(both: Sequence[Counts], index: int) -> dict[str, float]:
    return {
        side: float(counts[index] / counts.sum())
        for side, counts in zip(("share", "share_against"), both, strict=True)
    }


def _median(name: str, counts: Counts) -> float:
    """Return the median within a bin: interpolated, or for whole numbers the bin's lower end."""
    upto = np.cumsum(counts)
    half = upto[-1] / 2
    index = int(np.searchsorted(upto, half))
    low, high = SCALES[name].bounds(index, index)
    if name == "instances" or high is None:
        return low
    before = upto[index - 1] if index else 0
    return low + (high - low) * float(half - before) / float(counts[index])


def _judge(sections: Sequence[dict[str, Any]], thresholds: Thresholds) -> None:
    """Fill in the noise of each measure, and which measures exceed it and reach their thresholds."""
    judged = [each for section in sections for each in section["measures"] if each["judged"]]
    for measure in judged:
        values = measure["values"].values()
        about = (len(measure["bins"]), *values, thresholds.noise / len(judged))
        measure["noise_psi"], measure["noise_js"] = psi_of_noise(*about), js_of_noise(*about)
        measure["crossed"] = any(
            measure[name] >= threshold and measure[name] > measure[f"noise_{name}"]
            for name, threshold in (("psi", thresholds.psi), ("js", thresholds.js))
        )
