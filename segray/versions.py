"""Versions of Python and of the libraries that results can depend on."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Return the version of Python and of each library that results can depend on."""
    names = ("segray", "torch", "torchvision", "ray", "pyarrow", "pillow", "pycocotools", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def banner() -> str:
    """Return the line of `segray --version`: the versions that all machines of one job must share."""
    python = ".".join(platform.python_version_tuple()[:2])
    return f"segray {version('segray')} (Python {python}, Ray {version('ray')})"
