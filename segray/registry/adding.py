"""A model file, or the output of a training, as a version of a model: what is kept with it."""

import json
from collections.abc import Mapping
from typing import Any

from segray.errors import SettingsError
from segray.models.weights import name_of, read_weights
from segray.registry.registry import CARD, METRICS, MODEL
from segray.retries import retrying
from segray.storage import StorageSettings, canonical_uri, open_filesystem


def version_of(source: str, storage: StorageSettings) -> tuple[dict[str, bytes], dict[str, Any]]:
    """(Objects of the version, its run.json) of a model file, or of the output of `segray train`.

    Raises SettingsError for what is no model file of segray's, and for a training that is not finished.
    """
    from segray.models.imports import import_torchvision

    import_torchvision()
    run = _training(source, storage)
    path = f"{source.rstrip('/')}/{MODEL}" if run is not None else source
    data = read_weights(path, storage)
    record = run if run is not None else {"verb": "add", "weights": name_of(source)}
    return files_of(path, data, record, None), record


def _training(source: str, storage: StorageSettings) -> dict[str, Any] | None:
    """run.json of a finished training; None where `source` is a file."""
    filesystem, path = open_filesystem(source, storage)
    try:
        if retrying(lambda: filesystem.info(path), storage).get("type") != "directory":
            return None
        data = retrying(lambda: bytes(filesystem.cat_file(f"{path.rstrip('/')}/run.json")), storage)
    except FileNotFoundError as error:
        raise SettingsError(
            f"{canonical_uri(source)}: no model file, and no finished training (run.json) there"
        ) from error
    except OSError as error:
        raise SettingsError(f"{canonical_uri(source)}: cannot be read: {error}") from error
    record = json.loads(data)
    if not isinstance(record, dict) or record.get("verb", "train") != "train":
        raise SettingsError(f"{canonical_uri(source)}: no output of `segray train`")
    return record


def files_of(
    name: str, data: bytes, run: Mapping[str, Any], metrics: Mapping[str, Any] | None
) -> dict[str, bytes]:
    """model.pt, card.md and metrics.json of a version.

    run: the training's run.json. metrics: what a comparison found; None: the training's own, on val. Raises
    SettingsError for what is no model file of segray's.
    """
    about = card_of(name, data)
    if metrics is None:
        best = run.get("best") or {}
        metrics = {"holdout": None, "val": best}
    return {
        MODEL: data,
        CARD: _card(about, run, metrics).encode(),
        METRICS: json.dumps(metrics, indent=2, ensure_ascii=False).encode() + b"\n",
    }


def card_of(name: str, data: bytes) -> dict[str, Any]:
    """`task`, `arch`, `classes` (id to name) and more of a model file. Raises SettingsError for others."""
    from dataclasses import asdict
    from io import BytesIO

    from segray.models import modelfile, semanticfile
    from segray.models.torchvision_files import read_checkpoint

    kind = str(read_checkpoint(name, data).get("format"))
    if kind == semanticfile.FORMAT:
        semantic = semanticfile.load_semantic(f"weights {name}", data).card
        return {"task": "semantic", **asdict(semantic), "classes": dict(enumerate(semantic.classes))}
    if kind == modelfile.FORMAT:
        instance = modelfile.load_model_file(BytesIO(data)).card
        return {"task": "instance", **asdict(instance), "classes": dict(instance.categories)}
    raise SettingsError(
        f"weights {name}: no model file of segray's; train with --start-from it, then add that"
    )


def _card(about: Mapping[str, Any], run: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """A model card (Mitchell et al. 2019, https://arxiv.org/abs/1810.03993), as far as it is known."""
    settings, data = run.get("settings") or {}, run.get("data") or {}
    counted = ", ".join(f"{data[name]} {name}" for name in ("train", "val", "test") if name in data)
    classes = ", ".join(f"{number} {name}" for number, name in about["classes"].items())
    lines = [
        f"# {about['arch']}, {about['task']}",
        "",
        f"- Classes: {classes}",
        f"- Licence: {about['licence'] or 'not said'}",
        f"- Weights and data: {about['source'] or 'not said'}",
        f"- Trained on: {counted or 'not known'}"
        + (f" (sha256 of the data {data['digest'][:16]})" if data.get("digest") else ""),
        f"- Started from: {settings.get('start_from', 'random weights') if settings else 'not known'}",
        f"- Epochs: {run.get('epochs', 'not known')}; finished {run.get('finished_at', 'not known')}",
        "",
        "## Scores",
        "",
        *_scores(metrics),
    ]
    return "\n".join(lines) + "\n"


def _scores(metrics: Mapping[str, Any]) -> list[str]:
    holdout = metrics.get("holdout")
    found = metrics.get("figures") or metrics.get("val") or {}
    where = f"holdout {holdout['version']}, {holdout['images']} images" if holdout else "val of its training"
    plain = {name: value for name, value in found.items() if isinstance(value, float)}
    return [f"On {where}:", "", *(f"- {name}: {value:.4f}" for name, value in plain.items())]
