"""Panoptic segmentations: `--predictions`, an output of `panoptic`, and `--labels` -> PQ, SQ and RQ.

Two outputs are matched by image_id, or by the ends of their addresses where they share none; COCO-panoptic
JSON by `file_name` as in `match_names`.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from segray.cpus import whole_cpus
from segray.data.panoptic_set import (
    SUFFIX,
    PanopticSet,
    coco_panoptic,
    is_panoptic,
    panoptic_run,
)
from segray.errors import ItemError, NothingToDoError, SettingsError
from segray.evaluate.categories import CategoryMap
from segray.evaluate.compare_pairs import Problem, content_of
from segray.evaluate.match_names import by_file_name, owners
from segray.evaluate.panoptic_quality import Overlaps, PanopticScores, Segments, check_sizes
from segray.evaluate.report import Outcome, Progress
from segray.evaluate.settings import EvaluateSettings
from segray.output.panoptic import PngIds, TiffIds, opened_ids
from segray.storage import StorageSettings, canonical_uri

_SHARD = 64
"""Images that are compared between two progress checks."""


@dataclass(frozen=True, slots=True)
class PanopticEvaluation:
    """The images to compare."""

    settings: EvaluateSettings
    truth: PanopticSet
    found: PanopticSet
    pairs: Sequence[tuple[Any, Any]]
    """Ids of the true and the predicted image."""
    problems: Sequence[Problem]
    extra: int
    categories: CategoryMap
    notes: Sequence[str]

    def about(self) -> list[str]:
        """Return lines on what would be compared."""
        both = f"{len(self.pairs):,} of {len(self.truth.images):,} images"
        return [f"{both} have predictions; {self.extra:,} predictions without a label", *self.notes]

    def run(self) -> Outcome:
        """Compare all pairs."""
        scores, problems, contents = PanopticScores(), list(self.problems), list[bytes]()
        progress = Progress(len(self.pairs))
        with ThreadPoolExecutor(whole_cpus(), "segray-evaluate") as pool:
            for start in range(0, len(self.pairs), _SHARD):
                shard = self.pairs[start : start + _SHARD]
                for result in pool.map(self._compared, shard, map(self._segments, shard)):
                    if isinstance(result, Problem):
                        problems.append(result)
                    else:
                        scores += result[0]
                        contents.append(result[1])
                progress.add(len(shard))
        self.categories.check()
        return self._outcome(scores, problems, contents)

    def _segments(self, pair: tuple[Any, Any]) -> tuple[Segments, Segments]:
        """Return true and predicted segments; those of categories that labels lack count as void (-1)."""
        true, found = self.truth.segments(pair[0]), self.found.segments(pair[1])
        names = self.found.categories
        known = [self.categories.of(number, names.get(number)) for number in found[:, 1].tolist()]
        mapped = np.array([-1 if number is None else number for number in known], np.int64)
        return (
            Segments(true[:, 0], true[:, 1], true[:, 2] != 0),
            Segments(found[:, 0], mapped, np.zeros(len(found), bool)),
        )

    def _compared(
        self, pair: tuple[Any, Any], segments: tuple[Segments, Segments]
    ) -> tuple[PanopticScores, bytes] | Problem:
        truth, found = self.truth.images[pair[0]], self.found.images[pair[1]]
        scores, storage = PanopticScores(), self.settings.storage
        try:
            true, predicted = segments
            left_out = predicted.ids[predicted.categories < 0].tolist()
            kept = predicted.categories >= 0
            predicted = Segments(predicted.ids[kept], predicted.categories[kept], predicted.crowd[kept])
            overlaps = Overlaps(true, predicted)
            with (
                _ids("truth", truth.file or "", storage) as true_file,
                _ids("prediction", found.file or "", storage) as file,
            ):
                check_sizes(true_file.size, file.size)
                for window in file.windows():
                    overlaps.add(true_file.read(window), file.read(window), left_out)
                digests = true_file.digest, file.digest
            scores.add(overlaps)
        except ItemError as error:
            return Problem(truth.name, error.reason)
        lists = [np.stack([each.ids, each.categories, each.crowd], 1).tobytes() for each in (true, predicted)]
        return scores, content_of(truth.name, *digests, *lists)

    def _outcome(self, scores: PanopticScores, problems: list[Problem], contents: list[bytes]) -> Outcome:
        names, notes = self.truth.categories, list(self.notes)
        if self.categories.unknown:
            most = ", ".join(f"{name} {number:,}" for name, number in self.categories.unknown.most_common(5))
            number = self.categories.unknown.total()
            notes.append(f"{number:,} predicted segments of categories that labels lack, void here: {most}")
        rows = [
            {
                "class": names[number],
                "kind": "thing" if number in self.truth.things else "stuff",
                **each._asdict(),
            }
            for number, each in scores.per_class().items()
        ]
        return Outcome(
            task="panoptic",
            compared=len(contents),
            problems=sorted(problems, key=lambda problem: problem.name),
            extra=self.extra,
            metrics=scores.compute(self.truth.things),
            classes=rows,
            digests={"compared": hashlib.sha256(b"".join(sorted(contents))).hexdigest()},
            notes=notes,
        )


def find_panoptic(settings: EvaluateSettings, predictions: str, labels: str) -> PanopticEvaluation:
    """Read both sides, and match their images.

    Raises SettingsError for what is not panoptic, NothingToDoError for labels without an image.
    """
    storage = settings.storage
    given = [name for name in ("footprints", "group_by", "split") if getattr(settings, name) is not None]
    if given:
        raise SettingsError(f"{', '.join(given)}: leave it out; predictions are panoptic, which has none")
    if labels.lower().endswith(SUFFIX):
        truth = coco_panoptic(labels, "labels", storage, settings.root)
    elif is_panoptic(labels, storage):
        truth = panoptic_run(labels, "labels", storage)
    else:
        where = canonical_uri(labels)
        raise SettingsError(f"labels: {where}: predictions are panoptic: give COCO-panoptic JSON or a run")
    if not truth.images:
        raise NothingToDoError("labels: no images: nothing to compare")
    found = panoptic_run(predictions, "predictions", storage)
    by = "id" if settings.categories == "id" else "name"
    whose, notes = _owners(truth, found)
    pairs, problems = _paired(truth, found, whose)
    notes = [*notes, f"categories are matched by {by}"]
    extra = sum(owner is None for owner in whose.values())
    categories = CategoryMap(truth.categories, by)
    return PanopticEvaluation(settings, truth, found, pairs, problems, extra, categories, notes)


def _owners(truth: PanopticSet, found: PanopticSet) -> tuple[dict[Any, Any], list[str]]:
    """Return predicted image -> true image, None for those of no label; and how they were matched."""
    if truth.is_run and truth.images.keys() & found.images.keys():
        whose = {each: each if each in truth.images else None for each in found.images}
        return whose, ["images are matched by image_id"]
    names = [image.name for image in truth.images.values()]
    addresses = [image.name for image in found.images.values()]
    exact = owners(names, addresses)
    loose = by_file_name(names, addresses, exact)
    number = sum(one != other for one, other in zip(exact, loose, strict=True))
    ids = dict(zip(names, truth.images, strict=True))
    whose = {
        each: None if name is None else ids[name] for each, name in zip(found.images, loose, strict=True)
    }
    return whose, [f"{number:,} were found by their file name alone"] * bool(number)


def _paired(
    truth: PanopticSet, found: PanopticSet, whose: dict[Any, Any]
) -> tuple[list[tuple[Any, Any]], list[Problem]]:
    own: dict[Any, list[Any]] = defaultdict(list)
    for each, owner in whose.items():
        if owner is not None:
            own[owner].append(each)
    twice = Counter(image.name for image in truth.images.values())
    pairs, problems = list[tuple[Any, Any]](), list[Problem]()
    for image_id, image in truth.images.items():
        reason = None if image.reason is None else f"truth: {image.reason}"
        if reason is None and twice[image.name] > 1:
            reason = f"labels have {twice[image.name]} images of this name"
        if reason is None and len(own[image_id]) != 1:
            reason = f"{len(own[image_id])} predictions have this name" if own[image_id] else "missing"
        if reason is None:
            prediction = found.images[own[image_id][0]]
            reason = None if prediction.reason is None else f"prediction: {prediction.reason}"
        if reason is None:
            pairs.append((image_id, own[image_id][0]))
        else:
            problems.append(Problem(image.name, reason))
    return pairs, problems


@contextmanager
def _ids(what: str, address: str, storage: StorageSettings) -> Iterator[PngIds | TiffIds]:
    """Open a file of segment ids. Raises ItemError that says whether truth or prediction is at fault."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(opened_ids(address, storage))
        except ItemError as error:
            raise ItemError(error.error_type, f"{what}: {error.reason}") from error
        yield file
