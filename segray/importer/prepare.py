"""What an import needs before it reads its file: the version of the file, the images that it is about."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segray.importer.files import version_of
from segray.importer.folder_images import FolderImages
from segray.importer.label_maps import holds_maps
from segray.importer.rejects import Rejects
from segray.importer.run_images import RunImages
from segray.importer.settings import FOLDERS, ImportOptions
from segray.run import Problems
from segray.storage import canonical_uri, shown


@dataclass(frozen=True, slots=True)
class Import:
    """What one import reads, before it reads it."""

    settings: ImportOptions
    images: RunImages | FolderImages
    is_maps: bool
    identity: dict[str, Any]
    rejects: Rejects
    folder: Path


def prepared(settings: ImportOptions, folder: Path) -> Import:
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
