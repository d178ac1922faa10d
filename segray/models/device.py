"""Resolve `auto` for device, precision and batch size on this machine."""

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

import torch

from segray.errors import SettingsError

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
"""torch reads it at its first tensor: large tensors on the CPU then use huge pages. A new 69 MB activation
costs 8 ms instead of 34; malloc returns each to the system, which clears every page of the next one."""

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str) -> str:
    """Return the device: `auto` is `cuda` where there is one, else `cpu`; other names are checked.

    Raises SettingsError for a name that torch does not know and for a device that this machine lacks.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"device: {device!r} cannot be used here: {reason}") from error
    return device


def resolve_precision(precision: str, device: str) -> Precision:
    """Return the precision: `auto` is bf16 where the hardware supports bfloat16, else fp32.

    device: resolved. Raises SettingsError for an unknown name.
    """
    if precision == "auto":
        return "bf16" if _has_bfloat16(torch.device(device).type) else "fp32"
    for known in DTYPES:
        if precision == known:
            return known  # type: ignore[return-value]
    raise SettingsError(f"precision: {precision!r} is not one of auto, {', '.join(DTYPES)}")


def default_batch_size(device: str) -> int:
    """Return the images per batch: 8 on an accelerator; 1 on a CPU, where more are not faster."""
    return 1 if torch.device(device).type == "cpu" else 8


@contextlib.contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """Set up inference: no gradients, autocast unless the precision is fp32, deterministic kernels.

    fp32 means fp32: TensorFloat-32, cuDNN's default for convolutions, is off.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if precision != "fp32":
            stack.enter_context(torch.autocast(device.type, DTYPES[precision]))
        if device.type == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=True, allow_tf32=False
                )
            )
        yield


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the device or the machine ran out of memory; torch has a type for the first only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _has_bfloat16(device_type: str) -> bool:
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False
