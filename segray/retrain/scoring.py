"""Score a model on the held-out images, for both tasks; the gate compares two such scores."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from segray.annotate.settings import AnnotateSettings
from segray.data.labels import LabelRules
from segray.errors import ExitCode, ItemError, JobFailedError
from segray.evaluate.average_precision import InstanceScores
from segray.evaluate.categories import CategoryMap
from segray.evaluate.confusion_matrix import SemanticScores
from segray.evaluate.settings import EvaluateSettings
from segray.palette import VOID
from segray.retrain.labels import TEST
from segray.retrain.matches import ConfusionMatrices, InstanceMatches
from segray.retrain.settings import SCORE_THRESHOLD, RetrainSettings
from segray.settings import without_environment

DETECTIONS = 500
"""Maximum detections of an image and category, as in training; COCO's 100 are too few for dense images."""


@dataclass(frozen=True)
class Scored:
    """Scores of one model on the holdout."""

    matches: InstanceMatches | ConfusionMatrices
    names: dict[str, str]
    """Image name in `matches` -> its URL."""
    lost: list[str]
    """Images that could not be scored, with the reason."""
    figures: dict[str, float]
    """All metrics, for the model card."""
    scores: InstanceScores | None = None
    """Truth and predictions, for an instance model."""
    run: str = ""
    """Output of `annotate`, for an instance model."""


def manifest(addresses: Sequence[str]) -> bytes:
    """Return a manifest of these URLs for `annotate`."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table({"uri": pa.array(list(addresses), pa.string())}), sink)
    return sink.getvalue()


def score_instances(settings: RetrainSettings, weights: str, labels: str, items: str, output: str) -> Scored:
    """Annotate the holdout and match the predictions with the truth.

    labels: COCO JSON with splits. items: the manifest of the split test. Raises JobFailedError where
    annotating fails, SettingsError as `annotate` does.
    """
    from segray.annotate.task import Annotate
    from segray.bulk.job import done
    from segray.evaluate.compare_instances import find_instances

    given = {
        **{"score_threshold": SCORE_THRESHOLD, **settings.score, "sources": [items], "output": output},
        **{"weights": weights, "storage": settings.storage, "ray": settings.ray, "device": settings.device},
        "max_rejects": 1.0,  # rejects are counted here
    }
    code, _ = done(Annotate(without_environment(AnnotateSettings, given)))
    if code != ExitCode.DONE:
        raise JobFailedError(f"annotating the holdout ended with exit code {code}; run again")
    evaluation = find_instances(_evaluation(settings, output, labels), output, labels)
    scores, problems, categories = evaluation.scored()
    _say_unknown(categories, weights)
    names = {image.key: image.name for image in evaluation.labels.images.values()}
    matches = InstanceMatches.of(scores, DETECTIONS)
    figures = scores.figures("segm", DETECTIONS).overall
    lost = [f"{problem.name}: {problem.reason}" for problem in problems]
    return Scored(matches, names, lost, figures, scores, output)


def _evaluation(settings: RetrainSettings, output: str, labels: str) -> EvaluateSettings:
    given = {
        **{"predictions": output, "labels": labels, "output": output, "split": TEST},
        **{"categories": "name", "storage": settings.storage, "detections": DETECTIONS},
    }
    made: EvaluateSettings = without_environment(EvaluateSettings, given)
    return made


def _say_unknown(categories: CategoryMap, weights: str) -> None:
    from segray.log import say

    if categories.unknown:
        names = ", ".join(name for name, _ in categories.unknown.most_common(5))
        say(f"{weights} also finds {names}, which the labels do not have: not counted")


def in_common(scored: Sequence[Scored]) -> list[Scored]:
    """Return the same models restricted to the images on which all of them were scored."""
    shared = set.intersection(*(set(each.matches.images) for each in scored))
    kept = []
    for each in scored:
        if set(each.matches.images) == shared:
            kept.append(each)
        elif isinstance(each.matches, InstanceMatches):
            assert each.scores is not None
            scores = each.scores.without(set(each.scores.images) - shared)
            kept.append(replace(each, matches=InstanceMatches.of(scores, DETECTIONS), scores=scores))
        else:
            keep = [index for index, name in enumerate(each.matches.images) if name in shared]
            found = each.matches
            parts = (found.hits[keep], found.true[keep], found.found[keep])
            kept.append(
                replace(each, matches=ConfusionMatrices(tuple(found.images[p] for p in keep), *parts))
            )
    return kept


def score_semantic(
    settings: RetrainSettings, weights: str, labels: str, rules: LabelRules, names: Sequence[str]
) -> Scored:
    """Compute one confusion matrix for each held-out image, in this process.

    rules: how labels are read. names: names of their classes; the model's classes are matched by name, and
    predictions of a class that the labels lack are wrong. Raises SettingsError, JobFailedError.
    """
    from segray.data.pair_reader import Reader
    from segray.data.pairs import list_pairs
    from segray.evaluate.compare_model import BATCH, classified
    from segray.evaluate.report import Progress
    from segray.models.device import resolve_device
    from segray.models.weights import load_weights

    model = load_weights(weights, settings.storage, "semantic")
    table = np.full(256, VOID, np.uint8)
    for number, name in enumerate(model.classes):
        if name in names:
            table[number] = names.index(name)
    pairs = [pair for pair in list_pairs(labels, settings.storage).pairs if pair.split == TEST]
    reader = Reader(rules, settings.max_pixels, settings.storage)
    device, progress = resolve_device(settings.device), Progress(len(pairs), "scored")
    found, lost = dict[str, SemanticScores](), list[str]()
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        for pair, example in zip(batch, reader.read(batch), strict=True):
            if isinstance(example, ItemError):
                lost.append(f"{pair.name}: {example.reason}")
                continue
            ((_, truth, classes),) = classified(model, [(pair.name, example.pixels, example.classes)], device)
            found[pair.image.uri] = SemanticScores(len(names))
            found[pair.image.uri].add(truth, table[classes.numpy()])
        progress.add(len(batch))
    whole = sum(found.values(), SemanticScores(len(names))).compute()
    figures = {"miou": whole["miou"], "dice": whole["dice"], "pixel_accuracy": whole["pixel_accuracy"]}
    return Scored(ConfusionMatrices.of(found), {name: name for name in found}, lost, figures)
