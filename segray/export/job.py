"""`segray export`, step by step: read the run into a table, check what it fits, write, mark as complete."""

import csv
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from segray.errors import ExitCode, JobFailedError, NothingToDoError, SettingsError
from segray.export.coco import write_coco
from segray.export.reading import Labels, check_sizes, read_run
from segray.export.settings import FILE_SUFFIX, ON_EARTH, ExportOptions
from segray.export.table import LabelTable
from segray.export.target import Target
from segray.log import LOG, say
from segray.schema import CRS84
from segray.sources.concurrent_requests import describe
from segray.storage import canonical_uri, shown

Splits = list[str | None]


def export(settings: ExportOptions) -> ExitCode:
    """Write a run's labels in another format.

    Raises SettingsError where the format cannot hold the run or something else is at the output,
    NothingToDoError where nothing matches the filter, JobFailedError for what broke later.
    """
    with (
        tempfile.TemporaryDirectory(prefix="segray-export-") as folder,
        Target(settings.output, settings.storage, is_folder=settings.is_folder) as target,
    ):
        try:
            labels = read_run(settings, Path(folder))
            splits = _checked(labels, settings)
            identity = _identity(settings, labels)
            if target.found(identity, overwrite=settings.overwrite):
                say(f"{shown(settings.output)} holds this export already: nothing to do")
            elif not settings.dry_run:
                _write(labels, settings, target, splits, identity, Path(folder))
            _conclude(labels, settings)
        except (OSError, sqlite3.OperationalError) as error:
            where = shown(settings.output)
            raise JobFailedError(
                f"cannot export to {where}: {describe(error)}; run the command again"
            ) from error
        return ExitCode.DONE


def _checked(labels: Labels, settings: ExportOptions) -> Splits:
    """Return the splits that have files of their own, None for all images.

    Raises SettingsError where the format cannot hold the run, NothingToDoError where nothing is left.
    """
    table = labels.table
    if labels.verb == "predict":
        _check_maps(settings)
    if not table.count_images():
        of = f" of split {settings.split}" * bool(settings.split)
        raise NothingToDoError(
            f"{shown(settings.run[0])}: no annotated image{of} ({labels.rejected:,} rejected)"
        )
    if settings.filters and not table.count_instances():
        classes = f"; classes of the run: {', '.join(sorted(labels.seen))}" * bool(labels.seen)
        raise NothingToDoError(f"none of {labels.filtered:,} instances matches the filter{classes}")
    if settings.format in ON_EARTH:
        if labels.verb != "predict":
            _check_geometry(labels, settings)
    else:
        check_sizes(labels)
    if settings.format == "masks":
        from segray.export.masks import check_values

        check_values(table, _pixels(settings))
    return _splits(table, settings)


def _check_geometry(labels: Labels, settings: ExportOptions) -> None:
    instances, without = labels.table.count_instances(), labels.table.count_without_geometry()
    if not instances:
        raise NothingToDoError(f"{shown(settings.run[0])}: no instance to export")
    if instances == without:
        raise SettingsError(
            f"as: {shown(settings.run[0])} has no image with a place on Earth, "
            f"which {settings.format} needs; use coco"
        )
    if without:
        labels.notes.append(f"{without:,} instances without a place on Earth are left out")


def _check_maps(settings: ExportOptions) -> None:
    if settings.filters or settings.pixels == "instances":
        raise SettingsError(
            f"run: {shown(settings.run[0])} holds label maps of predict, which are copied as they are: "
            "classes, min_score, min_area and pixels do not apply"
        )


def _splits(table: LabelTable, settings: ExportOptions) -> Splits:
    splits = table.parts()
    if not settings.by_split and not settings.group_by:
        return [None]
    odd = [split for split in splits if split in (".", "..") or not split.strip() or {*split} & {*"/\\:\0\n"}]
    if odd or len({split.casefold() for split in splits}) < len(splits):
        by = "by_split" if settings.by_split else "group_by"
        raise SettingsError(f"{by}: {(odd or splits)[:20]} cannot be names of files")
    return [*splits]


def _pixels(settings: ExportOptions) -> str:
    return settings.pixels or "instances"


def _identity(settings: ExportOptions, labels: Labels) -> dict[str, Any]:
    """Return what the files depend on."""
    names = (
        *("as", "classes", "min_score", "min_area", "split", "by_split", "segmentation", "pixels"),
        *("relative_to", "prefix"),
    )
    chosen = {name: getattr(settings, name) for name in names}
    groups = {"group_by": settings.group_by} if settings.group_by else {}
    return {"run": canonical_uri(settings.run[0]), "run_digest": labels.digest, **chosen, **groups}


def _write(
    labels: Labels,
    settings: ExportOptions,
    target: Target,
    splits: Splits,
    identity: dict[str, Any],
    folder: Path,
) -> None:
    kind, table, polygons = settings.format, labels.table, settings.segmentation == "polygons"
    if kind == "yolo":
        from segray.export import yolo

        target.begin(identity, yolo.FILES, yolo.FOLDERS)
        yolo.write_yolo(table, target, splits)
        _write_names(table, target, splits, folder)
    elif kind == "masks":
        from segray.export import masks

        target.begin(identity, masks.FILES, masks.FOLDERS)
        if labels.verb == "predict":
            masks.copy_label_maps(table, target, splits, settings.run[0], settings.storage, folder)
        else:
            masks.write_masks(table, target, splits, _pixels(settings), folder)
        _write_names(table, target, splits, folder)
    elif kind == "labelstudio":
        from segray.export import labelstudio

        files = {split: f"{split or 'tasks'}.json" for split in splits}
        target.begin(identity, [*files.values(), labelstudio.INTERFACE], [])
        names = list(table.categories().values())
        target.put(labelstudio.INTERFACE, labelstudio.interface(names, polygons=polygons).encode())
        for split, name in files.items():
            labelstudio.write_tasks(table, folder / "file", split, polygons=polygons)
            target.put_local(name, folder / "file")
    elif kind == "coco-panoptic":
        from segray.export import coco_panoptic

        target.begin(identity, *coco_panoptic.outputs(splits))
        coco_panoptic.write_panoptic(table, target, splits, settings.run[0], settings.storage, folder)
    elif kind == "stac":
        from segray.export import stac

        target.begin(identity, (), stac.FOLDERS)
        where, run = labels.crs or CRS84, settings.run[0].rstrip("/")
        labels.notes += stac.write_items(table, target, splits, run, settings.storage, where, folder)
    else:
        _write_files(labels, settings, target, splits, identity, folder)
    target.flush()
    target.finish(identity, {"images": table.count_images(), "instances": _exported(labels, settings)})


def _write_files(
    labels: Labels,
    settings: ExportOptions,
    target: Target,
    splits: Splits,
    identity: dict[str, Any],
    folder: Path,
) -> None:
    """Write the one file, or one for each split."""
    suffix = FILE_SUFFIX[settings.format]
    files = {split: "" if split is None else f"{split}{suffix}" for split in splits}
    target.begin(identity, files.values(), [])
    for split, name in files.items():
        local = folder / f"file{suffix}"
        local.unlink(missing_ok=True)
        if settings.format == "coco":
            write_coco(labels.table, local, split, polygons=settings.segmentation == "polygons")
        else:
            from segray.export.vectors import write_vectors

            write_vectors(labels.table, local, split, settings.format, labels.crs or CRS84)
        target.put_local(name, local)


def _write_names(table: LabelTable, target: Target, splits: Splits, folder: Path) -> None:
    """Write images.csv: which image each file belongs to."""
    local = folder / "images.csv"
    with local.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("name", "split", "image_id", "address", "height", "width"))
        for split in splits:
            for each in table.images(split):
                out.writerow((each.name, each.split, each.image_id, each.address, each.height, each.width))
    target.put_local("images.csv", local)


def _exported(labels: Labels, settings: ExportOptions) -> int:
    """Return the number of instances that the format takes."""
    without = labels.table.count_without_geometry() if settings.format in ON_EARTH else 0
    return labels.table.count_instances() - without


def _conclude(labels: Labels, settings: ExportOptions) -> None:
    table = labels.table
    images, instances = table.count_images(), _exported(labels, settings)
    found = f"{images:,} images" + f", {instances:,} instances" * (settings.format != "coco-panoptic")
    if settings.dry_run:
        lines = [f"would export {found}", "dry run: nothing was written"]
    else:
        lines = [f"exported {found}: {canonical_uri(settings.output)}"]
    lines += [f"{labels.rejected:,} rejected images are left out"] * bool(labels.rejected)
    lines += [f"{labels.filtered:,} instances do not match the filter"] * bool(labels.filtered)
    LOG.conclude([*lines, *labels.notes])
    LOG.outcome = {"counts": {"images": images, "instances": instances, "rejected": labels.rejected}}
