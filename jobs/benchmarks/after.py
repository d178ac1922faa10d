"""After the network: points of mIoU that each step of `predict` adds, and its CPU time, on labelled images.

Needs `--people MODEL DATA SPLIT` or `--streets MODEL DATA SPLIT`: a semantic model, data as `evaluate` takes
them, and the split to score. Every map is made by `predict`'s own model step at the image's own size, in
fp32, and is scored there. A figure is the difference to the map without any step, with its 95 % interval over
1,000 draws of the images; CPU seconds an image are those of network and steps together.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.benchmarks.measure import Figure, Options
from segray.data.pair_reader import Example, Reader
from segray.errors import ItemError
from segray.evaluate.compare_model import find_model
from segray.evaluate.confusion_matrix import SemanticScores
from segray.evaluate.settings import EvaluateSettings
from segray.models.weights import LoadedModel
from segray.output.folder import Output
from segray.predict.predictor import MapPredictor
from segray.predict.settings import CrfSettings, PredictSettings

VOID = {"people": [], "streets": [11]}
CRF = {"crf": CrfSettings(iterations=5)}
ARMS: dict[str, Mapping[str, Any]] = {
    "nothing": {},
    "--tta flip": {"tta": "flip"},
    "--sliding-window 256": {"sliding_window": 256},
    "--crf.iterations 5": CRF,
    "--crf.iterations 5, pydensecrf's w1 10": {"crf": CrfSettings(iterations=5, w1=10.0, theta_alpha=80.0)},
    "--superpixels 6": {"superpixels": 6},
    "--superpixels 12": {"superpixels": 12},
    "--superpixels 24": {"superpixels": 24},
    "--smallest-area 50": {"smallest_area": 50},
    "--smallest-area 500": {"smallest_area": 500},
    "--smallest-area 5000": {"smallest_area": 5000},
    "--close-holes 500": {"close_holes": 500},
    "--close-holes 5000": {"close_holes": 5000},
    "--smallest-area 5000 --close-holes 5000": {"smallest_area": 5000, "close_holes": 5000},
    "--tta flip --crf.iterations 5 --smallest-area 500": {"tta": "flip", **CRF, "smallest_area": 500},
}
DRAWS = 1_000


@dataclass(frozen=True)
class Arm:
    """The pixels of each image, counted, and what they took."""

    matrices: NDArray[np.int64]
    """(images, classes, classes + 1)."""
    seconds: float
    """CPU seconds an image."""

    def miou(self, weights: NDArray[np.int64] | None = None) -> float:
        """Of all images together; weights: how often each image counts."""
        some = self.matrices if weights is None else self.matrices * weights[:, None, None]
        scores = SemanticScores(some.shape[1], matrix=some.sum(0))
        return 100 * scores.compute()["miou"]


def figures(options: Options) -> Iterator[Figure]:
    """A figure for each data set and step."""
    for name in VOID:
        given = getattr(options, name)
        if given is None:
            yield Figure(f"{name}: points of mIoU", "", [], [f"needs --{name} MODEL DATA SPLIT"])
        else:
            yield from _figures(name, given, quick=options.quick)


def _figures(name: str, given: Sequence[str], *, quick: bool) -> Iterator[Figure]:
    model, examples = loaded(given, VOID[name])
    examples = examples[:3] if quick else examples
    base: Arm | None = None
    for words, settings in ARMS.items():
        if "sliding_window" in settings and model.resized_to:
            continue
        arm = scored(model, examples, settings)
        base = base or arm
        told = f"mIoU {arm.miou():.2f} of {len(examples)} images, {arm.seconds:.2f} CPU seconds an image"
        yield Figure(f"{name}: points of mIoU by {words}", "", interval(base, arm), [told])


def loaded(given: Sequence[str], void: list[int]) -> tuple[LoadedModel, list[Example]]:
    """The model, and the images of a split with their labels."""
    weights, data, split = given
    settings = EvaluateSettings(weights=weights, data=data, split=split, output="unused", void=void)  # type: ignore[arg-type]
    found = find_model(settings, weights, data)
    reader = Reader(found.rules, settings.max_pixels, settings.storage)
    examples = [each for each in reader.read(found.chosen.pairs) if not isinstance(each, ItemError)]
    return found.model, examples


def scored(model: LoadedModel, examples: Sequence[Example], given: Mapping[str, Any]) -> Arm:
    """Count one arm's pixels."""
    matrices = []
    with tempfile.TemporaryDirectory() as folder:
        settings = PredictSettings(sources=["in"], output=folder, weights=model.name, **given)
        predictor = MapPredictor(model, settings, "cpu", "fp32", 1, None, Output(folder, settings.storage))
        started = time.process_time()
        for example in examples:
            ((labels, _),) = predictor._maps([example.pixels])
            scores = SemanticScores(len(model.classes))
            scores.add(example.classes, labels)
            matrices.append(scores.matrix)
        seconds = (time.process_time() - started) / len(examples)
    return Arm(np.stack(matrices), seconds)


def interval(base: Arm, arm: Arm) -> list[float]:
    """The difference's lower end, itself, and its upper end: 95 % of the draws of images."""
    random, images = np.random.default_rng(0), len(arm.matrices)
    draws = random.multinomial(images, [1 / images] * images, DRAWS)
    low, high = np.quantile([arm.miou(each) - base.miou(each) for each in draws], [0.025, 0.975])
    return [float(low), arm.miou() - base.miou(), float(high)]
