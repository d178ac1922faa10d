"""Label maps as files: PNG with a palette, cloud-optimised GeoTIFF with palette, nodata and overviews."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rasterio.windows import Window as RasterWindow

from segray.palette import VOID, palette
from segray.predict.blend import labels_of
from segray.scenes.scene import Scene
from segray.tile_overlap import Window

BLOCK = 512
"""Side of the blocks of a GeoTIFF, pixels."""
TOGETHER = 2 * BLOCK
"""Side of the blocks that are written at a time."""


def as_bytes(probabilities: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Convert uint16 probabilities, 65535 is 1, to uint8 of the same shape, 255 is 1, rounded."""
    return ((probabilities.astype(np.uint32) + 128) // 257).astype(np.uint8)


def png(labels: NDArray[np.uint8], classes: int) -> bytes:
    """Encode classes (h, w) uint8 as PNG of indices with a palette."""
    import io

    from PIL import Image

    image = Image.fromarray(labels, "P")
    image.putpalette(palette(classes).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def plain_tiff(probabilities: NDArray[np.uint8], names: tuple[str, ...]) -> bytes:
    """Encode probabilities (classes, h, w) uint8, 255 is 1, as GeoTIFF without georeference."""
    bands, height, width = probabilities.shape
    with warnings.catch_warnings(), rasterio.MemoryFile() as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with file.open(driver="GTiff", **_profile(bands, height, width, None)) as data:
            data.write(probabilities)
            _describe(data, names)
        return bytes(file.read())


class Maps:
    """The files of one scene while they are written in a temporary folder."""

    def __init__(self, folder: Path, scene: Scene, names: tuple[str, ...], probabilities: bool) -> None:
        self._folder, self._scene, self._names = folder, scene, names
        self._wanted = ("labels", "probabilities") if probabilities else ("labels",)
        self._files: dict[str, Any] = {}

    def write(self, blocks: Iterable[tuple[Window, NDArray[np.uint16]]]) -> None:
        """Write blocks of probabilities (classes, h, w) uint16, 65535 is 1, if wanted, and their labels."""
        with self._open() as files:
            for block, values in blocks:
                files["labels"].write(labels_of(values), 1, window=_raster(block))
                if "probabilities" in files:
                    files["probabilities"].write(as_bytes(values), window=_raster(block))

    def write_labels(self, blocks: Iterable[tuple[Window, NDArray[np.uint8]]]) -> None:
        """Write blocks of labels (h, w) uint8."""
        with self._open() as files:
            for block, labels in blocks:
                files["labels"].write(labels, 1, window=_raster(block))

    def cogs(self) -> Iterator[tuple[str, Path]]:
        """Yield (labels or probabilities, cloud-optimised GeoTIFF); each is deleted before the next."""
        for kind in self._wanted:
            path = self._folder / f"{kind}.cog.tif"
            resampling = "mode" if kind == "labels" else "average"
            rasterio.shutil.copy(
                self.plain(kind), path, driver="COG", compress="DEFLATE", blocksize=BLOCK,
                overview_resampling=resampling, bigtiff="IF_SAFER",
            )  # fmt: skip
            yield kind, path
            path.unlink()

    def plain(self, kind: str) -> Path:
        """Return the file that `write` wrote."""
        return self._folder / f"{kind}.tif"

    @contextmanager
    def _open(self) -> Iterator[dict[str, Any]]:
        scene, files = self._scene, {}
        try:
            for kind in self._wanted:  # rasterio warns of scenes without georeference
                bands = 1 if kind == "labels" else len(self._names)
                profile = _profile(bands, scene.height, scene.width, scene)
                files[kind] = rasterio.open(self.plain(kind), "w", driver="GTiff", **profile)
            if "probabilities" in files:
                _describe(files["probabilities"], self._names)
            colours = palette(len(self._names)).tolist()
            files["labels"].nodata = VOID
            files["labels"].write_colormap(1, {k: (*colour, 255) for k, colour in enumerate(colours)})
            files["labels"].update_tags(classes=", ".join(self._names))
            yield files
        finally:
            for file in files.values():
                file.close()


@contextmanager
def growing(scene: Scene, names: tuple[str, ...], probabilities: bool) -> Iterator[Maps]:
    """Write the maps of a scene into a temporary folder of their own."""
    with TemporaryDirectory(prefix="segray-map-") as folder:
        yield Maps(Path(folder), scene, names, probabilities)


def _raster(block: Window) -> RasterWindow:
    return RasterWindow(block.col_start, block.row_start, block.width, block.height)


def _profile(bands: int, height: int, width: int, scene: Scene | None) -> dict[str, Any]:
    profile: dict[str, Any] = {
        "count": bands, "height": height, "width": width, "dtype": "uint8", "compress": "deflate",
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "band", "zlevel": 1,
        "bigtiff": "if_safer",
    }  # fmt: skip
    if scene is not None and scene.crs is not None and scene.transform is not None:
        profile |= {"crs": scene.crs, "transform": Affine(*scene.transform)}
    return profile


def _describe(data: Any, names: tuple[str, ...]) -> None:
    data.scales = [1 / 255] * len(names)
    for band, name in enumerate(names, start=1):
        data.set_band_description(band, name)
