"""Without a run: the images are files that the labels name, below `--images` or at their own addresses."""

from collections.abc import Sequence
from typing import Any

from segray.data.pair_lists import look_up
from segray.errors import ItemError, SettingsError
from segray.export.table import Image, Instance
from segray.importer.drawn import Looked
from segray.importer.image_sizes import Size, sizes_of, whole_size
from segray.importer.run_images import OtherFoldersError, is_another, plain_address
from segray.schema import CRS84
from segray.sources.item import Source, image_id
from segray.sources.listing import Listing
from segray.storage import StorageSettings, canonical_uri


class FolderImages:
    """Files; those below `--images` are listed once, about 400 bytes each in memory."""

    def __init__(self, images: str | None, file: str, storage: StorageSettings, max_pixels: int) -> None:
        """List the images. Raises SettingsError where there is no such folder."""
        self.crs, self.kept, self.categories, self.table = CRS84, list[str](), dict[int, str](), None
        self._storage, self._max_pixels = storage, max_pixels
        self._file = Source(canonical_uri(file), file, "file", "", -1)
        self._base = file.rstrip("/").rpartition("/")[0] or "."
        self._listed: dict[str, list[Source]] | None = None
        if images is not None:
            self._listed, self._base = {}, images.rstrip("/")
            for source in Listing([images], storage):
                if source.kind == "file" and source.error_type is None:
                    base = source.uri.rpartition("/")[2]
                    for key in {base, base.rpartition(".")[0]}:
                        self._listed.setdefault(key, []).append(source)
            if not self._listed:
                raise SettingsError(f"images: {canonical_uri(images)} holds no image")

    def place(self, looked: Sequence[Looked], *, strictly: bool = False) -> list[Image | ItemError]:
        """Return the image of each, or why there is none; strictly: see Images."""
        names = [plain_address(each.name) for each in looked]
        if self._listed is None:
            sources: list[Source | ItemError] = [*look_up(names, self._file, self._base, self._storage)]
        else:
            sources = [self._in_list(name, strictly) for name in names]
        good = [each for each in sources if isinstance(each, Source) and each.error_type is None]
        sizes = iter(sizes_of(good, self._storage, self._max_pixels))
        return [
            self._image(each, source, next(sizes)) if source in good else _known_error(source)
            for each, source in zip(looked, sources, strict=True)
        ]

    def _in_list(self, name: str, strictly: bool) -> Source | ItemError:
        found = (self._listed or {}).get(name.rpartition("/")[2], [])
        ends = [each for each in found if each.uri.endswith(f"/{name.lstrip('./')}")]
        found = ends or [each for each in found if not is_another(name, plain_address(each.uri))]
        if len(found) != 1:
            what = f"{len(found)} images have" if found else "no image has"
            return ItemError("missing", f"{what} this name below {canonical_uri(self._base)}")
        if strictly and not ends and "/" in name:
            return OtherFoldersError("missing", "an image has its file name alone")
        return found[0]

    def _image(self, looked: Looked, source: Source, size: Size | ItemError) -> Image | ItemError:
        if looked.size not in (None, size) and not isinstance(size, ItemError):
            size = whole_size(source, self._storage, self._max_pixels)
        if isinstance(size, ItemError):  # of a scene that only GDAL reads, the labels may know it
            size = looked.size or size
        if isinstance(size, ItemError):
            return size
        height, width = size
        if looked.size not in (None, size):
            own = looked.size or (0, 0)
            reason = f"{own[1]} x {own[0]} pixels in the file, {width} x {height} in the image"
            return ItemError("unsupported", reason)
        number = image_id(source.uri, None, 0, source.version)
        return Image(number, source.uri, None, height, width, looked.split, looked.group)

    def instances(self, _: Image) -> list[Instance]:
        """Return nothing: there is no run."""
        return []

    def ledger(self, image: Image) -> dict[str, Any]:
        """Return a row of the ledger."""
        return {
            "image_id": image.image_id,
            "uri": image.uri,
            "height": image.height,
            "width": image.width,
            "frames": 1,
            "status": "annotated",
            "vanished": False,
        }

    def close(self) -> None:
        """Do nothing."""


def _known_error(source: Source | ItemError) -> ItemError:
    if isinstance(source, ItemError):
        return source
    return ItemError(source.error_type or "missing", source.error or "")
