"""Checks before a model file is used: its zip, its weights, its normalisation."""

import io
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segray.errors import SettingsError

_ZIP = b"PK\x03\x04"
"""Signature by which torch, too, distinguishes its zip from older formats."""


def check_archive(name: str, data: bytes) -> None:
    """Raise SettingsError for a zip that inflates, or whose checksums are wrong; nothing in it is loaded.

    torch.save stores its records uncompressed, so a compressed record is not its own, and all records
    together are smaller than the file. Each has a checksum, which torch.load does not verify; files written
    with `torch.serialization.set_crc32_options(False)` have zeros there.
    """
    if not data.startswith(_ZIP):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise SettingsError(
                    f"{name}: refused, its records are compressed; torch.save never compresses"
                )
            if (size := sum(record.file_size for record in records)) > len(data):
                raise SettingsError(f"{name}: refused, {len(data):,} bytes that claim to hold {size:,}")
            damaged = archive.testzip() if any(record.CRC for record in records) else None
    except (zipfile.BadZipFile, struct.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise SettingsError(f"{name}: damaged, or not a file of torch.save") from error
    if damaged is not None:
        raise SettingsError(
            f"{name}: damaged, the checksum of {damaged[:80]!r} in it is wrong; copy it again"
        )


_WRAPPERS = ("model", "state_dict", "model_state_dict")  # where training scripts put the state dict


def unwrapped(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state dict in a checkpoint of a training script, or what is given."""
    for wrapper in _WRAPPERS:
        if isinstance(checkpoint.get(wrapper), dict):
            checkpoint = checkpoint[wrapper]
    return checkpoint


def weights_in(name: str, state_dict: Any) -> dict[str, Tensor]:
    """Return a state dict's tensors, of any shape.

    Raises SettingsError for other types, and for NaN and infinity.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(key, str) for key in state_dict):
        raise SettingsError(f"{name}: its state_dict is a {type(state_dict).__name__}, not tensors by name")
    for key, value in state_dict.items():
        at = f"{name}: {key[:80]!r} in its state_dict"
        if not isinstance(value, Tensor):
            raise SettingsError(f"{at} is a {type(value).__name__}, not a tensor")
        try:
            sound = not value.is_floating_point() or bool(torch.isfinite(value).all())
        except (RuntimeError, NotImplementedError) as error:  # data types that no layer of ours has
            raise SettingsError(f"{at} has an unsupported data type: {value.dtype}") from error
        if not sound:
            raise SettingsError(f"{at} holds NaN or infinity: damaged, or from a training that diverged")
    return dict(state_dict)


def check_normalisation(name: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise SettingsError where normalised pixels would not be finite."""
    if not all(math.isfinite(value) for value in mean):
        raise SettingsError(f"{name}: image_mean {tuple(mean)} is not finite")
    if not all(math.isfinite(value) and value > 0 for value in std):
        raise SettingsError(f"{name}: image_std {tuple(std)} is not above 0")
