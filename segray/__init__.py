"""segray: image archives into segmentation labels, and labels into better models, on Ray.

The verbs are functions here: `segray.annotate("photos/", output="labels/").to_pandas()`; see `segray.api`.
"""

import sys
from types import ModuleType
from typing import Any

from segray.api import (
    Result,
    annotate,
    compare,
    drift,
    evaluate,
    export,
    import_,
    panoptic,
    predict,
    preview,
    retrain,
    select,
    train,
)

__all__ = [
    "Result",
    "annotate",
    "compare",
    "drift",
    "evaluate",
    "export",
    "import_",
    "panoptic",
    "predict",
    "preview",
    "retrain",
    "select",
    "train",
]


class _Package(ModuleType):
    """Keeps a verb's function under its name: Python would put the package of that name in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in __all__ or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
