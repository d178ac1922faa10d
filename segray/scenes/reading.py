"""Read a GeoTIFF or JPEG 2000 by window with rasterio, in a process of its own that a hostile file may crash.

The model sees a scene as three bytes a pixel:

    bands     `--bands`; else red, green and blue where the file names them, else the first three or the
              first one; a single band becomes grey
    palette   its colours
    values    uint8 unchanged; other types scaled from a low and a high value, the same for the whole scene:
              from the model file, else the 2nd and 98th percentile of its valid pixels, computed once from an
              overview
    white     min-is-white grey and samples of fewer bits are converted to ordinary bytes
    nodata    nodata value, NaN, mask or alpha, sparse blocks: black; a window without any other pixel is
              skipped. A band that is marked as alpha but has values, as GDAL writes near infrared, is not a
              mask, nor is one in `--bands`

Sidecar files (world files, .aux.xml, external masks and overviews) are not read.
"""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

os.environ.update(  # before GDAL is loaded
    GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO", GDAL_CACHEMAX="64", GDAL_NUM_THREADS="1"
)

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rasterio.windows import Window as RasterWindow

from segray.errors import ItemError
from segray.scenes.range_file import Fetch, Range, RangeFile
from segray.scenes.scene import Scene, Tiling
from segray.tile_overlap import Window

LOW, HIGH = 2.0, 98.0
"""Percentiles of a scene's valid pixels that become 0 and 255."""
SAMPLED = 2048
"""Longest side of the overview, or of a scene without overviews, from which the percentiles are computed."""
BLOCKS, TOGETHER = 64, 16
"""Number of blocks, spread over the scene, to sample where its coarsest overview is larger than twice
`SAMPLED`; number of blocks to fetch at once."""
_VALUES = 0.1
"""Share of values other than 0 and 255 above which an alpha band is not a mask; soft edges have less."""
MOST_PIXELS = 2**32 - 1
"""Largest image in COCO's run lengths (pycocotools counts in unsigned 32-bit integers)."""
_UNPLACED = (
    "ground control points only: in pixels",
    "rational polynomials (RPC) only: in pixels; `gdalwarp -rpc` georeferences it",
)
_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_PATH = "segray-scene.tif"
_JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
"""First bytes of a file (ISO 15444-1, annex I) and of a bare code stream."""


class SceneReader:
    """An open scene. Raises ItemError where the file cannot be read."""

    def __init__(self, size: int, fetch: Fetch) -> None:
        self._file = RangeFile(size, fetch)
        self._is_tiff = not self._file.read(8).startswith(_JPEG_2000)
        driver = "GTiff" if self._is_tiff else "JP2OpenJPEG"
        with (
            warnings.catch_warnings(),
            _gdal_errors(f"open it as {'a GeoTIFF' if self._is_tiff else 'JPEG 2000'}"),
        ):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._data: Any = rasterio.open(_PATH, driver=driver, opener=self._open)
        self._masked = True
        """As `Scene.masked`, while a window is read."""
        self._palettes = dict[int, NDArray[np.uint8]]()
        self._block_shapes: dict[int | None, tuple[int, int]] = {None: self._data.block_shapes[0]}

    def __enter__(self) -> "SceneReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the dataset."""
        self._data.close()

    def describe(self, tiling: Tiling) -> Scene | None:
        """Return the scene; None for an ordinary image: without georeference, control points and RPCs.

        Raises ItemError where the file cannot be read, or has too many pixels.
        """
        with _gdal_errors("read its metadata"):
            return self._described(tiling)

    def window(
        self, scene: Scene, window: Window, ahead: Sequence[Window] = ()
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None] | None:
        """Read a window: RGB pixels, uint8 (height, width, 3), and which are valid, bool (height, width).

        The mask is None where all pixels are valid; the result is None where no pixel is.

        ahead: the windows that will be read next. Raises ItemError where the file cannot be read.
        """
        with _gdal_errors("read this window of it"):
            return self._pixels(scene, window, ahead)

    def _described(self, tiling: Tiling) -> Scene | None:
        data = self._data
        placed = data.crs is not None and data.transform != Affine.identity()
        points, _ = data.gcps
        note = None if placed else _UNPLACED[0] if points else _UNPLACED[1] if data.rpcs else None
        if not placed and note is None and data.height * data.width <= tiling.picture_pixels:
            return None
        factor = self._coarser(tiling.resolution) if placed else 1.0
        height, width = (max(1, round(side / factor)) for side in (data.height, data.width))
        if height * width > MOST_PIXELS:
            raise ItemError(
                "too_large",
                f"{width} x {height} pixels: COCO run lengths are limited to {MOST_PIXELS:,}; "
                "set a coarser --resolution",
            )
        transform = data.transform @ Affine.scale(data.width / width, data.height / height)
        bands = self._bands(tiling.bands)
        self._masked, message = self._alpha(bands)
        return Scene(
            height,
            width,
            tiling.tile,
            tiling.overlap,
            bands,
            self._scaling(tiling, bands),
            data.crs.to_wkt() if placed else None,
            tuple(transform[:6]) if placed else None,
            note,
            self._masked,
            message,
            self._taken_at() if tiling.location else None,
        )

    def _taken_at(self) -> int | None:
        """Return GDAL's ACQUISITIONDATETIME, which is in UTC; TIFF's own DateTime is when it was written."""
        text = self._data.tags(ns="IMAGERY").get("ACQUISITIONDATETIME")
        try:
            moment = datetime.strptime(str(text), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        except ValueError:
            return None
        return int(moment.timestamp()) * 1_000_000

    def _pixels(
        self, scene: Scene, window: Window, ahead: Sequence[Window]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None] | None:
        rows, cols = self._data.height / scene.height, self._data.width / scene.width
        part, *later = (
            RasterWindow(each.col_start * cols, each.row_start * rows, each.width * cols, each.height * rows)
            for each in (window, *ahead)
        )
        shape = window.height, window.width
        if not self._prefetch([part], scene.bands, max(rows, cols), later):
            return None
        self._masked = scene.masked
        values, valid = self._read(scene.bands, part, shape)
        if not valid.any():
            return None
        return self._coloured(values, valid, scene), None if valid.all() else valid

    # --- what to read --------------------------------------------------------------------------------

    def _bands(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        data = self._data
        if kind := next((name for name in data.dtypes if "complex" in name), None):
            raise ItemError("unsupported", f"{kind} values cannot be scaled to 8 bits")
        if wanted is not None:
            if max(wanted) > data.count:
                raise ItemError("unsupported", f"--bands has band {max(wanted)}, the file has {data.count}")
            return wanted
        if all(colour in data.colorinterp for colour in _COLOURS):
            return tuple(data.colorinterp.index(colour) + 1 for colour in _COLOURS)
        usable = [n for n, kind in enumerate(data.colorinterp, 1) if kind != ColorInterp.alpha]
        if not usable:
            raise ItemError("unsupported", "its only band is alpha")
        return tuple(usable[:3]) if len(usable) >= 3 else (usable[0],)

    def _alpha(self, bands: tuple[int, ...]) -> tuple[bool, str | None]:
        """Return (whether its alpha band, if it has one, is a mask; a message if it is not)."""
        kinds = self._data.colorinterp
        if ColorInterp.alpha not in kinds:
            return True, None
        band = kinds.index(ColorInterp.alpha) + 1
        if band in bands:
            return False, None
        kind = np.dtype(self._data.dtypes[band - 1])
        if kind.kind != "u":
            return True, None
        parts, full = self._sampled((band,), masked=False), np.iinfo(kind).max
        levels = np.concatenate([values[0].reshape(-1) for values, _ in parts])
        if np.mean((levels > 0) & (levels < full)) < _VALUES:
            return True, None
        message = f"band {band} is marked as alpha but has values, so it is not a mask; --bands can select it"
        return False, message

    def _coarser(self, resolution: float | None) -> float:
        """Return the downsampling factor, at least 1, for a resolution in metres a pixel."""
        if resolution is None:
            return 1.0
        return max(1.0, resolution / self._metres())

    def _metres(self) -> float:
        """Return the side of a pixel in the middle of the scene, in metres."""
        from pyproj import CRS, Geod

        data, crs = self._data, CRS.from_user_input(self._data.crs.to_wkt())
        side = math.sqrt(abs(data.transform.determinant))
        if not crs.is_geographic and not crs.is_projected:
            return side
        from pyproj import Transformer

        middle = (data.width / 2, data.height / 2)
        corners = [data.transform @ point for point in (middle, (middle[0] + 1, middle[1] + 1))]
        to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        (lon0, lat0), (lon1, lat1) = (to_degrees.transform(*corner) for corner in corners)
        _, _, diagonal = (crs.get_geod() or Geod(ellps="WGS84")).inv(lon0, lat0, lon1, lat1)
        return diagonal / math.sqrt(2) if math.isfinite(diagonal) and diagonal > 0 else side

    def _is_palette(self, bands: Sequence[int]) -> bool:
        return len(bands) == 1 and self._data.colorinterp[bands[0] - 1] == ColorInterp.palette

    # --- values to bytes -----------------------------------------------------------------------------

    def _scaling(self, tiling: Tiling, bands: tuple[int, ...]) -> tuple[tuple[float, float], ...] | None:
        rule, ranges = tiling.scaling, tiling.ranges
        bytes_already = all(self._data.dtypes[band - 1] == "uint8" for band in bands)
        if self._is_palette(bands):
            return None
        white_is_zero = self._data.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
        if rule == "auto" and bytes_already:
            white = float(2 ** int(self._data.tags(bands[0], ns="IMAGE_STRUCTURE").get("NBITS", 8)) - 1)
            if white_is_zero:
                return ((white, 0.0),) * len(bands)
            return None if white == 255 else ((0.0, white),) * len(bands)
        if rule == "percentiles" or (rule == "auto" and ranges is None):
            found = self._percentiles(bands)
            return tuple((high, low) for low, high in found) if white_is_zero else found
        if rule != "auto" or ranges is None:
            low, high = (float(value) for value in rule.split(","))
            ranges = [(low, high)] * len(bands)
        if len(ranges) != len(bands):
            raise ItemError(
                "unsupported",
                f"the model file has value ranges of {len(ranges)} bands, but {len(bands)} are read",
            )
        about = [(self._data.scales[band - 1], self._data.offsets[band - 1]) for band in bands]
        return tuple(
            ((low - offset) / scale, (high - offset) / scale)
            for (low, high), (scale, offset) in zip(ranges, about, strict=True)
        )

    def _percentiles(self, bands: tuple[int, ...]) -> tuple[tuple[float, float], ...]:
        """Return (low, high) of each band; (0, 1) where it has no valid pixel."""
        parts, found = self._sampled(bands, self._masked), []
        for number in range(len(bands)):
            values = np.concatenate([part[number][valid] for part, valid in parts]).astype(np.float64)
            low, high = np.percentile(values, (LOW, HIGH)) if len(values) else (0.0, 1.0)
            found.append((float(low), float(high if high > low else low + 1)))
        return tuple(found)

    def _sampled(self, bands: tuple[int, ...], masked: bool) -> list[tuple[NDArray[Any], NDArray[np.bool_]]]:
        """Return (values, valid) of each window of `_samples`; masked: as in Scene."""
        samples, parts = list(self._samples()), []
        self._masked = masked
        for first in range(0, len(samples), TOGETHER):
            some = samples[first : first + TOGETHER]
            self._prefetch([part for part, _ in some], bands, some[0][0].height / some[0][1][0])
            parts += [self._read(bands, part, shape) for part, shape in some]
        return parts

    def _samples(self) -> Iterator[tuple[RasterWindow, tuple[int, int]]]:
        """Yield windows of the file with the shapes (height, width) to read them in."""
        data = self._data
        longest = max(data.height, data.width)
        if longest / max(data.overviews(1), default=1) <= 2 * SAMPLED:
            less = max(1.0, longest / SAMPLED)
            shape = max(1, round(data.height / less)), max(1, round(data.width / less))
            yield RasterWindow(0, 0, data.width, data.height), shape
            return
        rows, cols = data.block_shapes[0]
        down, across = math.ceil(data.height / rows), math.ceil(data.width / cols)
        step = max(1, math.isqrt(down * across // BLOCKS))
        for row in range(step // 2, down, step):
            for col in range(step // 2, across, step):
                height, width = min(rows, data.height - row * rows), min(cols, data.width - col * cols)
                yield RasterWindow(col * cols, row * rows, width, height), (height, width)

    def _read(
        self, bands: tuple[int, ...], part: RasterWindow, shape: tuple[int, int]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return (values (bands, height, width), valid, bool (height, width)) of a window."""
        data, coarse = self._data, self._is_palette(bands)
        how = Resampling.nearest if coarse or shape[0] >= part.height else Resampling.average
        values = data.read(list(bands), window=part, out_shape=(len(bands), *shape), resampling=how)
        valid = np.ones(shape, bool)
        ignored = MaskFlags.all_valid if self._masked else MaskFlags.alpha
        if any(not {MaskFlags.all_valid, ignored} & set(flags) for flags in data.mask_flag_enums):
            masks = data.read_masks(list(bands), window=part, out_shape=(len(bands), *shape))
            valid = (masks != 0).any(0)
        if self._masked and ColorInterp.alpha in data.colorinterp:
            # GDAL's masks recognise alpha as a second or fourth band only
            alpha = data.colorinterp.index(ColorInterp.alpha) + 1
            valid &= data.read(alpha, window=part, out_shape=shape) != 0
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(0)
        return values, valid

    def _coloured(self, values: NDArray[Any], valid: NDArray[np.bool_], scene: Scene) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8]
        if self._is_palette(scene.bands):
            pixels = self._palette(scene.bands[0])[values[0]]
        else:
            if scene.scaling is not None:
                values = np.stack([_to_bytes(*each) for each in zip(values, scene.scaling, strict=True)])
            pixels = np.ascontiguousarray(np.broadcast_to(values, (3, *valid.shape)).transpose(1, 2, 0))
        if not valid.all():
            pixels[~valid] = 0
        return pixels

    def _palette(self, band: int) -> NDArray[np.uint8]:
        """Return the palette, uint8 (number of values of the band's type, 3); black where it has no entry."""
        if self._palettes.get(band) is None:
            colours = np.zeros((1 + np.iinfo(self._data.dtypes[band - 1]).max, 3), np.uint8)
            for value, colour in self._data.colormap(band).items():
                colours[value] = colour[:3]
            self._palettes[band] = colours
        return self._palettes[band]

    # --- bytes of the file ---------------------------------------------------------------------------

    def _open(self, path: str, mode: str = "rb", **_: Any) -> RangeFile:
        if path != _PATH:
            raise FileNotFoundError(path)
        self._file.seek(0)
        return _Unclosed(self._file)  # type: ignore[return-value]

    def _prefetch(
        self,
        parts: Sequence[RasterWindow],
        bands: Sequence[int],
        coarser: float,
        later: Sequence[RasterWindow] = (),
    ) -> bool:
        """Prefetch the blocks that GDAL will read, those of an overview where it will read one.

        Return False where there are none: in a sparse file, blocks without data are missing. The offsets of
        JPEG 2000 blocks are unknown.
        """
        if not self._is_tiff:
            return True
        level, factor = None, 1
        for number, each in enumerate(self._data.overviews(bands[0])):
            if each <= coarser * 1.2:
                level, factor = number, each
        present = [each for part in parts for each in self._ranges(part, bands, level, factor)]
        self._file.prefetch(present, [self._ranges(part, bands, level, factor) for part in later])
        return bool(present)

    def _ranges(
        self, part: RasterWindow, bands: Sequence[int], level: int | None, factor: int
    ) -> list[Range]:
        """Return the byte ranges of the blocks in a window, which is in pixels of the full resolution."""
        data = self._data
        rows, cols = self._block_shape(level)
        first_row, first_col = int(part.row_off / factor) // rows, int(part.col_off / factor) // cols
        last_row = (math.ceil((part.row_off + part.height) / factor) - 1) // rows
        last_col = (math.ceil((part.col_off + part.width) / factor) - 1) // cols
        separate = data.interleaving is not None and data.interleaving.name == "band"
        blocks = (
            self._block(row, col, band, level)
            for band in (bands if separate else bands[:1])
            for row in range(first_row, last_row + 1)
            for col in range(first_col, last_col + 1)
        )
        return [each for each in blocks if each is not None]

    def _block_shape(self, level: int | None) -> tuple[int, int]:
        if level not in self._block_shapes:
            with rasterio.open(_PATH, driver="GTiff", opener=self._open, overview_level=level) as coarse:
                self._block_shapes[level] = coarse.block_shapes[0]
        return self._block_shapes[level]

    def _block(self, row: int, col: int, band: int, level: int | None) -> Range | None:
        places = (f"BLOCK_OFFSET_{col}_{row}", f"BLOCK_SIZE_{col}_{row}")
        offset, size = (self._data.get_tag_item(name, "TIFF", bidx=band, ovr=level) for name in places)
        return None if offset is None or size is None else (int(offset), int(size))


@contextmanager
def _gdal_errors(doing: str) -> Iterator[None]:
    """Turn the errors of GDAL and rasterio, which have many types, into an ItemError."""
    try:
        yield
    except (ItemError, MemoryError):
        raise
    except Exception as error:
        reason = _reason(error)
        is_sound = "missing codec" in reason
        raise ItemError("unsupported" if is_sound else "corrupt", f"GDAL cannot {doing}: {reason}") from error


class _Unclosed:
    """File that ignores `close`: GDAL opens and closes it several times, and the cache must be kept."""

    def __init__(self, file: RangeFile) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Unclosed":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """Do nothing."""


def _to_bytes(values: NDArray[Any], bounds: tuple[float, float]) -> NDArray[np.uint8]:
    """Scale values linearly to uint8 of the same shape: `bounds` become 0 and 255, in either order."""
    low, high = bounds
    is_exact = values.dtype.itemsize < 4 or values.dtype == np.float32
    kind = np.dtype("float32" if is_exact else "float64")  # float32 has steps of 64 at one billion
    with np.errstate(invalid="ignore"):
        scaled = (values.astype(kind) - kind.type(low)) * kind.type(255 / (high - low))
        pixels: NDArray[np.uint8] = np.nan_to_num(scaled.clip(0, 255)).round().astype(np.uint8)
    return pixels


def _reason(error: BaseException) -> str:
    """Return GDAL's own message, which rasterio hides in the cause."""
    message = str(error.__cause__ or error).replace(_PATH, "the file")
    return message[:300] or type(error).__name__
