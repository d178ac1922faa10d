"""The data of a round: listed as `segray train` lists them, scanned once, frozen for training and scoring.

rounds/NNNN/labels.json      of an instance model: COCO, with the images' splits and labels as they were
rounds/NNNN/labels.parquet   of a semantic model: addresses of images and label maps, and splits
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.cluster import RayStart
from segray.data.coco_listing import CocoListing
from segray.data.dataset import assign_splits, openable, splits_json
from segray.data.label_listing import NothingConfirmedError, holds_labels
from segray.data.pairs import Pair, Pairs
from segray.data.scan import Scan
from segray.data.splits import SplitRule
from segray.errors import NothingToDoError, SettingsError
from segray.output.folder import Output
from segray.retrain.labels import LEFT_OUT
from segray.retrain.settings import RetrainSettings
from segray.settings import without_environment
from segray.train.job import scan_pairs, with_start
from segray.train.settings import TrainSettings
from segray.train.tasks import TrainingTask, kind_of

if TYPE_CHECKING:
    from segray.models.start_weights import Start


def train_settings(
    settings: RetrainSettings, data: str, output: str, start_from: str | None = None
) -> TrainSettings:
    """Return the settings of the challenger's training."""
    own = {
        **{"data": data, "output": output, "storage": settings.storage, "ray": settings.ray},
        **{"device": settings.device, "val_share": settings.val_share, "split_seed": settings.split_seed},
        **{"group_look_alikes": settings.group_look_alikes, "max_rejects": settings.max_rejects},
    }
    given = {**settings.train, **own}
    if start_from is not None:
        given["start_from"] = start_from
    elif settings.start == "champion":  # there is none yet; train all weights from scratch
        given = {name: value for name, value in given.items() if name not in ("freeze", "freeze_epochs")}
    made: TrainSettings = without_environment(TrainSettings, given)
    return made


@dataclass(frozen=True)
class Listed:
    """The listed images and labels; no image is opened."""

    settings: TrainSettings
    """Settings, with the values that the start model determines."""
    pairs: Pairs
    """Pairs of images and labels, and rejected ones."""
    start: "Start | None"

    @cached_property
    def task(self) -> TrainingTask:
        """Task to train. Raises SettingsError where settings and labels do not match."""
        return kind_of(self.settings).of(self.settings, self.pairs, self.start)

    @property
    def categories(self) -> dict[int, str] | None:
        """Category id -> name of instance labels; None for semantic ones."""
        return self.pairs.categories if isinstance(self.pairs, CocoListing) else None

    @property
    def class_names(self) -> list[str]:
        """Names of the labels' classes."""
        return [*self.task.names]

    @property
    def is_instance(self) -> bool:
        """Whether the labels are instance labels."""
        return self.settings.is_instance


def listed(settings: RetrainSettings, start_from: str | None) -> Listed:
    """List the labels.

    Raises SettingsError where they cannot be listed, NothingToDoError where no label is corrected yet.
    """
    given = train_settings(settings, settings.data, settings.output, start_from)
    known, start = with_start(given)
    return listed_as(settings, known, start)


def listed_as(settings: RetrainSettings, known: TrainSettings, start: "Start | None" = None) -> Listed:
    """List the labels for a training whose architecture is known.

    Raises SettingsError where they do not match it, NothingToDoError for labels in annotate's format of which
    none is corrected yet.
    """
    more = {"root": settings.root, "min_score": settings.min_score}
    if not known.is_instance and holds_labels(settings.data, settings.storage):
        raise SettingsError(
            f"train.arch: DATA has instance labels, {known.arch} is a semantic model; choose another"
        )
    if not known.is_instance:
        _refuse_settings_of_instances(settings, known.arch)
    known = known.model_copy(update=more)
    try:
        return Listed(known, kind_of(known).list_data(known), start)
    except NothingConfirmedError as error:  # an hourly job waits for the first correction
        raise NothingToDoError(*error.lines) from error


def _refuse_settings_of_instances(settings: RetrainSettings, arch: str) -> None:
    """Raise SettingsError for settings of instance models, which would be ignored or fail after promotion."""
    problems = {
        "score": "whole images are scored, without annotate",
        "label": "annotate takes instance models only; let notify start segray predict",
        "min_score": "label maps have no scores",
    }
    texts = [f"{name}: {arch} is a semantic model; {why}" for name, why in problems.items()]
    given = [
        line for name, line in zip(problems, texts, strict=True) if getattr(settings, name) not in ({}, None)
    ]
    if given:
        raise SettingsError(*given)


def scanned(labels: Listed, store: Output, ray: RayStart) -> tuple[list[Pair], pa.Table, list[str]]:
    """Return (usable pairs, their figures (schema FIGURES), rejected ones as lines); read each image once."""
    settings, pairs = labels.settings, labels.pairs
    scan = Scan(pairs.pairs, labels.task.rules, settings.max_pixels, store, begun=False)
    if scan.missing:
        reading = labels.task.reading()
        scan_pairs(scan, pairs.pairs, reading, ray.cluster().cpus, settings)
    rows = scan.rows()
    good = pc.is_null(rows["error_type"]).to_pylist()
    rejected = [f"{one.uri}: {one.error}" for one in pairs.rejected]
    rejected += [
        f"{pair.image.uri}: {error}"
        for pair, error, is_good in zip(pairs.pairs, rows["error"].to_pylist(), good, strict=True)
        if not is_good
    ]
    return list(compress(pairs.pairs, good)), rows.filter(pa.array(good)), rejected


def freeze(labels: Listed, pairs: Sequence[Pair], splits: Sequence[str], store: Output, folder: str) -> str:
    """Write the data for training and scoring; return the file's name in `folder`.

    folder: the round's folder, relative to the store.
    """
    used = [split != LEFT_OUT for split in splits]
    kept, kept_splits = list(compress(pairs, used)), list(compress(splits, used))
    if isinstance(labels.pairs, CocoListing):
        name, data = "labels.json", splits_json(kept, kept_splits, labels.pairs.categories, groups=True)
    else:
        name, data = "labels.parquet", _manifest(kept, kept_splits)
    store.write(f"{folder}/{name}", data)
    return name


def hand_over_scan(labels: Listed, pairs: Sequence[Pair], rows: pa.Table, settings: TrainSettings) -> None:
    """Write the images' figures, `rows` (schema FIGURES), to the training's output to spare it the scan.

    Raises SettingsError where no image is left for training or for validation.
    """
    store = Output(settings.output, settings.storage)
    known = settings.model_copy(update={"arch": labels.settings.arch})
    frozen = kind_of(known).list_data(known)
    scan = Scan(frozen.pairs, labels.task.rules, settings.max_pixels, store, begun=True)
    index_of = {pair.image.uri: index for index, pair in enumerate(pairs)}
    missing = [index for index in scan.missing if frozen.pairs[index].image.uri in index_of]
    if missing:
        order = [index_of[frozen.pairs[index].image.uri] for index in missing]
        scan.add(rows.take(pa.array(order)).append_column("index", pa.array(missing, pa.int64())))
        scan.save()
    shares = settings.split_seed, settings.val_share, settings.test_share
    assign_splits(frozen, scan.rows(), SplitRule.of(frozen.pairs, *shares), 0.0, settings.group_look_alikes)


def _manifest(pairs: Sequence[Pair], splits: Sequence[str]) -> bytes:
    table = pa.table(
        {
            "images": pa.array([openable(pair.image) for pair in pairs], pa.string()),
            "masks": pa.array([openable(pair.label) for pair in pairs], pa.string()),
            "split": pa.array(list(splits), pa.string()),
            "group": pa.array([pair.group for pair in pairs], pa.string()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
