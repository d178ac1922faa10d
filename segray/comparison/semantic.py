"""Semantic models over pairs of images and label maps: one model after the other, its scores as a file."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segray.comparison.candidates import Candidate, lacking
from segray.comparison.choose_images import ImageChoice
from segray.comparison.results import Results
from segray.comparison.score_file import ImageScore, read_scores, write_scores
from segray.comparison.semantic_figures import semantic_results
from segray.comparison.settings import CompareSettings
from segray.data.labels import LabelRules
from segray.data.pair_reader import Example, Reader
from segray.data.pairs import Pair, Pairs
from segray.errors import ItemError, NothingToDoError, SettingsError
from segray.evaluate.categories import plain_name
from segray.evaluate.compare_model import BATCH, Classifier, scoring_precision
from segray.evaluate.compare_pairs import content_of
from segray.evaluate.confusion_matrix import SemanticScores
from segray.evaluate.labels import Chosen, choose, label_rules, split_sizes
from segray.evaluate.report import Progress
from segray.evaluate.settings import EvaluateSettings
from segray.log import say
from segray.models.device import Precision, is_out_of_memory, resolve_device
from segray.models.weights import load_weights
from segray.output.folder import Output
from segray.palette import VOID
from segray.settings import without_environment

Bytes = NDArray[np.uint8]
FOLDER = "scores"


@dataclass(frozen=True)
class SemanticData:
    """The pairs of the split, and how they are compared."""

    settings: CompareSettings
    chosen: Chosen
    classes: tuple[str, ...]
    """Of the labels, from 0 up."""
    rules: LabelRules
    reason: str
    """Why labels are read with these rules."""
    own_size: bool
    """Whether all models are compared at the images' own size."""
    device: str
    precision: Precision
    lacks: tuple[str, ...]
    """Lines on classes that models do not have."""

    @cached_property
    def digest(self) -> str:
        """Return the sha256 over addresses and versions of the files, hex."""
        found = hashlib.sha256()
        for pair in self.chosen.pairs:
            for file in (pair.image, pair.label):
                found.update(f"{file.uri}\0{file.version}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    @property
    def number(self) -> int:
        """Return the number of images of the split, rejected ones included."""
        return len(self.chosen.pairs) + len(self.chosen.problems)

    def notes(self) -> list[str]:
        """Return lines on how the images are compared."""
        lines = [f"{self.reason}.", *self.lacks]
        if self.own_size:
            lines.append("All models are compared at the images' own size.")
        return lines

    def file_of(self, candidate: Candidate) -> str:
        """Return the name of its score file in the output: another one for other images or settings."""
        settings = self.settings
        how = (self.classes, self.rules, self.own_size, self.device, self.precision, settings.max_pixels)
        return f"{FOLDER}/{candidate.slug}-{candidate.key(self.digest, *how)}.parquet"

    def score(self, candidate: Candidate, store: Output) -> bool:
        """Run the model over the pairs without a score, and write its score file; return False where none is.

        Pairs that an earlier run could not score have none where the settings retry rejected ones.
        """
        name, pairs = self.file_of(candidate), self.chosen.pairs
        old = None
        if name in store.files(FOLDER):
            old = self._url(name)
            pairs = [*self._rejected(old)] if self.settings.retry_rejected else []
            if not pairs:
                return False
        say(f"{candidate.name}: scoring {len(pairs):,} images")
        with tempfile.TemporaryDirectory(prefix="segray-compare-") as folder:
            path = Path(folder, "scores.parquet")
            scored = self._scored(candidate, pairs)
            write_scores(path, scored if old is None else self._mended(old, scored))
            store.put_file(name, path)
        return True

    def _rejected(self, url: str) -> Iterator[Pair]:
        """Yield the pairs that have an error in a score file."""
        scores = read_scores(url, self.settings.storage)
        for pair, score in zip(self.chosen.pairs, scores, strict=True):
            if score.error is not None:
                yield pair

    def _mended(self, url: str, scored: Iterator[ImageScore]) -> Iterator[ImageScore]:
        """Yield a file's scores with those of its errors, in their order, in their place."""
        for score in read_scores(url, self.settings.storage):
            yield score if score.error is None else next(scored)

    def _url(self, name: str) -> str:
        return f"{self.settings.output.rstrip('/')}/{name}"

    def results(self, candidates: Sequence[Candidate], choice: ImageChoice) -> Results:
        """Return the figures of all models, whose score files are there."""
        settings = self.settings
        files = [self._url(self.file_of(each)) for each in candidates]
        found = semantic_results([each.name for each in candidates], files, self.classes, settings, choice)
        return replace(
            found, problems=sorted([*self.chosen.problems, *found.problems], key=lambda each: each.name)
        )

    def pixels(self, names: Sequence[str]) -> Iterator[tuple[str, Bytes | ItemError]]:
        """Yield the pixels of some images, uint8 (height, width, 3)."""
        by_name = {pair.name: pair for pair in self.chosen.pairs}
        for pair, example in self.examples([by_name[name] for name in names]):
            yield pair.name, example if isinstance(example, ItemError) else example.pixels

    def _scored(self, candidate: Candidate, pairs: Sequence[Pair]) -> Iterator[ImageScore]:
        model = load_weights(candidate.spec, self.settings.storage, "semantic")
        classifier = Classifier(model, self.device, self.precision)
        classes_of = class_map(model.classes, self.classes)
        progress = Progress(len(pairs), f"images scored by {candidate.name}")
        for pair, example in self.examples(pairs):
            if isinstance(example, ItemError):
                yield ImageScore(pair.name, b"", (0, 0), example.reason)
            else:
                yield self._one(pair, example, classifier, classes_of)
            progress.add(1)

    def _one(self, pair: Pair, example: Example, classifier: Classifier, classes_of: Bytes) -> ImageScore:
        size = example.classes.shape[0], example.classes.shape[1]
        content = content_of(pair.name, example.digest.encode(), example.label_digest.encode())
        scores = SemanticScores(len(self.classes))
        try:
            truth, found = classifier.compared(example.pixels, example.classes, own_size=self.own_size)
            scores.add(truth, classes_of[found.numpy()])
        except Exception as error:  # noqa: BLE001 - a model of the user's own may raise anything
            return ImageScore(pair.name, content, size, _reason(error))
        return ImageScore.of(pair.name, content, size, scores)

    def examples(self, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Example | ItemError]]:
        """Yield pairs with what was read of them."""
        reader = Reader(self.rules, self.settings.max_pixels, self.settings.storage)
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            yield from zip(batch, reader.read(batch), strict=True)


def _reason(error: Exception) -> str:
    if is_out_of_memory(error):
        return "it does not fit into memory; set max_pixels lower to reject such images"
    return f"the model failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def class_map(model: Sequence[str], labels: Sequence[str]) -> Bytes:
    """Return (256,) uint8: class of the labels for each class of a model, by name; else VOID."""
    numbers = {plain_name(name): number for number, name in enumerate(labels)}
    found = np.full(256, VOID, np.uint8)
    for number, name in enumerate(model):
        found[number] = numbers.get(plain_name(name), VOID)
    return found


def find_semantic(settings: CompareSettings, candidates: Sequence[Candidate], listed: Pairs) -> SemanticData:
    """Choose the pairs of the split, and decide how they are compared.

    Raises SettingsError for what does not fit the models, NothingToDoError for a split without a pair.
    """
    names = _classes(settings, candidates)
    chosen = choose(listed, settings.split)
    if not chosen.pairs:
        advice = "use the splits.csv of the training, another split, or all"
        raise NothingToDoError(
            f"data: none in the split {settings.split}: they are {split_sizes(listed)}; {advice}"
        )
    own = _evaluating(settings, candidates[0].spec)
    rules, classes, reason = label_rules(own, [pair.label for pair in listed.pairs], names)
    lacks = lacking(candidates, classes)
    device = resolve_device(settings.device)
    own_size = settings.pixels == "image"
    if settings.pixels == "auto":
        own_size = len({each.resized_to for each in candidates}) > 1
    return SemanticData(
        settings,
        chosen,
        tuple(classes),
        rules,
        reason,
        own_size,
        device,
        scoring_precision(settings.precision, device),
        lacks,
    )


def _classes(settings: CompareSettings, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Return the names of the labels' classes. Raises SettingsError where the models disagree."""
    if settings.classes is not None:
        return tuple(settings.classes)
    first, *others = candidates
    for other in others:
        if [*map(plain_name, other.classes)] != [*map(plain_name, first.classes)]:
            raise SettingsError(
                f"classes: {first.name} has {', '.join(first.classes)}, {other.name} has "
                f"{', '.join(other.classes)}; set classes to those of the labels, from 0 up"
            )
    return first.classes


def _evaluating(settings: CompareSettings, weights: str) -> EvaluateSettings:
    """Return the same settings as those of `segray evaluate` for one model."""
    same = ("data", "output", "split", "root", "classes", "values", "void", "colours", "max_pixels")
    given = {name: getattr(settings, name) for name in (*same, "storage", "ray", "device", "precision")}
    made: EvaluateSettings = without_environment(EvaluateSettings, {**given, "weights": weights})
    return made
