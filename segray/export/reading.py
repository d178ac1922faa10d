"""Read a run, or labels of the same tables, into a `LabelTable`: a thousand rows at a time."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.errors import SettingsError
from segray.export.coco_panoptic import check_format
from segray.export.settings import ON_EARTH, ExportOptions
from segray.export.table import NO_GROUP, NO_SPLIT, Image, Instance, LabelTable
from segray.masks.spans import counts_of
from segray.output.io import files_below, read_if_there
from segray.output.names import PLAN, RUN
from segray.schema import CRS84
from segray.sources.concurrent_requests import describe
from segray.sources.item import Source
from segray.sources.reader import open_source
from segray.storage import StorageSettings, canonical_uri, shown

_ROWS = 1_000
_MASKS = 50
"""Masks decoded at once: the arrays take about 80 bytes a character."""
_IMAGE = ("image_id", "uri", "height", "width")
_IMAGE_MAY = ("member", "status", "split", "group")
_INSTANCE = ("image_id", "category_id", "category", "score")
_INSTANCE_MAY = ("instance_id", "area", "bbox", "iscrowd", "area_m2")


@dataclass
class Labels:
    """What is exported, and what is left out."""

    table: LabelTable
    verb: str | None
    """Of the run; None for labels that no run of segray wrote."""
    digest: str
    """Of run.json, to tell whether the run has changed."""
    crs: str | None = None
    """Of the geometry: what PROJ takes; None without any."""
    rejected: int = 0
    filtered: int = 0
    """Instances that classes, score and area leave out, of any image."""
    notes: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    """Names of all classes, also those that are not exported; only kept where classes are chosen."""


def read_run(settings: ExportOptions, folder: Path) -> Labels:
    """Read the run of the settings; temporary files go to `folder`.

    Raises SettingsError where it is not finished, has no such tables or lacks a column of the settings.
    """
    run, storage = settings.run[0].rstrip("/"), settings.storage
    verb, digest = finished_run(run, storage)
    ledger, instances = (
        files_below(f"{run}/{name}", (".parquet",), storage) for name in ("images", "instances")
    )
    if not ledger:
        raise SettingsError(f"run: {shown(run)} is no output of annotate: it has no images/*.parquet")
    if verb == "predict" and settings.format not in ("masks", "stac"):
        raise SettingsError(
            f"as: {shown(run)} holds label maps of predict; they can be exported as masks or stac"
        )
    check_format(verb, settings)
    labels = Labels(LabelTable(folder), verb, digest)
    for file in ledger:
        _add_images(labels, file, settings)
    for file in instances if verb not in ("predict", "panoptic") else ():
        try:
            _add_instances(labels, file, settings)
        except pa.ArrowException as error:
            raise SettingsError(f"run: {file.uri} has columns of other types: {error}") from error
    try:
        labels.table.settle()
    except sqlite3.IntegrityError as error:
        raise SettingsError(f"run: {shown(run)} lists an image twice in images/") from error
    if settings.split is None and (strays := labels.table.count_strays()):
        labels.notes.append(f"{strays:,} instances of images that are not in images/ are left out")
    _check_categories(labels)
    _check_classes(labels, settings)
    return labels


def finished_run(run: str, storage: StorageSettings) -> tuple[str | None, str]:
    """Return the verb of a run and the digest of its record.

    Raises SettingsError where the run is not finished. Labels that another program wrote have no record.
    """
    data = read_if_there(f"{run}/{RUN}", storage, "run")
    if data is None:
        if read_if_there(f"{run}/{PLAN}", storage, "run") is not None:
            raise SettingsError(f"run: {shown(run)} is not finished; run its command again to continue")
        return None, ""
    try:
        verb = json.loads(data).get("verb")
    except (ValueError, AttributeError) as error:
        raise SettingsError(f"run: run.json of {shown(run)} is damaged: {error}") from error
    return (None if verb is None else str(verb)), hashlib.sha256(data).hexdigest()


def _add_images(labels: Labels, file: Source, settings: ExportOptions) -> None:
    more = [] if settings.group_by is None else [settings.group_by]
    for _, batch in batches(file, _IMAGE, [*_IMAGE_MAY, *more], settings.storage):
        if "split" not in batch.schema.names and (settings.split or settings.by_split):
            raise SettingsError(
                f"split: {file.uri} has no column split; --keep-columns split of annotate copies it "
                "from a manifest"
            )
        if settings.group_by and settings.group_by not in batch.schema.names:
            raise SettingsError(
                f"group_by: {file.uri} has no column {settings.group_by}; --keep-columns {settings.group_by} "
                "of annotate copies it from a manifest"
            )
        rows = [row for row in batch.to_pylist() if settings.split in (None, row.get("split"))]
        good = [row for row in rows if row.get("status") != "rejected" and row["height"] and row["width"]]
        labels.rejected += len(rows) - len(good)
        labels.table.add_images(
            replace(image_of(row), part=_part(row, settings), file_name=_file_name(image_of(row), settings))
            for row in good
        )


def _file_name(image: Image, settings: ExportOptions) -> str:
    """Return the name of an image by `relative_to` and `prefix`; "" without them."""
    if settings.relative_to is None:
        return ""
    root = canonical_uri(settings.relative_to).rstrip("/") + "/"
    whole = image.uri if image.member is None else f"{image.uri}/{image.member}"
    if not whole.startswith(root):
        raise SettingsError(f"relative_to: {whole} is not in {root}")
    return settings.prefix + whole.removeprefix(root)


def _part(row: dict[str, Any], settings: ExportOptions) -> str | None:
    """Return which file or folder an image goes to; None where there is one."""
    if settings.group_by:
        return text_of(row.get(settings.group_by)) or NO_GROUP
    return (text_of(row.get("split")) or NO_SPLIT) if settings.by_split else None


def image_of(row: dict[str, Any]) -> Image:
    """Return an annotated image of a row of the ledger."""
    size = row["height"], row["width"]
    return Image(
        row["image_id"],
        row["uri"],
        row.get("member"),
        *size,
        text_of(row.get("split")),
        text_of(row.get("group")),
    )


def _add_instances(labels: Labels, file: Source, settings: ExportOptions) -> None:
    needed = "geometry" if settings.format in ON_EARTH else "segmentation"
    for geo, batch in batches(file, (*_INSTANCE, needed), _INSTANCE_MAY, settings.storage):
        if settings.classes:
            labels.seen.update(filter(None, pc.unique(batch["category"].cast(pa.string())).to_pylist()))
        kept = batch.filter(_wanted(batch, settings))
        rows = kept.to_pylist()
        if needed == "segmentation":
            rows = measured(rows, file)
        elif kept["geometry"].null_count < len(kept):
            _add_crs(labels, geo, file)
        found = [row for row in rows if settings.min_area is None or (row["area"] or 0) >= settings.min_area]
        labels.filtered += len(batch) - len(found)
        labels.table.add_instances(map(instance_of, found))


def _check_classes(labels: Labels, settings: ExportOptions) -> None:
    """Raise SettingsError where some of the classes are exported, and the run has no instance of another."""
    unknown = [name for name in settings.classes if name not in labels.seen]
    if unknown and labels.table.count_instances():
        there = ", ".join(sorted(labels.seen))
        raise SettingsError(f"classes: the run has no {', '.join(unknown)}; it has {there}")


def _wanted(batch: pa.RecordBatch, settings: ExportOptions) -> pa.Array:
    """Return which rows have the class and the score, bool (rows,)."""
    wanted = pa.array([True] * len(batch), pa.bool_())
    if settings.classes:
        wanted = pc.is_in(batch["category"].cast(pa.string()), pa.array(settings.classes, pa.string()))
    if settings.min_score is not None:
        least = pa.scalar(settings.min_score, pa.float32())
        good = pc.greater_equal(batch["score"].cast(pa.float32()), least)
        wanted = pc.and_(wanted, good.fill_null(True))
    return wanted


def measured(rows: list[dict[str, Any]], file: Source) -> list[dict[str, Any]]:
    """Return the rows with area and bbox of their masks.

    Raises SettingsError for broken run lengths, on which pycocotools would crash.
    """
    texts = [(row["segmentation"] or {}).get("counts") or "" for row in rows]
    sizes = [list((row["segmentation"] or {}).get("size") or (0, 0)) for row in rows]
    for row, text, size, counts in zip(rows, texts, sizes, _run_lengths(texts, file), strict=True):
        if not text or (counts < 0).any() or counts.sum() != size[0] * size[1]:
            raise SettingsError(f"run: {file.uri}: the mask of {row.get('instance_id')} is broken")
        if row.get("bbox") is None:
            row["bbox"] = coco_mask.toBbox({"size": size, "counts": text}).tolist()
        row["area"] = int(counts[1::2].sum())
    return rows


def _run_lengths(texts: Sequence[str], file: Source) -> Iterator[NDArray[np.int64]]:
    for first in range(0, len(texts), _MASKS):
        try:
            yield from counts_of(texts[first : first + _MASKS])
        except (UnicodeEncodeError, IndexError) as error:
            raise SettingsError(f"run: {file.uri} has masks that are no run lengths: {error}") from error


def instance_of(row: dict[str, Any]) -> Instance:
    """Return an instance of a row."""
    mask = row.get("segmentation") or {}
    height, width = mask.get("size") or (0, 0)
    left, top, box_width, box_height = row.get("bbox") or (0, 0, 0, 0)
    name = row["category"]
    return Instance(
        row["image_id"],
        row.get("instance_id") or "",
        row["category_id"],
        str(row["category_id"]) if name is None else name,
        row["score"],
        row.get("area") or 0,
        left,
        top,
        box_width,
        box_height,
        height,
        width,
        mask.get("counts"),
        row.get("iscrowd") or 0,
        row.get("geometry"),
        row.get("area_m2"),
    )


def _add_crs(labels: Labels, geo: bytes | None, file: Source) -> None:
    """Keep the CRS of a file's geometry (GeoParquet; without one OGC:CRS84)."""
    text = crs_in(geo)
    if labels.crs not in (None, text):
        raise SettingsError(f"run: {file.uri} has another CRS than the files before; a run has one")
    labels.crs = text


def crs_in(geo: bytes | None) -> str:
    """Return the CRS of GeoParquet metadata as PROJ takes it."""
    crs = json.loads(geo or b"{}").get("columns", {}).get("geometry", {}).get("crs", CRS84)
    return crs if isinstance(crs, str) else json.dumps(crs)


def _check_categories(labels: Labels) -> None:
    try:
        labels.table.categories()
    except ValueError as error:
        raise SettingsError(f"run: {error}") from error


def check_sizes(labels: Labels) -> None:
    """Raise SettingsError where a mask has another size than its image."""
    if wrong := labels.table.misfit():
        raise SettingsError(f"run: a mask of image {wrong[0]} has {wrong[1]}")


def batches(
    file: Source, needed: Sequence[str], optional: Sequence[str] | None, storage: StorageSettings
) -> Iterator[tuple[bytes | None, pa.RecordBatch]]:
    """Yield GeoParquet metadata and some rows; optional: other columns, None for all.

    Raises SettingsError where the file cannot be read.
    """
    try:
        with open_source(file, storage) as stream:
            parquet = pq.ParquetFile(stream)
            there = parquet.schema_arrow
            if lost := [name for name in needed if name not in there.names]:
                raise SettingsError(f"run: {file.uri} has no column {', '.join(lost)}")
            others = there.names if optional is None else optional
            columns = list(dict.fromkeys([*needed, *(name for name in others if name in there.names)]))
            for group in range(parquet.num_row_groups):  # read all at once, Arrow would keep each in memory
                for batch in parquet.iter_batches(_ROWS, row_groups=[group], columns=columns):
                    yield (there.metadata or {}).get(b"geo"), batch
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(f"run: {file.uri} cannot be read: {describe(error)}") from error


def text_of(value: object) -> str | None:
    """Return a value of any column as text."""
    return None if value is None else str(value)
