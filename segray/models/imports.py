"""Import torchvision without torch's compiler: a second less, in every process that starts.

`torchvision.ops.roi_align` imports `torch._dynamo`, half of torch, for one function that it only calls when
it is compiled. Here it gets a stand-in that imports the real one when it is called.
"""

import sys
from types import ModuleType

_COMPILER = ("torch._dynamo", "torch._dynamo.utils")


def import_torchvision() -> None:
    """Import torchvision; a later import of the compiler gets torch's own."""
    import torch

    if any(name in sys.modules for name in (*_COMPILER, "torchvision")):
        return
    stand_ins = {name: ModuleType(name) for name in _COMPILER}
    stand_ins[_COMPILER[1]].is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    try:
        import torchvision.models.detection  # noqa: F401
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        vars(torch).pop("_dynamo", None)


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))
