"""`segray import`, step by step: the images of the run, the file image by image, what changed, the tables."""

import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pycocotools import mask as coco_mask

from segray.data.vector_files import find_file
from segray.errors import ExitCode, ItemError, JobFailedError, SettingsError
from segray.export.table import Image
from segray.importer.categories import Categories
from segray.importer.coco import read_coco
from segray.importer.compare import Found, compared
from segray.importer.cvat import read_cvat
from segray.importer.drawn import Looked
from segray.importer.files import labels_in, version_of
from segray.importer.folder_images import FolderImages
from segray.importer.label_maps import holds_maps, import_maps, map_lines
from segray.importer.labelstudio import read_labelstudio
from segray.importer.masks import read_masks
from segray.importer.rejects import Rejects
from segray.importer.run_images import RunImages
from segray.importer.settings import FOLDERS, ON_EARTH, ImportOptions
from segray.importer.write_labels import KEPT, LabelWriter
from segray.importer.yolo import read_yolo
from segray.log import LOG
from segray.output.lease import Lease
from segray.output.names import PLAN, RUN
from segray.output.store import Store
from segray.run import Problems, check_same, exit_code, open_output
from segray.settings import printable
from segray.sources.concurrent_requests import describe
from segray.storage import canonical_uri, shown
from segray.versions import versions

_AT_ONCE = 64
"""Images that are looked up together."""
REJECTS = "rejects.csv"


@dataclass(frozen=True, slots=True)
class Import:
    """What one import reads, before it reads it."""

    settings: ImportOptions
    images: RunImages | FolderImages
    is_maps: bool
    identity: dict[str, Any]
    rejects: Rejects
    folder: Path


def import_labels(settings: ImportOptions) -> ExitCode:
    """Read corrected labels into the tables of annotate, or into label maps and a manifest.

    Raises SettingsError where the file, the run or the output cannot be used, JobFailedError for what broke
    later.
    """
    with tempfile.TemporaryDirectory(prefix="segray-import-") as folder:
        job = _prepared(settings, Path(folder))
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
        return _conclude(job, _record(job, _read(job, None), started), f"{shown(settings.file[0])}: read")
    if record is not None:
        return _conclude(job, record, f"{shown(settings.output)} holds this import already")
    with lease:
        record = _record(job, _written(job, lease), started)
        lease.store.write_json(RUN, record)
    return _conclude(job, record, f"imported: {canonical_uri(settings.output)}")


def _prepared(settings: ImportOptions, folder: Path) -> Import:
    """Return the import. Raises SettingsError with all that is wrong."""
    problems, file = Problems(), settings.file[0]
    is_folder = settings.format in FOLDERS
    version = problems.attempt(lambda: version_of(file, settings.storage, is_folder=is_folder))
    is_maps = problems.attempt(lambda: settings.format == "masks" and holds_maps(settings))
    images = problems.attempt(lambda: _images(settings, folder))
    if isinstance(images, RunImages) and images.verb == "predict" and is_maps is False:
        problems.lines.append(
            f"run: {shown(settings.run or '')} holds label maps of predict: import masks of classes"
        )
    if problems or images is None:
        raise problems.error()
    identity = {
        "verb": "import",
        "as": settings.format,
        "file": canonical_uri(file),
        "file_version": version,
        "run": None if settings.run is None else canonical_uri(settings.run),
        "run_digest": images.digest if isinstance(images, RunImages) else None,
        "images": None if settings.images is None else canonical_uri(settings.images),
        "layer": settings.layer,
        "empty_images": settings.empty_images,
        "max_pixels": settings.max_pixels,
    }
    return Import(settings, images, bool(is_maps), identity, Rejects(folder), folder)


def _images(settings: ImportOptions, folder: Path) -> RunImages | FolderImages:
    if settings.run is not None:
        return RunImages(settings.run, settings.storage, folder)
    return FolderImages(settings.images, settings.file[0], settings.storage, settings.max_pixels)


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
    tally = _read(job, store)
    job.rejects.close()
    if job.rejects.total:
        store.put_file(REJECTS, job.rejects.path)
    else:
        store.delete(REJECTS)
    return tally


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
    categories = Categories(job.images.categories)
    writer = None if store is None else LabelWriter(store)
    tally: Counter[str] = Counter(images=0, instances=0)
    seen = set[int]()  # 60 bytes an image
    looked = _looked(job, categories)
    while some := list(islice(looked, 1 if job.settings.format in ON_EARTH else _AT_ONCE)):
        for each, image in zip(some, job.images.place(some), strict=True):
            if isinstance(image, ItemError):
                job.rejects.image(each.name, image.reason)
            elif int(image.image_id, 16) in seen:
                job.rejects.image(each.name, f"the file has image {image.image_id} twice; the first counts")
            else:
                seen.add(int(image.image_id, 16))
                found, counts = _corrected(each, image, job, categories)
                tally += counts + Counter(images=1, instances=len(found))
                if writer is not None:
                    writer.add(image, _ledger(each, image, job), found)
    if writer is not None:
        writer.finish()
    new = categories.new() if isinstance(job.images, RunImages) else {}
    tally += Counter({f"class {name} ({number})": 1 for number, name in new.items()})
    return tally


def _looked(job: Import, categories: Categories) -> Iterator[Looked]:
    settings, storage, kind = job.settings, job.settings.storage, job.settings.format
    root = settings.file[0].rstrip("/")
    if kind == "yolo":
        yield from read_yolo(root, categories, storage, job.folder)
    elif kind == "masks":
        yield from read_masks(root, storage, settings.max_pixels, job.rejects, job.folder)
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


def _corrected(
    looked: Looked, image: Image, job: Import, categories: Categories
) -> tuple[list[Found], Counter[str]]:
    """Return the instances of an image, and counts of what happened to those of the run."""
    drawn = []
    for each in looked.drawn:
        try:
            counts = each.draw(image.height, image.width)
            number, name = categories.of(each.category, each.number)
            if not coco_mask.area({"size": [image.height, image.width], "counts": counts}):
                raise ItemError("unsupported", "it covers no pixel of its image")
        except ItemError as error:
            job.rejects.annotation(looked.name, each.where, error.reason)
            continue
        drawn.append(Found(counts, number, name, each.instance_id, each.crowd))
    rows = job.images.instances(image)
    shown_as = None if looked.shown is None or not rows else looked.shown(image, rows)
    return compared(drawn, rows, (image.height, image.width), shown_as)


def _ledger(looked: Looked, image: Image, job: Import) -> dict[str, Any]:
    own = {name: getattr(looked, name) for name in KEPT if getattr(looked, name) is not None}
    return {**job.images.ledger(image), **own}


def _record(job: Import, tally: Counter[str], started: float) -> dict[str, Any]:
    rejects, total = job.rejects, job.images.table.count_images() if job.images.table else None
    seconds = max(time.monotonic() - started, 1e-3)
    usual = ("instances", "unchanged", "changed", "reclassified", "added", "removed")
    counts: dict[str, Any] = {"items": tally["images"], "annotated": tally["images"]}
    counts |= {**{name: tally[name] for name in usual}, **tally}
    counts |= {
        "rejected": rejects.total,
        "rejected_annotations": rejects.of_annotations,
        "images_not_placed": rejects.of_images,
        "images_not_in_file": None if total is None else total - tally["images"],
        "tasks_not_looked_at": rejects.not_looked_at,
        "vanished": 0,
        "ignored": 0,
    }
    return {
        "verb": "import",
        "settings": yaml.safe_load(printable(job.settings)),
        "identity": job.identity,
        "versions": versions(),
        "maps": job.is_maps,
        "counts": counts,
        "rejects": rejects.lines,
        "rates": {"seconds": round(seconds, 3), "images_per_s": round(tally["images"] / seconds, 3)},
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _conclude(job: Import, record: dict[str, Any], done: str) -> ExitCode:
    counts = Counter({name: value or 0 for name, value in record["counts"].items()})
    with_run = job.settings.run is not None
    lines = [done, *(map_lines(counts, with_run=with_run) if job.is_maps else _lines(counts, with_run))]
    rejected = counts["rejected_annotations"], counts["images_not_placed"]
    if any(rejected):
        lines.append(f"  {rejected[0]:,} annotations and {rejected[1]:,} images are left out, see {REJECTS}:")
        lines += [f"    {line}" for line in record["rejects"]]
    left = counts["images_not_in_file"]
    lines += [f"  {left:,} images of the run are not in the file, and not in the output"] * bool(left)
    unseen = counts["tasks_not_looked_at"]
    lines += [f"  {unseen:,} tasks have no annotation: nobody looked at them"] * bool(unseen)
    lines += ["dry run: nothing was written"] * job.settings.dry_run
    LOG.conclude(lines)
    LOG.outcome = {"counts": record["counts"]}
    everything = counts["images"] + counts["instances"] + sum(rejected)
    return exit_code(sum(rejected) / max(everything, 1), job.settings.max_rejects)


def _lines(counts: Counter[str], with_run: bool) -> list[str]:
    lines = [f"  {counts['images']:,} images, {counts['instances']:,} instances"]
    if with_run:
        kinds = ("unchanged", "changed", "added", "removed")
        told = ", ".join(f"{counts[kind]:,} {kind}" for kind in kinds)
        lines.append(f"  {told}" + f" ({counts['reclassified']:,} in class)" * bool(counts["reclassified"]))
    new = [name.removeprefix("class ") for name in counts if name.startswith("class ")]
    return lines + [f"  new classes: {', '.join(new)}"] * bool(new)
