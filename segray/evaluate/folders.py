"""Predicted label pictures against true ones: two folders -> pairs of one name -> scores and problems.

A pair has one path below the two folders, up to the suffix. Predictions must have exactly the size of their
truth. What cannot be compared is a problem with a name and a reason, never an exception, and is in no score:
whoever reports the scores reports the problems beside them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from segray.errors import ItemError, SettingsError
from segray.evaluate.semantic import SemanticScores
from segray.sources.fetch import fetch_files
from segray.sources.item import Source
from segray.sources.labels import LabelRules, read_label
from segray.sources.listing import Listing
from segray.storage import StorageSettings, canonical_uri

Labels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Problem:
    """One pair that could not be compared."""

    name: str
    """Path below the folders, without suffix."""
    reason: str
    """One line for a person."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Truth and prediction of one picture."""

    name: str
    truth: Source
    prediction: Source


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared; `a + b` holds both."""

    scores: SemanticScores
    compared: int
    """Pairs that are in the scores."""
    problems: tuple[Problem, ...] = ()
    """Those that are not, in order of names."""
    extra: int = 0
    """Predictions without a truth: nothing to compare them with."""

    @property
    def failed(self) -> int:
        """How many true pictures are in no score."""
        return len(self.problems)

    def __add__(self, other: "Comparison") -> "Comparison":
        """Return both together; raises ValueError if they were counted by different rules."""
        return Comparison(
            self.scores + other.scores,
            self.compared + other.compared,
            self.problems + other.problems,
            self.extra + other.extra,
        )


def compare_folders(
    predictions: str,
    truth: str,
    rules: LabelRules,
    max_pixels: int,
    storage: StorageSettings | None = None,
    prediction_rules: LabelRules | None = None,
) -> Comparison:
    """Score the label pictures below the URL `predictions` with those below `truth`, which `rules` read.

    Predictions are class indices unless `prediction_rules` say otherwise; what is no class in them counts as
    wrong. Raises SettingsError for a folder that is not there, and for one of `truth` without a picture.
    """
    storage = storage or StorageSettings()
    true, found = _label_files(truth, storage), _label_files(predictions, storage)
    if not true:
        raise SettingsError(f"{canonical_uri(truth)}: no label picture in this folder")
    pairs, problems = _paired(true, found)
    compared = compare_pairs(pairs, rules, max_pixels, storage, prediction_rules)
    in_order = sorted((*problems, *compared.problems), key=lambda problem: problem.name)
    return Comparison(compared.scores, compared.compared, tuple(in_order), len(found.keys() - true.keys()))


def compare_pairs(
    pairs: Sequence[Pair],
    rules: LabelRules,
    max_pixels: int,
    storage: StorageSettings,
    prediction_rules: LabelRules | None = None,
) -> Comparison:
    """Score pairs, whatever their names: a shard of `compare_folders`."""
    found_rules = prediction_rules or LabelRules(rules.classes, unknown_is_void=True)
    scores, problems = SemanticScores(rules.classes), list[Problem]()
    files = _files((file for pair in pairs for file in (pair.truth, pair.prediction)), storage)
    for pair in pairs:
        true, found = next(files), next(files)
        try:
            labels = (
                _read("truth", true, rules, max_pixels),
                _read("prediction", found, found_rules, max_pixels),
            )
            _check_sizes(*labels)
            scores.add(*labels)
        except ItemError as error:
            problems.append(Problem(pair.name, error.reason))
    return Comparison(scores, len(pairs) - len(problems), tuple(problems))


def _label_files(url: str, storage: StorageSettings) -> dict[str, list[Source]]:
    """The pictures below a folder by their names in it without suffix; hidden files are none."""
    root = canonical_uri(url).rstrip("/") + "/"
    files: dict[str, list[Source]] = {}
    for source in Listing([url], storage):
        if not source.uri.startswith(root):
            raise SettingsError(f"{canonical_uri(url)}: not a folder")
        path = PurePosixPath(source.uri[len(root) :])
        if source.kind == "file" and not path.name.startswith("."):
            files.setdefault(str(path.with_suffix("")), []).append(source)
    return files


def _paired(
    true: Mapping[str, list[Source]], found: Mapping[str, list[Source]]
) -> tuple[list[Pair], list[Problem]]:
    pairs, problems = [], []
    for name, files in sorted(true.items()):
        predictions = found.get(name, [])
        twice = next((each for each in (files, predictions) if len(each) > 1), None)
        if twice:
            ends = " and ".join(PurePosixPath(file.uri).name for file in twice)
            problems.append(Problem(name, f"{ends} have one name: which of them counts is not known"))
        elif files[0].error is not None:
            problems.append(Problem(name, f"truth: {files[0].error}"))
        elif not predictions:
            problems.append(Problem(name, "missing: no prediction of this name"))
        else:
            pairs.append(Pair(name, files[0], predictions[0]))
    return pairs, problems


def _files(sources: Iterable[Source], storage: StorageSettings) -> Iterator[bytes | ItemError]:
    """The bytes of each, in order, or why there are none."""
    for table in fetch_files(list(sources), storage):
        for row in table.select(["data", "error_type", "error"]).to_pylist():
            yield row["data"] if row["error_type"] is None else ItemError(row["error_type"], row["error"])


def _read(what: str, file: bytes | ItemError, rules: LabelRules, max_pixels: int) -> Labels:
    """Raises ItemError that says which of the two it is."""
    try:
        if isinstance(file, ItemError):
            raise file
        return read_label(file, rules, max_pixels)
    except ItemError as error:
        raise ItemError(error.error_type, f"{what}: {error.reason}") from error


def _check_sizes(true: Labels, found: Labels) -> None:
    if true.shape != found.shape:
        (height, width), (found_height, found_width) = true.shape, found.shape
        raise ItemError(
            "unsupported", f"prediction: {found_width} x {found_height} pixels, its truth {width} x {height}"
        )
