"""A NIfTI file or a TIFF stack -> a volume of float32 voxels and its place; and label volumes -> files.

Axes are (depth, height, width): the slices of a stack, their rows, their columns. NIfTI stores (i, j, k) with
i fastest, so that here i is the width, j the height and k the depth; nothing is turned or resampled. Of a
stack each page is a slice. Only one channel is read.
"""

import gzip
import io
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segray.errors import ItemError, SettingsError
from segray.sources.names import one_line

Form = Literal["nifti", "tiff"]
Affine = tuple[float, ...]
"""16 numbers, row by row: voxel (i, j, k, 1) to millimetres (x, y, z, 1), as in NIfTI."""
SUFFIX: dict[Form, str] = {"nifti": ".nii.gz", "tiff": ".tif"}
"""Of a label volume in the same format."""
_GZIP = b"\x1f\x8b"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIZE_OF_HEADER = {348: "Nifti1Image", 540: "Nifti2Image"}
"""First field of a header -> nibabel's class."""
_GREY = ("1", "L", "I;16", "I;16B", "I;16L", "I", "F")
"""Pillow's modes of one channel."""
_IDENTITY: Affine = (1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1)


@dataclass(frozen=True, slots=True)
class Place:
    """What a label volume takes over from its image."""

    shape: tuple[int, int, int]
    """(depth, height, width)."""
    form: Form
    affine: Affine = _IDENTITY
    codes: tuple[int, int] = (0, 0)
    """NIfTI's qform and sform codes: what the millimetres refer to."""
    units: int = 2
    """NIfTI's xyzt_units; 2: millimetres."""

    def to_json(self) -> str:
        """Return one line."""
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> "Place":
        """Return what `to_json` wrote."""
        content = json.loads(text)
        lists = {name: tuple(content[name]) for name in ("shape", "affine", "codes")}
        return cls(**content | lists)


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume in memory."""

    voxels: NDArray[np.float32]
    """(depth, height, width), C-contiguous, finite, after NIfTI's slope and intercept."""
    place: Place = field(repr=False)


def check_installed() -> None:
    """Raise SettingsError where the libraries of the extra `monai` are missing."""
    import importlib.util

    if missing := [name for name in ("monai", "nibabel") if importlib.util.find_spec(name) is None]:
        raise SettingsError(f"volumes need {' and '.join(missing)}: install the extra `monai`")


def read_volume(data: bytes, max_voxels: int) -> Volume:
    """Return the volume in the bytes of a file; to be called where a hostile file may do harm.

    Raises ItemError: `too_large` (by the header, before voxels are read), `truncated`, `corrupt`,
    `unsupported` (another format, several channels).
    """
    if not data:
        raise ItemError("truncated", "the file is empty")
    if data.startswith(_TIFF):
        return _read_tiff(data, max_voxels)
    try:
        return _read_nifti(data, max_voxels)
    except ItemError:
        raise
    except EOFError as error:
        raise ItemError("truncated", "NIfTI: the file ends early") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise ItemError("corrupt", "NIfTI: its gzip stream is damaged") from error
    except MemoryError:
        raise
    except Exception as error:  # nibabel raises anything for a damaged header
        early = "Expected" in str(error) and "bytes" in str(error)
        kind: Any = "truncated" if early else "corrupt"
        raise ItemError(kind, f"NIfTI: {one_line(str(error))[:200]}") from error


def _read_nifti(data: bytes, max_voxels: int) -> Volume:
    import nibabel

    stream: Any = gzip.GzipFile(fileobj=io.BytesIO(data)) if data.startswith(_GZIP) else io.BytesIO(data)
    start = stream.read(4)
    kinds = [_SIZE_OF_HEADER.get(int.from_bytes(start, order)) for order in ("little", "big")]
    kind = kinds[0] or kinds[1]
    if kind is None:
        raise ItemError("unsupported", "not a volume: neither NIfTI (.nii, .nii.gz) nor TIFF")
    stream.seek(0)
    image = getattr(nibabel, kind).from_stream(stream)
    shape = tuple(int(side) for side in image.shape)
    shape += (1,) * (3 - len(shape))
    if math.prod(shape[3:]) != 1:
        raise ItemError("unsupported", f"NIfTI of {_times(shape)}: several channels, one is read")
    check_size(shape[2::-1], max_voxels)
    if image.get_data_dtype().kind not in "iuf":
        raise ItemError("unsupported", f"NIfTI of {image.get_data_dtype()}: numbers are needed")
    values = np.asanyarray(image.dataobj, np.float32).reshape(shape[:3], order="A")
    header = image.header
    codes = int(header["qform_code"]), int(header["sform_code"])
    affine = tuple(np.asarray(image.affine, float).ravel().tolist())
    place = Place((shape[2], shape[1], shape[0]), "nifti", affine, codes, int(header["xyzt_units"]))
    return _finite(values.T, place)


def _read_tiff(data: bytes, max_voxels: int) -> Volume:
    from segray.sources.decode import with_image

    def pages(image: Any) -> Volume:
        number = int(getattr(image, "n_frames", 1))
        shape = number, image.height, image.width
        check_size(shape, max_voxels)
        found = np.empty(shape, np.float32)
        for page in range(number):
            image.seek(page)
            if image.mode not in _GREY:
                raise ItemError("unsupported", f"TIFF of mode {image.mode}: several channels, one is read")
            if (image.height, image.width) != shape[1:]:
                size = f"{image.width} x {image.height}, the first is {shape[2]} x {shape[1]}"
                raise ItemError("unsupported", f"TIFF: page {page + 1} is {size}")
            found[page] = np.asarray(image)
        return _finite(found, Place(shape, "tiff"))

    return with_image(data, max_voxels, pages)


def _finite(values: NDArray[Any], place: Place) -> Volume:
    voxels = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(voxels).all():
        raise ItemError("unsupported", "it holds NaN or infinity; replace them by the value of background")
    if not voxels.size:
        raise ItemError("corrupt", "it has no voxels")
    return Volume(voxels, place)


def check_size(shape: Sequence[int], max_voxels: int) -> None:
    """Raise ItemError for a volume above the limit; for volumes `max_pixels` counts voxels."""
    if math.prod(shape) > max_voxels:
        reason = f"{_times(shape)} voxels, above max_pixels {max_voxels:,}; --max-pixels"
        raise ItemError("too_large", reason)


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def packed(volume: Volume) -> bytes:
    """Return place and voxels as bytes, for tables: what `unpacked` reads."""
    head = volume.place.to_json().encode()
    head += b" " * (-(len(head) + 8) % 8)
    return len(head).to_bytes(8, "little") + head + volume.voxels.tobytes()


def unpacked(data: NDArray[np.uint8]) -> Volume:
    """Return the volume, a view of `data`."""
    size = int.from_bytes(data[:8].tobytes(), "little")
    place = Place.of_json(data[8 : 8 + size].tobytes().decode())
    return Volume(data[8 + size :].view(np.float32).reshape(place.shape), place)


def label_file(labels: NDArray[np.uint8], place: Place) -> bytes:
    """Return a label volume, uint8 (depth, height, width), as NIfTI with the image's affine, or as a stack.

    The same labels give the same bytes.
    """
    return _tiff(labels) if place.form == "tiff" else _nifti(labels, place)


def _nifti(labels: NDArray[np.uint8], place: Place) -> bytes:
    import nibabel

    affine = np.reshape(place.affine, (4, 4))
    image: Any = nibabel.Nifti1Image(labels.T, affine)  # type: ignore[no-untyped-call]
    image.header["xyzt_units"] = place.units
    for code, set_form in zip(place.codes, (image.set_qform, image.set_sform), strict=True):
        set_form(image.affine, code if any(place.codes) else 2)
    return gzip.compress(image.to_bytes(), 6, mtime=0)


def _tiff(labels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    first, *others = (Image.fromarray(each) for each in labels)
    file = io.BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=others, compression="tiff_adobe_deflate")
    return file.getvalue()
