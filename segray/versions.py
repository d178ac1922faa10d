"""Versions of what results can depend on."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions that results can depend on."""
    names = ("segray", "torch", "torchvision", "ray", "pyarrow", "pillow", "pycocotools", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def banner() -> str:
    """What `segray --version` prints: what two machines must share to work on one job."""
    python = ".".join(platform.python_version_tuple()[:2])
    return f"segray {version('segray')} (Python {python}, Ray {version('ray')})"
