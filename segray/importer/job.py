"""`segray import`, step by step: the images of the run, the file image by image, what changed, the tables."""

import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from segray.data.vector_files import find_file
from segray.errors import ExitCode, ItemError, JobFailedError, SettingsError
from segray.export.table import Image
from segray.importer.categories import Categories
from segray.importer.coco import read_coco
from segray.importer.corrections import Corrections
from segray.importer.cvat import read_cvat
from segray.importer.drawn import Looked
from segray.importer.files import labels_in
from segray.importer.label_maps import import_maps
from segray.importer.labelstudio import read_labelstudio
from segray.importer.masks import read_masks
from segray.importer.prepare import Import, prepared
from segray.importer.rejects import Rejects
from segray.importer.report import REJECTS, conclude, record_of
from segray.importer.run_images import OtherFoldersError, RunImages
from segray.importer.settings import ON_EARTH, ImportOptions
from segray.importer.write_labels import KEPT, LabelWriter
from segray.importer.yolo import read_yolo
from segray.output.lease import Lease
from segray.output.names import PLAN, RUN
from segray.output.store import Store
from segray.run import check_same, open_output
from segray.sources.concurrent_requests import describe
from segray.storage import canonical_uri, shown

_AT_ONCE = 64
"""Images that are looked up together."""


def import_labels(settings: ImportOptions) -> ExitCode:
    """Read corrected labels into the tables of annotate, or into label maps and a manifest.

    Raises SettingsError where the file, the run or the output cannot be used, JobFailedError for what broke
    later.
    """
    with tempfile.TemporaryDirectory(prefix="segray-import-") as folder:
        job = prepared(settings, Path(folder))
        try:
            return _imported(job)
        except (OSError, sqlite3.OperationalError) as error:
            where = shown(settings.output)
            raise JobFailedError(f"cannot import into {where}: {describe(error)}; run it again") from error
        finally:
            job.images.close()


def _imported(job: Import) -> ExitCode:
    started, settings = time.monotonic(), job.settings
    kept = list(dict.fromkeys([*job.images.kept, *KEPT]))
    lease = open_output(Store(settings.output, settings.storage, crs=job.images.crs, kept=kept))
    record = _finished(lease.store, job)
    if settings.dry_run:
        return conclude(job, record_of(job, _read(job, None), started), f"{shown(settings.file[0])}: read")
    if record is not None:
        return conclude(job, record, f"{shown(settings.output)} holds this import already")
    with lease:
        record = record_of(job, _written(job, lease), started)
        lease.store.write_json(RUN, record)
    return conclude(job, record, f"imported: {canonical_uri(settings.output)}")


def _finished(store: Store, job: Import) -> dict[str, Any] | None:
    """Return the record of this import if it is finished there.

    Raises SettingsError where the output is another one's.
    """
    plan = store.read_json(PLAN)
    if plan is None:
        return None
    names = [name for name in job.identity if plan.get(name) != job.identity[name]] or ["verb"]
    check_same(plan, job.identity, names, shown(job.settings.output), "made")
    record = store.read_json(RUN)
    return record if isinstance(record, dict) else None


def _written(job: Import, lease: Lease[Store]) -> Counter[str]:
    store = lease.store
    _finished(store, job)  # again: another run may have finished meanwhile
    store.write_json(PLAN, job.identity)
    try:
        tally = _read(job, store)
    except SettingsError:
        _emptied(store)
        raise
    job.rejects.close()
    if job.rejects.total:
        store.put_file(REJECTS, job.rejects.path)
    else:
        store.delete(REJECTS)
    return tally


def _emptied(store: Store) -> None:
    """Delete what was written of a file that cannot be imported: the corrected file may take the output."""
    for part in store.recover():
        store.discard(part)
    store.retract(PLAN)


def _read(job: Import, store: Store | None) -> Counter[str]:
    """Read the file, and write it where there is a store; return counts.

    Raises SettingsError where no image of the file is found.
    """
    if job.is_maps:
        tally = import_maps(job.settings, job.images, store, job.rejects, job.folder)
    else:
        tally = _instances(job, store)
    job.rejects.close()
    if not tally["images"]:
        first = f"; the first: {job.rejects.lines[0]}" if job.rejects.lines else ""
        unseen = job.rejects.not_looked_at
        asleep = f"; {unseen:,} tasks have no annotation: submit them first" * bool(unseen)
        number = f"{job.rejects.of_images:,} images"
        raise SettingsError(
            f"file: {shown(job.settings.file[0])}: none of its {number} is imported{first}{asleep}"
        )
    return tally


def _instances(job: Import, store: Store | None) -> Counter[str]:
    kind = job.settings.format
    categories = Categories(job.images.categories, may_lack=kind in ("masks", *ON_EARTH))
    corrections = Corrections(job, categories, None if store is None else LabelWriter(store))
    late = set[int]()  # 60 bytes an image
    for place, each, image in _placed(job, categories):
        if isinstance(image, OtherFoldersError):
            late.add(place)
        else:
            corrections.add(each, image)
    if late:
        _add_late(late, job, corrections)
    return corrections.finish()


def _placed(
    job: Import, categories: Categories, late: Set[int] | None = None
) -> Iterator[tuple[int, Looked, Image | ItemError]]:
    """Yield each image of the file with its place there; late: those alone, by their file names."""
    looked = (each for each in enumerate(_looked(job, categories)) if late is None or each[0] in late)
    while some := list(islice(looked, 1 if job.settings.format in ON_EARTH else _AT_ONCE)):
        images = job.images.place([each for _, each in some], strictly=late is None)
        for (place, each), image in zip(some, images, strict=True):
            yield place, each, image


def _add_late(late: Set[int], job: Import, corrections: Corrections) -> None:
    """Read the file again, for the images whose file names alone are known: others had the first choice."""
    folder = job.folder / "again"
    folder.mkdir()
    again = replace(job, folder=folder, rejects=Rejects(folder))  # what it rejects is known already
    for _, each, image in _placed(again, corrections.categories, late):
        if corrections.add(each, image):
            corrections.tally["by_name_alone"] += 1
    again.rejects.close()


def _looked(job: Import, categories: Categories) -> Iterator[Looked]:
    settings, storage, kind = job.settings, job.settings.storage, job.settings.format
    root = settings.file[0].rstrip("/")
    if kind == "yolo":
        yield from read_yolo(root, categories, storage, job.folder)
    elif kind == "masks":
        yield from read_masks(root, categories, storage, settings.max_pixels, job.rejects, job.folder)
    elif kind in ON_EARTH:
        assert isinstance(job.images, RunImages)
        from segray.importer.vectors import read_vectors  # GDAL, which other formats do not need

        yield from read_vectors(settings, job.images, job.rejects, job.folder)
    else:
        suffix = ".xml" if kind == "cvat" else ".json"
        for file in labels_in(find_file(root, storage), suffix, storage, job.folder):
            if kind == "coco":
                yield from read_coco(file, categories, job.rejects, job.folder)
            elif kind == "cvat":
                yield from read_cvat(file, categories)
            else:
                yield from read_labelstudio(file, job.rejects)
