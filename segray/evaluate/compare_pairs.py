"""Predicted label images against true ones: pairs of one name -> scores and problems.

In two folders, a pair has the same path below them, up to the suffix. What cannot be compared is a problem
with a name and a reason, never an exception, and is in no score; scores are always reported with their
problems.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from segray.data.labels import LabelRules, ReadStored, fit_to, read_label
from segray.errors import ItemError, NothingToDoError
from segray.evaluate.confusion_matrix import SemanticScores
from segray.sources.item import Source
from segray.sources.label_image import read_stored
from segray.sources.read_step import fetch_files
from segray.storage import StorageSettings

Labels = NDArray[np.uint8]
Files = Mapping[str, Sequence[Source]]
"""Name without suffix -> the files of that name; normally one."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A pair that could not be compared."""

    name: str
    """Path below the folders, without suffix."""
    reason: str
    """One line for a person."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Truth and prediction of one image."""

    name: str
    truth: Source
    prediction: Source


@dataclass(frozen=True, slots=True)
class Matched:
    """The matched pairs, before an image is read."""

    pairs: list[Pair]
    problems: list[Problem]
    """True images without exactly one prediction."""
    extra: int
    """Number of predictions without a truth."""
    by_file_name: int = 0
    """Number of pairs with the same file name in other folders."""

    @property
    def labels(self) -> int:
        """Return the number of true images."""
        return len(self.pairs) + len(self.problems)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of pairs; `a + b` holds both."""

    scores: SemanticScores
    compared: int
    """Number of pairs in the scores."""
    problems: tuple[Problem, ...] = ()
    """Pairs that are not in the scores."""
    contents: tuple[bytes, ...] = ()
    """sha256 of name, truth and prediction of each pair that was compared."""

    def digest(self) -> str:
        """Return the sha256 over all that was compared, independent of order and shards, hex."""
        return hashlib.sha256(b"".join(sorted(self.contents))).hexdigest()

    def __add__(self, other: "Comparison") -> "Comparison":
        """Return both together. Raises ValueError if they were counted by different rules."""
        return Comparison(
            self.scores + other.scores,
            self.compared + other.compared,
            self.problems + other.problems,
            self.contents + other.contents,
        )


def match_files(true: Files, found: Files) -> Matched:
    """Return a pair for each name that has one truth and one prediction, else a problem.

    Raises NothingToDoError where there is no truth.
    """
    if not true:
        raise NothingToDoError("labels: no label images: nothing to compare")
    pairs, problems = list[Pair](), list[Problem]()
    for name, files in sorted(true.items()):
        predictions = found.get(name, ())
        reason = _mismatch(files, predictions)
        if reason is None:
            pairs.append(Pair(name, files[0], predictions[0]))
        else:
            problems.append(Problem(name, reason))
    return Matched(pairs, problems, sum(len(files) for name, files in found.items() if name not in true))


def _mismatch(true: Sequence[Source], predictions: Sequence[Source]) -> str | None:
    twice = next((files for files in (true, predictions) if len(files) > 1), None)
    if twice:
        ends = " and ".join(PurePosixPath(file.uri).name for file in twice[:3])
        return f"{ends} have the same name: it is unknown which of them counts"
    if true[0].error is not None:
        return f"truth: {true[0].error}"
    return None if predictions else "missing: no prediction of this name"


def compare_pairs(
    pairs: Sequence[Pair],
    rules: LabelRules,
    max_pixels: int,
    storage: StorageSettings,
    prediction_rules: LabelRules | None = None,
    *,
    fit: bool = False,
    read: ReadStored = read_stored,
) -> Comparison:
    """Score pairs, whatever their names; `rules` read the truth.

    Predictions are class indices unless `prediction_rules` say otherwise; unknown values in them count as
    wrong. With `fit`, predictions have the size of their images, and a truth that is stored at another
    scale is resized to it, as training does; without it, another size is a problem.
    """
    found_rules = prediction_rules or LabelRules(rules.classes, unknown_is_void=True)
    scores, problems, contents = SemanticScores(rules.classes), list[Problem](), list[bytes]()
    files = _files((file for pair in pairs for file in (pair.truth, pair.prediction)), storage)
    for pair in pairs:
        true, found = next(files), next(files)
        try:
            labels = _read("truth", true, rules, max_pixels, read)
            predicted = _read("prediction", found, found_rules, max_pixels, read)
            if fit:
                labels = fit_to(labels, *predicted.shape)
            _check_sizes(labels, predicted)
            scores.add(labels, predicted)
        except ItemError as error:
            problems.append(Problem(pair.name, error.reason))
        else:
            contents.append(content_of(pair.name, true, found))
    return Comparison(scores, len(contents), tuple(problems), tuple(contents))


def content_of(name: str, *files: bytes | ItemError) -> bytes:
    """Return the sha256 over a name and the digests of files that could be read."""
    digests = [hashlib.sha256(file).digest() for file in files if isinstance(file, bytes)]
    return hashlib.sha256(name.encode("utf-8", "surrogateescape") + b"\0" + b"".join(digests)).digest()


def _files(sources: Iterable[Source], storage: StorageSettings) -> Iterator[bytes | ItemError]:
    """Yield the bytes of each file, in order, or its error."""
    for table in fetch_files(list(sources), storage):
        for row in table.select(["data", "error_type", "error"]).to_pylist():
            yield row["data"] if row["error_type"] is None else ItemError(row["error_type"], row["error"])


def _read(what: str, file: bytes | ItemError, rules: LabelRules, max_pixels: int, read: ReadStored) -> Labels:
    """Return the label's classes. Raises ItemError that says whether truth or prediction is at fault."""
    try:
        if isinstance(file, ItemError):
            raise file
        return read_label(file, rules, max_pixels, read)
    except ItemError as error:
        raise ItemError(error.error_type, f"{what}: {error.reason}") from error


def _check_sizes(true: Labels, found: Labels) -> None:
    if true.shape != found.shape:
        there, here = (" x ".join(map(str, each.shape[::-1])) for each in (found, true))
        raise ItemError("unsupported", f"prediction: {there} pixels, its truth {here}")
