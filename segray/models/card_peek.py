"""The card of a model file without its weights and without torch: what is refused before anything is loaded.

A file of torch.save is a zip whose `data.pkl` names the tensors, a few KB; of an address in a bucket only
that and the zip's directory are fetched.
"""

import pickle
import zipfile
from typing import Any

from segray.models import bundled_models
from segray.registry.address import is_registry
from segray.retries import retrying
from segray.storage import StorageSettings, open_filesystem

_LONGEST = 16 << 20
"""Bytes of `data.pkl` that are read at most; of a Mask R-CNN it has 60 KB."""


def peeked_card(spec: str, storage: StorageSettings) -> dict[str, Any]:
    """Return the fields of the model file that `spec` names, not validated.

    Empty for anything else, and for what cannot be read: loading it tells why.
    """
    try:
        content = _contents(spec, storage)
    except Exception:  # noqa: BLE001 - whatever a damaged pickle makes its reader raise
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("format"), str) else {}


def resized_side(card: dict[str, Any]) -> int | None:
    """Return the side of the square that images are resized to; None: they are not, or it is unknown."""
    side = card.get("size")
    return side if card.get("fit") == "resize" and isinstance(side, int) else None


def class_names(card: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of a peeked semantic model's classes; empty where they are unknown."""
    names: Any = card.get("classes")
    is_plain = isinstance(names, list | tuple) and all(isinstance(each, str) for each in names)
    return tuple(names) if is_plain else ()


def _contents(spec: str, storage: StorageSettings) -> Any:
    if spec.startswith("python:") or is_registry(spec):
        return None
    filesystem, path = open_filesystem(str(bundled_models().get(spec, spec)), storage)

    def read() -> Any:
        with filesystem.open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            record = next(each for each in archive.infolist() if each.filename.endswith("/data.pkl"))
            if record.compress_type != zipfile.ZIP_STORED or record.file_size > _LONGEST:
                return None
            with archive.open(record) as content:
                return _Peek(content).load()

    return retrying(read, storage)


class _Inert:
    """In place of every class and function that a pickle names: nothing is imported, nothing runs."""

    def __init__(self, *values: Any) -> None:
        pass


class _Peek(pickle.Unpickler):
    """Reads plain values; tensors are left out."""

    def find_class(self, module: str, name: str) -> Any:
        return dict if name == "OrderedDict" else _Inert

    def persistent_load(self, pid: Any) -> Any:
        return None
