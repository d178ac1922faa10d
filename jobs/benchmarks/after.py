"""After the network: points of mIoU that each step of `predict` adds, and its CPU time, on labelled images.

Needs `--people MODEL DATA SPLIT` or `--streets MODEL DATA SPLIT`: a semantic model, data as `evaluate` takes
them, and the split to score. Every map is made by the functions of `predict`'s model step at the image's own
size, in fp32, and is scored there. A figure is the difference to the map without any step, with its 95 %
interval over 1,000 draws of the images; CPU seconds an image are told apart for network and steps.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.benchmarks.measure import Figure, Options
from segray.data.pair_reader import Example, Reader
from segray.errors import ItemError
from segray.evaluate.compare_model import find_model
from segray.evaluate.confusion_matrix import SemanticScores
from segray.evaluate.settings import EvaluateSettings
from segray.models.weights import LoadedModel
from segray.predict.blend import labels_of
from segray.predict.cleanup import CleanUp
from segray.predict.network import Network
from segray.predict.refine import Refinement
from segray.predict.settings import CrfSettings, PredictSettings
from segray.predict.windowed import slid

VOID = {"people": [], "streets": [11]}
CRF = {"crf": CrfSettings(iterations=5)}
ARMS: dict[str, Mapping[str, Any]] = {
    "nothing": {},
    "--crf.iterations 5": CRF,
    "--smallest-area 50": {"smallest_area": 50},
    "--smallest-area 500": {"smallest_area": 500},
    "--smallest-area 5000": {"smallest_area": 5000},
    "--close-holes 500": {"close_holes": 500},
    "--close-holes 5000": {"close_holes": 5000},
    "--crf.iterations 5 --smallest-area 500": {**CRF, "smallest_area": 500},
    "--superpixels 8": {"superpixels": 8},
    "--superpixels 16": {"superpixels": 16},
    "--tta flip": {"tta": "flip"},
    "--tta flip --crf.iterations 5": {"tta": "flip", **CRF},
    "--sliding-window 256": {"sliding_window": 256},
}
DRAWS = 1_000


@dataclass(frozen=True)
class Arm:
    """The pixels of each image, counted, and what they took."""

    matrices: NDArray[np.int64]
    """(images, classes, classes + 1)."""
    network: float
    """CPU seconds an image of the network."""
    steps: float
    """CPU seconds an image of what follows it."""

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
    views = Views(model, [each.pixels for each in examples])
    base: Arm | None = None
    for words, settings in ARMS.items():
        if "sliding_window" in settings and model.resized_to:
            continue
        arm = scored(views, examples, settings)
        base = base or arm
        told = f"mIoU {arm.miou():.2f} of {len(examples)} images; CPU seconds an image: "
        told += f"network {arm.network:.2f}, steps {arm.steps:.3f}"
        yield Figure(f"{name}: points of mIoU by {words}", "", interval(base, arm), [told])


def loaded(given: Sequence[str], void: list[int]) -> tuple[LoadedModel, list[Example]]:
    """The model, and the images of a split with their labels."""
    weights, data, split = given
    settings = EvaluateSettings(weights=weights, data=data, split=split, output="unused", void=void)
    found = find_model(settings, weights, data)
    reader = Reader(found.rules, settings.max_pixels, settings.storage)
    examples = [each for each in reader.read(found.chosen.pairs) if not isinstance(each, ItemError)]
    return found.model, examples


class Views:
    """What the network finds in the images, once for each way in which it looks at them."""

    def __init__(self, model: LoadedModel, images: Sequence[NDArray[np.uint8]]) -> None:
        self.model, self._images = model, images
        self._last: tuple[object, list[NDArray[np.uint16]], float] | None = None

    def of(self, tta: str, window: int | None) -> tuple[list[NDArray[np.uint16]], float]:
        """Probabilities of each image, and CPU seconds an image; those of the last way are kept."""
        if self._last is None or self._last[0] != (tta, window):
            network = Network(self.model, "cpu", "fp32", tta)

            def found(some: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint16]]:
                return list(network.labels_and_probabilities(some)[1])

            started, classes = time.process_time(), len(self.model.classes)
            shares = [slid(each, window, found, classes, 1) if window else found([each])[0]
                      for each in self._images]  # fmt: skip
            seconds = (time.process_time() - started) / len(shares)
            self._last = (tta, window), shares, seconds
        return self._last[1], self._last[2]


def scored(views: Views, examples: Sequence[Example], given: Mapping[str, Any]) -> Arm:
    """Count one arm's pixels."""
    model, matrices = views.model, []
    settings = PredictSettings(sources=["in"], output="unused", weights=model.name, **given)
    shares, network = views.of(settings.tta, settings.sliding_window)
    refinement = Refinement(settings, torch.device("cpu"))
    clean_up = CleanUp(settings.smallest_area, settings.close_holes, model.classes)
    started = time.process_time()
    for example, found in zip(examples, shares, strict=True):
        refined = refinement.image(example.pixels, found) if refinement else found
        scores = SemanticScores(len(model.classes))
        scores.add(example.classes, clean_up.array(labels_of(refined)))
        matrices.append(scores.matrix)
    return Arm(np.stack(matrices), network, (time.process_time() - started) / len(examples))


def interval(base: Arm, arm: Arm) -> list[float]:
    """The difference's lower end, itself, and its upper end: 95 % of the draws of images."""
    random, images = np.random.default_rng(0), len(arm.matrices)
    draws = random.multinomial(images, [1 / images] * images, DRAWS)
    low, high = np.quantile([arm.miou(each) - base.miou(each) for each in draws], [0.025, 0.975])
    return [float(low), arm.miou() - base.miou(), float(high)]
