"""Matches of instance models -> figures, draws of the bootstrap, and which images to draw."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from segray.comparison.choose_images import ImageChoice
from segray.comparison.results import ModelResult, Results, most_frequent
from segray.comparison.settings import CompareSettings
from segray.errors import SettingsError
from segray.evaluate.compare_instances import InstanceEvaluation
from segray.evaluate.compare_pairs import Problem
from segray.evaluate.instance_report import Compared
from segray.evaluate.matching import Kind
from segray.evaluate.precision_recall import (
    BOUNDED,
    Category,
    InstanceFigures,
    Resampling,
    figures,
    image_hash,
    ranked,
)
from segray.log import say


def instance_results(
    models: Sequence[str],
    evaluations: Sequence[InstanceEvaluation],
    settings: CompareSettings,
    choice: ImageChoice,
) -> Results:
    """Return the figures of the models over the images that all of them could do.

    models, evaluations: name of each model, and its predictions; choice: collects the images to draw.
    """
    sizes = dict(zip(evaluations[0].names, evaluations[0].wanted.sizes, strict=True))
    found = [_compared(own, name) for own, name in zip(evaluations, models, strict=True)]
    common = set.intersection(*({*_kept(each)} for each in found))
    problems = _problems(models, found, common)
    results, alone = list[ModelResult](), list[NDArray[np.float64]]()
    names = sorted(common)
    for each in found:
        result, f1 = _result(each, common, settings)
        results.append(result)
        alone.append(np.array([f1[name] for name in names]))
    if names:
        choice.offer(names, np.stack(alone, axis=1))
    size = most_frequent(Counter(sizes[name] for name in names))
    return Results(results, len(common), problems, choice.chosen(), size)


def _compared(evaluation: InstanceEvaluation, name: str) -> Compared:
    say(f"{name}: matching with the labels")
    try:
        return evaluation.compared()
    except SettingsError as error:  # no category in common
        raise SettingsError(*(f"weights {name}: {line}" for line in error.lines)) from error


def _kept(compared: Compared) -> Iterator[str]:
    return (name for name, kept in zip(compared.names, compared.kept.tolist(), strict=True) if kept)


def _problems(names: Sequence[str], found: Sequence[Compared], common: set[str]) -> list[Problem]:
    """Return one problem for each image that is in no score, with what each model says of it."""
    reasons: dict[str, dict[str, str]] = {}
    for name, each in zip(names, found, strict=True):
        for problem in each.problems:
            reasons.setdefault(problem.name, {})[name] = problem.reason
    lines = []
    for image, by_model in sorted(reasons.items()):
        if image in common:
            continue
        same = len(by_model) == len(names) and len({*by_model.values()}) == 1
        text = (
            next(iter(by_model.values()))
            if same
            else "; ".join(f"{name}: {reason}" for name, reason in by_model.items())
        )
        lines.append(Problem(image, text))
    return lines


def _result(
    compared: Compared, common: set[str], settings: CompareSettings
) -> tuple[ModelResult, dict[str, float]]:
    """Return a model's figures over the common images, and its F1 on each of them."""
    kept = np.array([name in common for name in compared.names], bool) & compared.kept
    matches = compared.matches.of_images(kept)
    hashes = np.array([image_hash(name) for name in compared.names], np.uint64)
    resampling = Resampling(hashes, settings.draws, settings.seed)
    ranks = {kind: dict(ranked(matches, kind, settings.detections)) for kind in matches.states}
    kinds = {kind: figures(each.items(), settings.detections) for kind, each in ranks.items()}
    categories, found = ranks["segm"], kinds["segm"]
    mean, each = resampling.drawn(categories)
    f1 = _f1_of_images(categories, len(compared.names))
    names = compared.categories
    result = ModelResult(
        _overall(kinds),
        {
            names[number]: found.per_category[number]
            for number in sorted(found.per_category)
            if number in names and categories[number].truth(0)[0]
        },
        {kind: value.overall for kind, value in kinds.items()},
        dict(zip(BOUNDED, mean, strict=True)),
        {names[number]: dict(zip(BOUNDED, rows, strict=True)) for number, rows in each.items()},
        {
            "predictions": len(matches.score),
            "unknown_categories": dict(compared.unknown),
            "thresholds": [
                {"class": names[number], "id": number, **asdict(category.best_f1())}
                for number, category in categories.items()
                if number in names
            ],
        },
    )
    return result, {
        name: float(value) for name, value, use in zip(compared.names, f1, kept, strict=True) if use
    }


def _overall(kinds: Mapping[Kind, InstanceFigures]) -> dict[str, float]:
    """Return the figures of masks, and AP of boxes."""
    return {**kinds["segm"].overall, "box_ap": kinds["bbox"].overall["ap"]}  # ap first


def _f1_of_images(categories: dict[int, Category], images: int) -> NDArray[np.float64]:
    """Return F1 at IoU 0.5 of each image, (images,), above each category's best threshold; NaN: nothing."""
    false, missed, there = (np.zeros(images, np.int64) for _ in range(3))
    for category in categories.values():
        wrong, lost = category.errors(category.best_f1().score, images)
        false, missed = false + wrong, missed + lost
        there = there + category.truth_of_images(images)
    hits = there - missed
    whole = 2 * hits + false + missed
    share: NDArray[np.float64] = np.divide(2 * hits, whole, out=np.full(images, np.nan), where=whole > 0)
    return share
