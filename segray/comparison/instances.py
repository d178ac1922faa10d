"""Instance models over COCO JSON or labels of annotate's shape: each annotates into a folder of its own.

    OUTPUT/predictions/NAME-KEY    what `annotate` found: `preview`, `export` and `evaluate` take it

The same steps as `segray evaluate --weights`, and so the same figures; but an image that one of the models
could not do counts for none.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.comparison.candidates import Candidate, lacking
from segray.comparison.choose_images import ImageChoice
from segray.comparison.instance_figures import instance_results
from segray.comparison.results import Results
from segray.comparison.settings import CompareSettings
from segray.data.coco_listing import coco_file_of
from segray.data.instance_files import holds_coco
from segray.errors import ItemError
from segray.evaluate.compare_detector import DetectorEvaluation, find_detector
from segray.evaluate.settings import EvaluateSettings
from segray.models.device import Precision, resolve_device, resolve_precision
from segray.output.folder import Output
from segray.output.reader import ledger_files
from segray.scenes.scene import Tiling
from segray.settings import without_environment
from segray.sources.byte_ranges import MemoryRanges
from segray.sources.decode_step import decode_image
from segray.sources.item import Source
from segray.sources.manifest import absolute, look_up_rows
from segray.sources.read_step import read_all
from segray.sources.sandbox import DecodeSandbox

FOLDER = "predictions"
_SAME = (
    *("data", "split", "root", "detections", "score_threshold", "annotate", "device", "precision"),
    *("max_pixels", "draws", "seed", "storage", "ray"),
)
_LOOKED_UP = 512
"""Images that are looked up at a time."""
Bytes = NDArray[np.uint8]
Masks = dict[str, list[dict[str, Any]]]
"""Image -> masks as COCO run lengths."""


@dataclass(frozen=True)
class InstanceData:
    """The images of the split, and how they are annotated."""

    settings: CompareSettings
    images: tuple[str, ...]
    """Addresses."""
    device: str
    precision: Precision
    lacks: tuple[str, ...]
    """Lines on categories that models do not have."""

    @cached_property
    def digest(self) -> str:
        """Return the sha256 over addresses and versions of the images and of the labels, hex.

        It asks the storage for each image, as annotate does.
        """
        settings = self.settings
        if holds_coco(settings.data, settings.storage):
            file, _ = coco_file_of(settings.data, settings.storage, settings.root)
            files = [file]
        else:
            files = list(ledger_files(settings.data, settings.storage))
        found = hashlib.sha256()
        for each in chain(_looked_up(self.images, settings), files):
            found.update(f"{each.uri}\0{each.version}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    @property
    def number(self) -> int:
        """Return the number of images of the split."""
        return len(self.images)

    @property
    def classes(self) -> None:
        """Return None: instances are outlined, whatever their class."""

    def notes(self) -> list[str]:
        """Return lines on how the images are compared."""
        return [
            f"At most {self.settings.detections} instances of an image and category count, those with a "
            f"score of {self.settings.score_threshold:g} or more.",
            *self.lacks,
        ]

    def results(self, candidates: Sequence[Candidate], choice: ImageChoice) -> Results:
        """Return the figures of all models, whose predictions are there."""
        evaluations = [self.evaluation(each).instances() for each in candidates]
        return instance_results([each.name for each in candidates], evaluations, self.settings, choice)

    def folder_of(self, candidate: Candidate) -> str:
        """Return the name of a model's folder in the output."""
        settings = self.settings
        how = (settings.score_threshold, settings.annotate, self.device, self.precision, settings.max_pixels)
        return f"{FOLDER}/{candidate.slug}-{candidate.key(*how)}"

    def evaluation(self, candidate: Candidate) -> DetectorEvaluation:
        """Return what `segray evaluate` would do with one model."""
        own = _evaluating(self.settings, candidate.spec, self.folder_of(candidate))
        return find_detector(own, candidate.spec, self.settings.data)

    def score(self, candidate: Candidate, _: Output) -> bool:
        """Annotate what is missing; return True: annotate tells where that is nothing."""
        found = self.evaluation(candidate)
        if self.settings.retry_rejected:
            own = found.settings
            again = {"annotate": {**own.annotate, "retry_rejected": True}}
            found = replace(found, settings=own.model_copy(update=again))
        found.annotated()
        return True

    def address_of(self, name: str) -> str:
        """Return the address of an image, by its name in the labels."""
        settings = self.settings
        if not holds_coco(settings.data, settings.storage):
            return name  # tables name images by their addresses
        _, base = coco_file_of(settings.data, settings.storage, settings.root)
        return absolute(name, base)

    def pixels(self, names: Sequence[str]) -> Iterator[tuple[str, Bytes | ItemError]]:
        """Yield the pixels of some images, uint8 (height, width, 3), one after the other."""
        settings = self.settings
        sources = _looked_up([self.address_of(name) for name in names], settings)
        with DecodeSandbox() as sandbox:
            for name, source in zip(names, sources, strict=True):
                yield name, _decoded(source, sandbox, settings)

    def masks(
        self, candidate: Candidate, names: Sequence[str], least: Mapping[int, float]
    ) -> tuple[Masks, Masks]:
        """Return true and predicted masks of some images; least: score of each category's predictions."""
        evaluation = self.evaluation(candidate).instances()
        numbers = {evaluation.names.index(name): name for name in names}
        truth: Masks = {name: [] for name in names}
        found: Masks = {name: [] for name in names}
        for row in evaluation.instance_rows(numbers):
            name = numbers[row["image"]]
            if row["counts"] is None:
                continue
            mask = {"size": list(evaluation.wanted.sizes[row["image"]]), "counts": row["counts"]}
            if np.isnan(row["score"]):
                truth[name].append(mask)
            elif row["score"] >= least.get(row["category"], np.inf):
                found[name].append(mask)
        return truth, found


def _looked_up(addresses: Sequence[str], settings: CompareSettings) -> Iterator[Source]:
    """Yield the files of addresses, in order; one that is not there has an error, and no version."""
    nowhere = Source("", "", "file", "", -1)
    for start in range(0, len(addresses), _LOOKED_UP):
        rows: list[tuple[int, str | None]] = [*enumerate(addresses[start : start + _LOOKED_UP], 2)]
        yield from look_up_rows(rows, nowhere, "/", settings.storage)


def _decoded(source: Source, sandbox: DecodeSandbox, settings: CompareSettings) -> Bytes | ItemError:
    """Return an image's pixels, or why there are none."""
    try:
        (data,) = read_all([source], settings.storage)
        if isinstance(data, ItemError):
            raise data
        file = MemoryRanges(source.uri, memoryview(data))
        return decode_image(sandbox, file, settings.max_pixels, Tiling()).pixels
    except ItemError as error:
        return error


def find_instance_data(settings: CompareSettings, candidates: Sequence[Candidate]) -> InstanceData:
    """List the data.

    Raises SettingsError for what is missing, NothingToDoError for a split without an image.
    """
    device = resolve_device(settings.device)
    found = find_detector(
        _evaluating(settings, candidates[0].spec, FOLDER), candidates[0].spec, settings.data
    )
    precision = resolve_precision(settings.precision, device)
    named = [each for each in candidates if each.classes]  # a factory may have numbers alone
    lacks = lacking(named, found.categories())
    return InstanceData(settings, tuple(found.images or ()), device, precision, lacks)


def _evaluating(settings: CompareSettings, weights: str, folder: str) -> EvaluateSettings:
    given = {name: getattr(settings, name) for name in _SAME}
    output = f"{settings.output.rstrip('/')}/{folder}"
    made: EvaluateSettings = without_environment(
        EvaluateSettings, {**given, "weights": weights, "output": output}
    )
    return made
