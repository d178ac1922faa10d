"""Predicted instances against COCO JSON: `--predictions` and `--labels` -> AP and AR.

Images of an output of `annotate` are found by the ends of their addresses, else by the file name alone where
it is unique; those of COCO results by their ids. Categories are matched by name or by id, see
`CategoryMap`. Masks are held once, as run lengths.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segray.data.coco_file import (
    ImageId,
    Truth,
    box_of,
    read_results,
    read_truth,
    score_of,
    true_instances,
)
from segray.data.label_listing import read_labels
from segray.errors import ItemError, NothingToDoError, SettingsError
from segray.evaluate.average_precision import InstanceFigures, InstanceScores, Kind
from segray.evaluate.categories import CategoryMap
from segray.evaluate.compare_pairs import Problem
from segray.evaluate.match_names import by_file_name, owners
from segray.evaluate.report import Outcome
from segray.evaluate.settings import EvaluateSettings
from segray.log import say
from segray.masks.coco_segmentation import rle_of
from segray.output.io import read_file
from segray.output.reader import Item, instances_of, ledger_files, read_ledger, run_record
from segray.storage import canonical_uri


@dataclass(frozen=True, slots=True)
class Predicted:
    """One predicted instance as it is stored."""

    image_id: ImageId
    """Image id in the labels."""
    category_id: int
    category: str | None
    score: object
    box: object
    segmentation: object


@dataclass(frozen=True, slots=True)
class InstanceEvaluation:
    """The images of the labels and their predictions."""

    settings: EvaluateSettings
    truth: Truth
    images: dict[ImageId, str]
    """The images that can be compared, with the image_id of an output."""
    problems: list[Problem]
    extra: int
    masks: bool
    """Whether predictions have masks; otherwise only boxes are compared."""
    by: str
    """How categories are matched."""
    notes: list[str]
    results: list[dict[str, Any]] | None
    """COCO results, which `run` consumes; None for an output of `annotate`."""

    def about(self) -> list[str]:
        """Return lines on what would be compared."""
        found = f"{len(self.images):,} of {len(self.images) + len(self.problems):,} images"
        return [f"{found} have predictions; {self.extra:,} predictions without a label", *self.notes]

    def run(self) -> Outcome:
        """Read all instances, and score those of images that can be compared."""
        scores, problems, categories = self.scored()
        categories.check()
        return self._outcome(scores, problems, categories)

    def scored(self) -> tuple[InstanceScores, list[Problem], CategoryMap]:
        """Return (truth and predictions of comparable images, problems of the others, the category map)."""
        categories = CategoryMap(self.truth.categories, self.by)
        scores, broken = InstanceScores(), dict[ImageId, str]()
        for image_id in self.images:
            self._add_truth(scores, image_id, broken)
        for predicted in self._predicted():
            if predicted.image_id not in broken:
                self._add_prediction(scores, predicted, categories, broken)
        images = self.truth.images
        scores = scores.without({images[image_id].key for image_id in broken})
        problems = [Problem(images[image_id].name, reason) for image_id, reason in broken.items()]
        return scores, [*self.problems, *problems], categories

    def _add_truth(self, scores: InstanceScores, image_id: ImageId, broken: dict[ImageId, str]) -> None:
        image = self.truth.images[image_id]
        try:
            instances = true_instances(self.truth, image_id, masks=self.masks)
        except ItemError as error:
            broken[image_id] = error.reason
            return
        scores.add_image(image.key, image.size)
        for each in instances:
            scores.add_truth(
                image.key, each.mask, each.category, crowd=each.crowd, box=each.box, area=each.area
            )

    def _add_prediction(
        self,
        scores: InstanceScores,
        predicted: Predicted,
        categories: CategoryMap,
        broken: dict[ImageId, str],
    ) -> None:
        image = self.truth.images[predicted.image_id]
        category = categories.of(predicted.category_id, predicted.category)
        if category is None:
            return
        try:
            mask = rle_of(predicted.segmentation, *image.size) if self.masks else None
            box = None if predicted.box is None and self.masks else box_of(predicted.box)
            scores.add_prediction(image.key, mask, category, score_of(predicted.score), box=box)
        except ItemError as error:
            broken[predicted.image_id] = f"prediction: {error.reason}"

    def _predicted(self) -> Iterator[Predicted]:
        if self.results is not None:
            self.results.reverse()
            while self.results:  # a mask is in one list at a time
                row = self.results.pop()
                if row["image_id"] in self.images:
                    yield Predicted(
                        row["image_id"],
                        row["category_id"],
                        None,
                        row["score"],
                        row.get("bbox"),
                        row.get("segmentation"),
                    )
            return
        whose = {stored: image_id for image_id, stored in self.images.items()}
        for table in instances_of(self.settings.predictions or "", whose, self.settings.storage):
            for row in table.to_pylist():
                yield Predicted(whose[row.pop("image_id")], **row)

    def _outcome(self, scores: InstanceScores, problems: list[Problem], categories: CategoryMap) -> Outcome:
        kinds: tuple[Kind, ...] = ("segm", "bbox") if self.masks else ("bbox",)
        found = f"{len(scores.predictions):,} predicted, {len(scores.truth):,} true instances"
        say(f"{found} in {len(scores.images):,} images: scoring")
        figures = {kind: scores.figures(kind, self.settings.detections) for kind in kinds}
        rows = _class_rows(self.truth.categories, scores, figures)
        notes = list(self.notes)
        if categories.unknown:
            most = ", ".join(f"{name} {number:,}" for name, number in categories.unknown.most_common(5))
            number = categories.unknown.total()
            notes.append(f"{number:,} predicted instances of categories that labels do not have: {most}")
        uncut = self._uncut(scores, figures, notes)
        return Outcome(
            task="instances",
            compared=len(scores.images),
            problems=sorted(problems, key=lambda problem: problem.name),
            extra=self.extra,
            metrics={kind: figures[kind].overall for kind in kinds},
            classes=rows,
            digests={
                "labels": scores.digest_of(scores.truth),
                "predictions": scores.digest_of(scores.predictions),
            },
            more={
                "instances": {
                    "labels": sum(row["labels"] for row in rows),
                    "crowds": sum(row["iscrowd"] for row in scores.truth),
                    "predictions": len(scores.predictions),
                    "unknown_categories": dict(categories.unknown),
                },
                **uncut,
            },
            notes=notes,
        )

    def _uncut(
        self, scores: InstanceScores, figures: dict[Kind, InstanceFigures], notes: list[str]
    ) -> dict[str, Any]:
        """Return the AP if all predictions counted, where some do not; adds a line to `notes`."""
        limit = self.settings.detections
        images, most = scores.cut(limit)
        if not images:
            return {}
        kinds = list(figures)
        ap = {kind: scores.figures(kind, most).overall["ap"] for kind in kinds}
        compared = ", ".join(
            f"{kind} AP {figures[kind].overall['ap']:.3f} so, {ap[kind]:.3f} with all" for kind in kinds
        )
        notes.append(
            f"{images:,} images have more than {limit} predictions of a category, up to {most:,}: only the "
            f"{limit} with the highest scores count ({compared}; --detections {most} counts all)"
        )
        return {"cut": {"images": images, "most": most, "ap_with_all": ap}}


def _class_rows(
    names: dict[int, str], scores: InstanceScores, figures: dict[Kind, InstanceFigures]
) -> list[dict[str, Any]]:
    """Return one row for each category of the labels or predictions."""
    labels = Counter(row["category_id"] for row in scores.truth if not row["iscrowd"])
    predictions = Counter(row["category_id"] for row in scores.predictions)
    rows = []
    for number, name in names.items():
        row: dict[str, Any] = {"class": name, "id": number}
        for kind, its in figures.items():
            if number in its.per_category:
                row |= {f"{kind}_{each}": its.per_category[number][each] for each in ("ap", "ap50", "ar")}
        if len(row) > 2:
            rows.append(row | {"labels": labels[number], "predictions": predictions[number]})
    return rows


def find_instances(settings: EvaluateSettings, predictions: str, labels: str) -> InstanceEvaluation:
    """Read the labels, and find their images among the predictions.

    Raises SettingsError for a missing file or a wrong format, NothingToDoError for labels without an image.
    """
    if settings.root is not None:
        raise SettingsError("root: for manifests and lists; COCO JSON does not use it")
    split = None if settings.split == "all" else settings.split
    truth = _truth(settings, labels, split)
    if not truth.images:
        raise NothingToDoError("labels: no images: nothing to compare")
    strays = [f"{truth.strays:,} annotations of images that labels do not list"] * bool(truth.strays)
    if predictions.lower().endswith(".json"):
        return _of_results(settings, truth, predictions, strays)
    return _of_output(settings, truth, predictions, strays)


def _truth(settings: EvaluateSettings, labels: str, split: str | None) -> Truth:
    """Read COCO JSON, or labels in the tables of annotate, of which those of a person count."""
    if labels.lower().endswith(".json"):
        data = read_file(labels, settings.storage, "labels")
        return read_truth(data, f"labels: {canonical_uri(labels)}", split)
    truth, rejected = read_labels(labels, settings.storage)
    if rejected:
        say(f"labels: {len(rejected):,} images are left out, {rejected[0].uri} for one: {rejected[0].error}")
    images = {number: image for number, image in truth.images.items() if split in (None, image.split)}
    return replace(truth, images=images)


def _of_results(
    settings: EvaluateSettings, truth: Truth, predictions: str, notes: list[str]
) -> InstanceEvaluation:
    """Return the evaluation; every image of the labels counts, also one without results."""
    where = f"predictions: {canonical_uri(predictions)}"
    results, masks = read_results(read_file(predictions, settings.storage, "predictions"), where)
    if settings.categories == "name":
        raise SettingsError("categories: COCO results hold no names; leave categories out")
    extra = {result["image_id"] for result in results} - truth.images.keys()
    if results and len(extra) == len({result["image_id"] for result in results}):
        raise NothingToDoError("predictions: none of their image ids is in the labels: nothing to compare")
    notes = [*notes, "images and categories are matched by id"]
    images = dict.fromkeys(truth.images, "")
    return InstanceEvaluation(settings, truth, images, [], len(extra), masks, "id", notes, results)


def _of_output(
    settings: EvaluateSettings, truth: Truth, predictions: str, notes: list[str]
) -> InstanceEvaluation:
    ledger = ledger_files(predictions, settings.storage)
    if not ledger:
        where = f"predictions: {canonical_uri(predictions)}"
        raise SettingsError(f"{where}: neither an output of annotate nor COCO results (.json)")
    record = run_record(predictions, settings.storage)
    items = read_ledger(ledger, settings.storage)
    names = [image.name for image in truth.images.values()]
    addresses = [item.address for item in items]
    exact = owners(names, addresses)
    whose = by_file_name(names, addresses, exact)
    loose = sum(one != other for one, other in zip(exact, whose, strict=True))
    by = "id" if settings.categories == "id" else "name"
    notes = [*notes, f"categories are matched by {by}"]
    notes += [f"{loose:,} were found by their file name alone"] * bool(loose)
    threshold = (record.get("settings") or {}).get("score_threshold")
    notes += [f"annotate kept instances with a score of {threshold:g} or more"] * bool(threshold)
    images, problems = _paired(truth, Counter(names), whose, items)
    extra = whose.count(None)
    return InstanceEvaluation(settings, truth, images, problems, extra, True, by, notes, None)


def _paired(
    truth: Truth, names: Counter[str], whose: Sequence[str | None], items: Sequence[Item]
) -> tuple[dict[ImageId, str], list[Problem]]:
    """Return image of the labels -> image_id of its prediction, and the problems of the others."""
    found: dict[str, list[Item]] = defaultdict(list)
    for owner, item in zip(whose, items, strict=True):
        if owner is not None:
            found[owner].append(item)
    images, problems = dict[ImageId, str](), list[Problem]()
    for image_id, image in truth.images.items():
        reason = _mismatch(image.size, names[image.name], found[image.name])
        if reason is None:
            images[image_id] = found[image.name][0].image_id
        else:
            problems.append(Problem(image.name, reason))
    return images, problems


def _mismatch(size: tuple[int, int], same: int, items: Sequence[Item]) -> str | None:
    if same > 1:
        return f"labels have {same} images of this name"
    if not items:
        return "missing: no prediction of this name"
    if len(items) > 1:
        some = ", ".join(item.address for item in items[:3])
        return f"{len(items)} predictions have this name: {some}"
    (item,) = items
    if item.error_type is not None:
        return f"prediction: rejected as {item.error_type}: {item.error}"
    if item.size != size:
        (height, width), (true_height, true_width) = item.size or (0, 0), size
        return f"prediction: {width} x {height} pixels, its truth {true_width} x {true_height}"
    return None
