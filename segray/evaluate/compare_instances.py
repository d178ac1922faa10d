"""Predicted instances against true ones: `--predictions` and `--labels` -> AP and AR.

    images of both    paired by name or id; a few hundred bytes each stay in memory
    rows of both      read once, appended to the file of their shard on disk (`instance_rows`)
    each shard        checked and matched (`score_shard`): here, or on Ray above `--ray-above` images
    matches           40 bytes a prediction; shards add -> figures (`instance_report`)

So memory holds one shard's masks at a time, or a few on each machine, however many images there are.
"""

import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from segray.errors import NothingToDoError, SettingsError
from segray.evaluate.average_precision import InstanceScores
from segray.evaluate.categories import CategoryMap
from segray.evaluate.compare_pairs import Problem
from segray.evaluate.instance_labels import CocoLabels, InstanceLabels, TableLabels, Wanted
from segray.evaluate.instance_predictions import (
    InstancePredictions,
    OutputPredictions,
    Paired,
    ResultPredictions,
)
from segray.evaluate.instance_report import Compared, outcome_of
from segray.evaluate.instance_rows import Shards
from segray.evaluate.matching import KINDS, Kind, Matches
from segray.evaluate.report import Outcome, Progress
from segray.evaluate.score_shard import DIGESTS, Shard, ShardScores, checked, score_shard
from segray.evaluate.settings import EvaluateSettings
from segray.evaluate.spatial_blocks import BY_NUMBER, LEAST
from segray.log import say
from segray.masks.types import Rle

MOST_GROUPS = 1_000
SCENES = 10
"""Scenes of a shard: each may hold a hundred thousand instances."""


@dataclass(frozen=True)
class InstanceEvaluation:
    """The images of the labels and their predictions."""

    settings: EvaluateSettings
    labels: InstanceLabels
    predictions: InstancePredictions
    paired: Paired
    categories: CategoryMap
    groups: list[str] | None
    """Of each image that is compared; None unless asked for."""

    @cached_property
    def wanted(self) -> Wanted:
        """Return the images that are compared."""
        numbers = {image_id: index for index, image_id in enumerate(self.paired.names)}
        sizes = [self.labels.images[image_id].size for image_id in numbers]
        return Wanted(numbers, sizes, self.predictions.masks)

    @cached_property
    def names(self) -> list[str]:
        """Return the names of the images that are compared, in the labels."""
        return [self.labels.images[image_id].name for image_id in self.wanted.numbers]

    def about(self) -> list[str]:
        """Return lines on what would be compared."""
        names, problems = self.paired.names, self.paired.problems
        found = f"{len(names):,} of {len(names) + len(problems):,} images have predictions"
        extra = f"{self.paired.extra:,} predictions without a label"
        return [f"{found}; {extra}", *self.paired.notes]

    def run(self) -> Outcome:
        """Read all instances, and score those of images that can be compared."""
        return outcome_of(self.settings, self.compared())

    def compared(self) -> Compared:
        """Read all instances, and match those of images that can be compared."""
        with self._shards() as shards:
            self.categories.check()
            digests, parts = [0, 0], [_nothing(self._kinds, self._side)]
            for scores in self._scored(shards):
                parts.append(scores.matches)
                self.wanted.broken.update(scores.broken)
                both = zip(digests, scores.digests, strict=True)
                digests = [(one + other) % DIGESTS for one, other in both]
        matches = Matches.joined(parts)
        parts.clear()
        return self._compared(matches, digests)

    def instance_rows(self, images: Container[int]) -> Iterator[dict[str, Any]]:
        """Yield the rows (schema ROWS) of true and predicted instances of some images, by their index."""
        predictions = self.predictions.rows(self.wanted, self.paired, self.categories)
        for rows in chain(self.labels.rows(self.wanted), predictions):
            yield from (row for row in rows.to_pylist() if row["image"] in images)

    def scored(self) -> tuple[InstanceScores, list[Problem], CategoryMap]:
        """Return (truth and predictions of comparable images, problems of the others, the category map).

        All of them are in memory: for a holdout, not for a million images.
        """
        scores, sizes = InstanceScores(), self.wanted.sizes
        with self._shards() as shards:
            for number in range(len(shards)):
                rows, _, broken = checked(shards.read(number), self._shard(shards.of(number)))
                self.wanted.broken.update(broken)
                self._keep(rows.to_pylist(), scores)
        keys = [self.labels.images[image_id].key for image_id in self.wanted.numbers]
        for index, (key, size) in enumerate(zip(keys, sizes, strict=True)):
            if index not in self.wanted.broken:
                scores.add_image(key, size)
        return scores, self._problems(), self.categories

    def _keep(self, rows: list[dict[str, Any]], scores: InstanceScores) -> None:
        keys = [self.labels.images[image_id].key for image_id in self.wanted.numbers]
        for row in rows:
            key, size = keys[row["image"]], self.wanted.sizes[row["image"]]
            mask: Rle | None = (
                None if row["counts"] is None else {"size": list(size), "counts": row["counts"]}
            )
            box = None if np.isnan(row["x"]) else [row[name] for name in ("x", "y", "width", "height")]
            if np.isnan(row["score"]):
                area = None if np.isnan(row["area"]) else row["area"]
                scores.add_truth(key, mask, row["category"], crowd=row["crowd"], box=box, area=area)
            else:
                scores.add_prediction(key, mask, row["category"], row["score"], box=box)

    @property
    def _kinds(self) -> tuple[Kind, ...]:
        return KINDS if self.predictions.masks else ("bbox",)

    @property
    def _side(self) -> int | None:
        """Return the side of the blocks that are drawn, see `BlockGrid`; None: whole images are."""
        side = self.settings.interval_block
        few = self.settings.footprints is not None and len(self.paired.names) < LEAST
        return BY_NUMBER if side is None and few else side

    @contextmanager
    def _shards(self) -> Iterator[Shards]:
        """Read labels and predictions, and yield their rows by image."""
        with tempfile.TemporaryDirectory(prefix="segray-evaluate-") as folder:
            each = (
                self.settings.shard if self.settings.footprints is None else min(SCENES, self.settings.shard)
            )
            shards = Shards(Path(folder), len(self.paired.names), each)
            for rows in self.labels.rows(self.wanted):
                shards.add(rows)
            for rows in self.predictions.rows(self.wanted, self.paired, self.categories):
                shards.add(rows)
            yield shards

    def _shard(self, images: range) -> Shard:
        wanted = self.wanted
        return Shard.of(images, self.names, wanted.sizes, wanted.broken, self._kinds, self._side)

    def _scored(self, shards: Shards) -> Iterator[ShardScores]:
        """Yield the scores of all shards, in any order."""
        jobs = ((shards.read(number), self._shard(shards.of(number))) for number in range(len(shards)))
        progress = Progress(len(shards), "shards of images matched")
        if shards.images < self.settings.ray_above:
            found: Iterator[ShardScores] = (score_shard(*job) for job in jobs)
        else:
            from segray.evaluate.shards_on_ray import score_shards

            found = score_shards(jobs, self.settings)
        for scores in found:
            progress.add(1)
            yield scores

    def _problems(self) -> list[Problem]:
        broken = self.wanted.broken
        found = [Problem(self.names[index], reason) for index, reason in broken.items()]
        return sorted([*self.paired.problems, *found], key=lambda problem: problem.name)

    def _compared(self, matches: Matches, digests: list[int]) -> Compared:
        kept = np.ones(len(self.wanted.numbers), bool)
        kept[list(self.wanted.broken)] = False
        found = f"{len(matches.score):,} predicted, {len(matches.truth_image):,} true instances"
        say(f"{found} in {kept.sum():,} images: scoring")
        return Compared(
            matches,
            kept,
            self.names,
            list(self.paired.names.values()),
            self.groups,
            self.labels.categories,
            self.categories.unknown,
            self._problems(),
            self.predictions.extra(self.paired),
            [f"{digest:064x}" for digest in digests],
            [*self.labels.notes(), *self.paired.notes],
        )


def _nothing(kinds: tuple[Kind, ...], side: int | None) -> Matches:
    """Return the matches of no image."""
    return score_shard(b"", Shard(0, [], [], frozenset(), kinds, side)).matches


def find_instances(settings: EvaluateSettings, predictions: str, labels: str) -> InstanceEvaluation:
    """Read the labels, and find their images among the predictions.

    Raises SettingsError for a missing file or a wrong format, NothingToDoError for labels without an image.
    """
    if settings.root is not None:
        raise SettingsError("root: for manifests and lists; COCO JSON does not use it")
    if settings.footprints is not None:
        return _on_scenes(settings, predictions, settings.footprints)
    split = None if settings.split == "all" else settings.split
    opened: Any = CocoLabels if labels.lower().endswith(".json") else TableLabels
    truth: InstanceLabels = opened(labels, settings.storage, split, settings.group_by)
    if not truth.images:
        raise NothingToDoError("labels: no images: nothing to compare")
    found: InstancePredictions
    if predictions.lower().endswith(".json"):
        found = ResultPredictions(settings, predictions)
    else:
        found = OutputPredictions(settings, predictions)
    return _paired_up(settings, truth, found)


def _on_scenes(settings: EvaluateSettings, predictions: str, footprints: str) -> InstanceEvaluation:
    from segray.evaluate.footprint_labels import FootprintLabels

    found = OutputPredictions(settings, predictions, scenes=True)
    labels = FootprintLabels(settings, footprints, found)
    return _paired_up(settings, labels, found)


def _paired_up(
    settings: EvaluateSettings, labels: InstanceLabels, predictions: InstancePredictions
) -> InstanceEvaluation:
    """Return the evaluation of labels and predictions that are opened. Raises SettingsError."""
    paired = predictions.pair(labels.images)
    categories = CategoryMap(labels.categories, predictions.by)
    groups = _groups(settings.group_by, labels, predictions, paired) if settings.group_by else None
    return InstanceEvaluation(settings, labels, predictions, paired, categories, groups)


def _groups(
    column: str, labels: InstanceLabels, predictions: InstancePredictions, paired: Paired
) -> list[str]:
    """Return the group of each image, of the labels or else of the predictions. Raises SettingsError."""
    found = {number: labels.images[number].group for number in paired.names}
    if all(value is None for value in found.values()):
        found = predictions.groups(paired, column)
    if found and len({*found.values()}) > MOST_GROUPS:
        raise SettingsError(
            f"group_by: {column} has {len({*found.values()}):,} values; at most {MOST_GROUPS:,}"
        )
    if paired.names and all(value is None for value in found.values()):
        raise SettingsError(
            f"group_by: neither the images of the labels nor those of the predictions have {column}; "
            "annotate keeps columns of a manifest with --keep-columns"
        )
    return ["" if value is None else str(value) for value in found.values()]
