"""Predicted label maps against label images: `--predictions` and `--labels` -> pairs -> scores."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from segray.data.label_sample import decide_from
from segray.data.labels import LabelRules, ReadStored, colour_rules
from segray.data.pairs import list_pairs
from segray.data.volume_reader import stored_of
from segray.errors import NothingToDoError, SettingsError
from segray.evaluate.compare_pairs import (
    Comparison,
    Files,
    Matched,
    Problem,
    compare_pairs,
    match_files,
)
from segray.evaluate.confusion_matrix import SemanticScores
from segray.evaluate.labels import choose, label_rules, split_sizes
from segray.evaluate.match_names import by_file_name, owners, stem_of
from segray.evaluate.report import Outcome, Progress
from segray.evaluate.settings import EvaluateSettings
from segray.output.io import label_files
from segray.output.reader import label_maps, ledger_files, present, read_ledger, run_record
from segray.sources.item import Source
from segray.sources.label_image import Stored
from segray.sources.sandbox import DecodeSandbox
from segray.sources.volume import unpacked

MANIFESTS = (".csv", ".parquet", ".txt")
_SHARD = 64
"""Pairs that are compared between two progress checks."""


@dataclass(frozen=True, slots=True)
class MapEvaluation:
    """The label maps to compare, and how they are read."""

    settings: EvaluateSettings
    matched: Matched
    unlisted: Sequence[Problem]
    """Rows of a manifest without a label."""
    classes: tuple[str, ...]
    rules: LabelRules
    prediction_rules: LabelRules
    has_pictures_size: bool
    """Whether predictions are fitted to their images, as those of `predict`."""
    reasons: Sequence[str]
    """Why they are read with these rules."""

    def about(self) -> list[str]:
        """Return lines on what would be compared."""
        found = f"{len(self.matched.pairs):,} of {self.matched.labels + len(self.unlisted):,} labels"
        return [
            f"{found} have a prediction; {self.matched.extra:,} predictions without a label",
            *self.reasons,
        ]

    def run(self) -> Outcome:
        """Compare all pairs."""
        pairs, settings = self.matched.pairs, self.settings
        total, progress = Comparison(SemanticScores(self.rules.classes), 0), Progress(len(pairs))
        with DecodeSandbox() as sandbox:
            for start in range(0, len(pairs), _SHARD):
                shard = pairs[start : start + _SHARD]
                total += compare_pairs(
                    shard,
                    self.rules,
                    settings.max_pixels,
                    settings.storage,
                    self.prediction_rules,
                    fit=self.has_pictures_size,
                    read=_volumes_in(sandbox) if settings.volumes else sandbox.stored,
                )
                progress.add(len(shard))
        problems = [*self.unlisted, *self.matched.problems, *total.problems]
        return semantic_outcome(total, self.classes, problems, self.matched.extra, notes=self.reasons)


def semantic_outcome(
    total: Comparison,
    classes: Sequence[str],
    problems: Sequence[Problem],
    extra: int = 0,
    notes: Sequence[str] = (),
    **digests: str,
) -> Outcome:
    """Return the figures of a confusion matrix, with class names. `digests`: of other inputs."""
    figures = total.scores.compute()
    metrics = {name: value for name, value in figures.items() if name != "per_class"}
    columns = {name: figures["per_class"][name] for name in ("iou", "dice", "recall", "precision")}
    pixels = total.scores.matrix.sum(axis=1).tolist()
    rows = [
        {
            "class": name,
            **{column: values[index] for column, values in columns.items()},
            "pixels": pixels[index],
        }
        for index, name in enumerate(classes)
    ]
    return Outcome(
        task="semantic",
        compared=total.compared,
        problems=sorted(problems, key=lambda problem: problem.name),
        extra=extra,
        metrics=metrics,
        classes=rows,
        digests={"compared": total.digest(), **digests},
        more={"confusion": total.scores.matrix.tolist()},
        notes=notes,
    )


def find_maps(settings: EvaluateSettings, predictions: str, labels: str) -> MapEvaluation:
    """List both sides and read a sample of the label images.

    Raises SettingsError for missing files or contradictions, NothingToDoError without a label.
    """
    is_manifest = labels.lower().endswith(MANIFESTS)
    truth = _of_manifest(settings, labels) if is_manifest else _of_folder(settings, labels)
    ledger = ledger_files(predictions, settings.storage)
    found_rules, reasons = LabelRules(truth.rules.classes, unknown_is_void=True), [truth.reason]
    if ledger:
        matched = _match_output(truth.files, predictions, ledger, settings)
    else:
        found = label_files(predictions, settings.storage, "predictions")
        matched = _match_named(truth.files, found) if is_manifest else match_files(truth.files, found)
        files = [pair.prediction for pair in matched.pairs]
        found_rules, reason = _prediction_rules(settings, truth, files)
        reasons += reason
        reasons += [f"{matched.by_file_name:,} were found by their file name alone"] * bool(
            matched.by_file_name
        )
    return MapEvaluation(
        settings,
        matched,
        truth.problems,
        truth.classes,
        truth.rules,
        found_rules,
        bool(ledger) and not settings.volumes,
        reasons,
    )


def _volumes_in(sandbox: DecodeSandbox) -> ReadStored:
    """Return a function that reads label volumes as label images are read."""

    def read(data: bytes, max_pixels: int, *, coloured: bool = False) -> Stored:
        return stored_of(unpacked(sandbox.volume(data, max_pixels)))

    return read


@dataclass(frozen=True, slots=True)
class _Truth:
    files: Files
    problems: list[Problem]
    """Rows of a manifest without a label."""
    rules: LabelRules
    classes: tuple[str, ...]
    reason: str


def _of_folder(settings: EvaluateSettings, labels: str) -> _Truth:
    if settings.split is not None or settings.root is not None:
        raise SettingsError("split, root: for manifests; for a folder, use that of the split as the labels")
    files = label_files(labels, settings.storage, "labels")
    pictures = [file for same in files.values() for file in same]
    return _Truth(files, [], *label_rules(settings, pictures, settings.classes))


def _of_manifest(settings: EvaluateSettings, labels: str) -> _Truth:
    listed = list_pairs(labels, settings.storage, settings.root)
    how = label_rules(settings, [pair.label for pair in listed.pairs], settings.classes)
    chosen = choose(listed, settings.split or "all")
    if not chosen.pairs:
        raise NothingToDoError(f"labels: none in the split {settings.split}: they are {split_sizes(listed)}")
    files: dict[str, list[Source]] = defaultdict(list)
    for pair in chosen.pairs:
        files[stem_of(pair.name)].append(pair.label)
    return _Truth(files, chosen.problems, *how)


def _match_output(
    true: Files, predictions: str, ledger: Sequence[Source], settings: EvaluateSettings
) -> Matched:
    """Match with an output of `predict`, by the addresses of the images that it was made from."""
    run_record(predictions, settings.storage)
    items = present(read_ledger(ledger, settings.storage))
    maps = label_maps(predictions, items, settings.storage)
    return _match(true, owners(true, [stem_of(item.address) for item in items]), maps)


def _match_named(true: Files, found: Files) -> Matched:
    """Match a folder with a manifest, by the ends of the paths, else by the file names alone."""
    names = [name for name, same in found.items() for _ in same]
    files = [file for same in found.values() for file in same]
    exact = owners(true, names)
    whose = by_file_name(true, names, exact)
    loose = sum(one != other for one, other in zip(exact, whose, strict=True))
    return replace(_match(true, whose, files), by_file_name=loose)


def _match(true: Files, whose: Sequence[str | None], files: Sequence[Source]) -> Matched:
    found: dict[str, list[Source]] = defaultdict(list)
    for owner, file in zip(whose, files, strict=True):
        if owner is not None:
            found[owner].append(file)
    matched = match_files(true, found)
    return replace(matched, extra=whose.count(None))


def _prediction_rules(
    settings: EvaluateSettings, truth: _Truth, files: Sequence[Source]
) -> tuple[LabelRules, list[str]]:
    """Return the rules of predictions; they can be masks of 0 and 255 only where the labels are, too."""
    rules = truth.rules
    if settings.prediction_colours:
        given, values = settings.prediction_colours, settings.prediction_values
        return colour_rules(given, truth.classes, values, unknown_is_void=True), []
    values, reason = settings.prediction_values, []
    if values == "auto" and rules.values == "binary" and not settings.volumes:
        decision = decide_from(files, settings.max_pixels, settings.storage)
        values, reason = decision.values, [f"predictions are {decision.values}: {decision.reason}"]
    elif values == "auto":
        values = "indices"
    return LabelRules(rules.classes, values, unknown_is_void=True), reason
