"""A semantic model over pairs of images and labels: one at a time, resized as in training."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional

from segray.data.labels import LabelRules, nearest_pixels
from segray.data.pair_reader import Reader
from segray.data.pairs import list_pairs
from segray.errors import ItemError, JobFailedError, NothingToDoError, SettingsError
from segray.evaluate.compare_maps import semantic_outcome
from segray.evaluate.compare_pairs import Comparison, Problem, content_of
from segray.evaluate.confusion_matrix import SemanticScores
from segray.evaluate.labels import Chosen, choose, label_rules, split_sizes
from segray.evaluate.report import Outcome, Progress
from segray.evaluate.settings import EvaluateSettings
from segray.models.device import Precision, arithmetic, is_out_of_memory, resolve_device, resolve_precision
from segray.models.semantic import classes_of
from segray.models.weights import LoadedModel, load_weights

Bytes = NDArray[np.uint8]
Picture = tuple[str, Bytes, Bytes]
"""Name, pixels (height, width, 3) uint8, classes (height, width) uint8 with 255 for void."""
BATCH = 16
"""Pairs that are read at a time."""


def score_semantic(
    model: LoadedModel, pictures: Iterable[Picture], device: str = "cpu", precision: Precision = "fp32"
) -> SemanticScores:
    """Count the model's classes of each image, as training counts its val images after an epoch.

    Raises as `classified` does.
    """
    scores = SemanticScores(len(model.classes))
    for _, truth, found in classified(model, pictures, device, precision):
        scores.add(truth, found)
    return scores


def classified(
    model: LoadedModel, pictures: Iterable[Picture], device: str = "cpu", precision: Precision = "fp32"
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (name, true classes, predicted classes) of each image, uint8 (height, width) on the CPU.

    An image goes through the model alone and at its own size or, for a model that was trained on resized
    images, at their size, with its label. Raises JobFailedError for an image that does not fit into memory.
    """
    classifier = Classifier(model, device, precision)
    for name, pixels, classes in pictures:
        try:
            truth, found = classifier.compared(pixels, classes)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise JobFailedError(
                f"{name}: {size} pixels do not fit into memory; set max_pixels lower and run again"
            ) from error
        yield name, truth, found


class Classifier:
    """A semantic model on its device: bytes of images to bytes of classes."""

    def __init__(self, model: LoadedModel, device: str, precision: Precision) -> None:
        """Move the model to the device; device and precision: resolved."""
        self.resized_to, self._precision = model.resized_to, precision
        self._where, self._network = torch.device(device), model.module
        if isinstance(self._network, torch.nn.Module):
            self._network = self._network.to(self._where).to(memory_format=torch.channels_last)
        self._mean, self._std = (
            torch.tensor(each, device=self._where).reshape(1, 3, 1, 1) for each in (model.mean, model.std)
        )

    def compared(self, pixels: Bytes, classes: Bytes, *, own_size: bool = False) -> tuple[Tensor, Tensor]:
        """Return true and predicted classes of an image, uint8 (height, width) on the CPU.

        Both are resized as the model's training images were; own_size: at the image's own size instead.
        """
        image, truth = framed(pixels, classes, self.resized_to)
        if own_size:
            truth = torch.from_numpy(np.ascontiguousarray(classes))
        return truth, self.classes(image[None], tuple(truth.shape))[0]

    def classes(self, images: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
        """Return the classes of images of the network's size, uint8 (n, height, width) on the CPU.

        images: uint8 (n, 3, h, w); size: height and width of the result, default those of the images.
        """
        with arithmetic(self._where, self._precision):
            normal = images.to(self._where).float().div_(255).sub_(self._mean).div_(self._std)
            logits = self._network(normal.contiguous(memory_format=torch.channels_last))
            if size is not None and logits.shape[-2:] != size:
                logits = interpolate(logits.float(), size, mode="bilinear", align_corners=False)
            return classes_of(logits).cpu()


def framed(pixels: Bytes, classes: Bytes, side: int | None) -> tuple[Tensor, Tensor]:
    """Return uint8 pixels (3, height, width) and classes (height, width), both resized to `side` unless None.

    The arithmetic is that of `segray.train.transforms.semantic` for an image without augmentation.
    """
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    truth = torch.from_numpy(np.ascontiguousarray(classes))
    if side is None:
        return image, truth
    size = [side, side]
    narrow = side == 1  # torch 2.13 writes wrong levels for bytes in a single column
    resized = functional.resize(image.float() if narrow else image, size).round().to(torch.uint8)
    rows, cols = (torch.from_numpy(nearest_pixels(*each)) for each in zip(truth.shape, size, strict=True))
    return resized, truth[rows][:, cols]


@dataclass(frozen=True, slots=True)
class ModelEvaluation:
    """A model, and the pairs on which it is scored."""

    settings: EvaluateSettings
    model: LoadedModel
    chosen: Chosen
    rules: LabelRules
    reason: str
    device: str
    precision: Precision

    def about(self) -> list[str]:
        """Return lines on what would be scored."""
        return [
            f"{len(self.chosen.pairs):,} pairs of the split {_split(self.settings)}, "
            f"{len(self.chosen.problems):,} rejected",
            f"model: {self.model.name}, {len(self.model.classes)} classes, {self.device} in {self.precision}",
            self.reason,
        ]

    def run(self) -> Outcome:
        """Read the pairs and score the model on them."""
        settings, pairs = self.settings, self.chosen.pairs
        reader = Reader(self.rules, settings.max_pixels, settings.storage)
        problems, contents, progress = list(self.chosen.problems), list[bytes](), Progress(len(pairs))

        def pictures() -> Iterator[Picture]:
            for start in range(0, len(pairs), BATCH):
                batch = pairs[start : start + BATCH]
                for pair, example in zip(batch, reader.read(batch), strict=True):
                    if isinstance(example, ItemError):
                        problems.append(Problem(pair.name, example.reason))
                        continue
                    yield pair.name, example.pixels, example.classes
                    digests = example.digest.encode(), example.label_digest.encode()
                    contents.append(content_of(pair.name, *digests))
                progress.add(len(batch))

        scores = score_semantic(self.model, pictures(), self.device, self.precision)
        total = Comparison(scores, len(contents), contents=tuple(contents))
        side, notes = self.model.resized_to, [f"split {_split(settings)}", self.reason]
        notes += [f"images and labels at {side} x {side} pixels, as in training"] * (side is not None)
        found = semantic_outcome(total, self.model.classes, problems, notes=notes, model=self.model.digest)
        return replace(found, more={**found.more, "weights": self.model.name})


def _split(settings: EvaluateSettings) -> str:
    return settings.split or "test"


def find_model(settings: EvaluateSettings, weights: str, data: str) -> ModelEvaluation:
    """Load the model and list the data.

    Raises SettingsError for what is missing or cannot be read, NothingToDoError for a split without a pair.
    """
    model = load_weights(weights, settings.storage, "semantic")
    if settings.classes is not None and tuple(settings.classes) != model.classes:
        raise SettingsError(f"classes: the model's are {', '.join(model.classes)}; leave classes out")
    listed = list_pairs(data, settings.storage, settings.root)
    chosen, split = choose(listed, _split(settings)), _split(settings)
    if not chosen.pairs:
        advice = "use the splits.csv of the training, another split, or all"
        raise NothingToDoError(f"data: none in the split {split}: they are {split_sizes(listed)}; {advice}")
    rules, _, reason = label_rules(settings, [pair.label for pair in listed.pairs], model.classes)
    device = resolve_device(settings.device)
    precision = scoring_precision(settings.precision, device)
    return ModelEvaluation(settings, model, chosen, rules, reason, device, precision)


def scoring_precision(precision: str, device: str) -> Precision:
    """Return the precision, as in training: `auto` is bf16 where the GPU multiplies it, else fp32."""
    if precision == "auto" and device == "cuda":
        return resolve_precision("auto", device)
    return "bf16" if precision == "bf16" else "fp32"
