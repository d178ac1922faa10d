"""Versions of what results can depend on."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions that results can depend on."""
    names = ("segray", "torch", "torchvision", "ray", "pyarrow", "pillow", "pycocotools", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
