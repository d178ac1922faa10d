"""`python:module:factory`: a custom model, imported as Python imports for a script."""

import hashlib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torchvision.models.detection import MaskRCNN

from segray.errors import SettingsError
from segray.models.pretrained import in_words
from segray.models.torchvision_files import categories_of


def load_factory(spec: str, folder: str | None = None) -> dict[str, Any]:
    """Import the module, call the factory without arguments; return the fields of a `LoadedModel` but its
    name.

    folder: searched for the module after the working directory. The model may have `categories` (dict of
    id and name), `digest` (str, when its tensors do not identify it) and `band_ranges` (see `ModelCard`).
    Raises SettingsError, with the module and the factory in it, where any of this fails.
    """
    _, module_name, factory_name = spec.split(":")
    module = _import(spec, module_name, folder)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise SettingsError(f"weights {spec}: module {module_name} has no function {factory_name}")
    try:
        model = factory()
    except Exception as error:
        raise SettingsError(f"weights {spec}: {factory_name}() failed: {in_words(error)}") from error
    if not callable(model):
        raise SettingsError(
            f"weights {spec}: {factory_name}() returned a {type(model).__name__}, not a model"
        )
    if isinstance(model, torch.nn.Module):
        model.eval()
    return {
        "module": model, "categories": _categories(spec, model), "category_ids": None,
        "digest": _digest(module, factory_name, model), "band_ranges": getattr(model, "band_ranges", None),
    }  # fmt: skip


def _import(spec: str, name: str, folder: str | None) -> ModuleType:
    for path in (folder, str(Path.cwd())):  # the last one is searched first
        if path is not None and path not in sys.path:
            sys.path.insert(0, path)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise SettingsError(f"weights {spec}: cannot import module {name}: {in_words(error)}") from error


def _categories(spec: str, model: Any) -> dict[int, str]:
    given = getattr(model, "categories", None)
    if given is None:
        known = isinstance(model, MaskRCNN) and hasattr(model.roi_heads.box_predictor, "cls_score")
        return categories_of(model) if known else {}
    if not isinstance(given, Mapping):
        raise SettingsError(f"weights {spec}: categories must be a dict of id and name")
    return {int(label): str(name) for label, name in given.items()}


def _digest(module: ModuleType, factory_name: str, model: Any) -> str:
    """Return a sha256 over the source and the model's `digest`, else the factory's name and the tensors."""
    digest = hashlib.sha256()
    if module.__file__ is not None:
        digest.update(Path(module.__file__).read_bytes())
    if hasattr(model, "digest"):
        digest.update(str(model.digest).encode())
        return digest.hexdigest()
    digest.update(factory_name.encode())
    if isinstance(model, torch.nn.Module):
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
