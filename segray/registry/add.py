"""Build a version of a model from a model file or a training output: card, metrics, snapshot."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from segray.errors import SettingsError
from segray.log import say
from segray.models.weights import name_of, read_weights
from segray.output.io import read_if_there
from segray.output.names import MODEL, SCORES
from segray.registry.registry import CARD, SNAPSHOT
from segray.retries import retrying
from segray.sources.concurrent_requests import describe
from segray.storage import StorageSettings, canonical_uri, open_filesystem

if TYPE_CHECKING:
    from segray.data.pairs import Pair


def version_of(source: str, storage: StorageSettings) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return (objects of the version, its run.json) of a model file, or of an output of `segray train`.

    Raises SettingsError where it is not a segray model file, or the training is not finished.
    """
    from segray.models.imports import import_torchvision

    import_torchvision()
    run = _training(source, storage)
    path = f"{source.rstrip('/')}/{MODEL}" if run is not None else source
    data = read_weights(path, storage)
    record = run if run is not None else {"verb": "add", "weights": name_of(source)}
    files = files_of(path, data, record, None)
    if run is not None and (snapshot := _snapshot(source.rstrip("/"), storage)) is not None:
        files[SNAPSHOT] = snapshot
    return files, record


def _snapshot(training: str, storage: StorageSettings) -> bytes | None:
    """Return the snapshot of a training's labels, as `segray retrain` keeps it; None where it is unknown.

    Without it a retraining would hold out images on which its champion was trained.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from segray.data.coco_listing import list_coco
    from segray.data.pairs import FRAGMENT, list_pairs
    from segray.data.scan import SCAN
    from segray.retrain.labels import snapshot_of, to_bytes

    try:
        names = {name: read_if_there(f"{training}/{name}", storage, "run") for name in (*_SPLITS, SCAN)}
        scan, manifest = names[SCAN], names["splits.csv"]
        if scan is None or manifest is None or FRAGMENT.encode() in manifest:
            return None  # an old training, or one of scenes
        categories = None
        if names["splits.json"] is not None:
            found = list_coco(f"{training}/splits.json", storage)
            listed, categories = found.pairs, found.categories
        else:
            listed = list_pairs(f"{training}/splits.csv", storage).pairs
        known = pq.read_table(pa.BufferReader(scan))
        index_of = {image: index for index, image in enumerate(known["image"].to_pylist())}
        pairs = [pair for pair in listed if pair.image.uri in index_of]
        rows = known.take(pa.array([index_of[pair.image.uri] for pair in pairs], pa.int64()))
        versions = zip(rows["image_version"].to_pylist(), rows["label_version"].to_pylist(), strict=True)
        seen = [_as_seen(pair, *each) for pair, each in zip(pairs, versions, strict=True)]
        return to_bytes(snapshot_of(seen, rows, [str(pair.split) for pair in seen], categories))
    except (SettingsError, ValueError, KeyError) as error:
        say(f"no snapshot of the labels is kept: {describe(error)}", "warning")
        return None


_SPLITS = ("splits.csv", "splits.json")


def _as_seen(pair: "Pair", image: str, label: str) -> "Pair":
    """Return the pair with the versions (ETag, or size and mtime) that its files had when they were read."""
    return replace(pair, image=replace(pair.image, version=image), label=replace(pair.label, version=label))


def _training(source: str, storage: StorageSettings) -> dict[str, Any] | None:
    """Return run.json of a finished training; None where `source` is a file.

    Raises SettingsError where it is neither.
    """
    filesystem, path = open_filesystem(source, storage)
    try:
        if retrying(lambda: filesystem.info(path), storage).get("type") != "directory":
            return None
        data = retrying(lambda: bytes(filesystem.cat_file(f"{path.rstrip('/')}/run.json")), storage)
    except FileNotFoundError as error:
        raise SettingsError(
            f"{canonical_uri(source)}: neither a model file nor a finished training (no run.json)"
        ) from error
    except OSError as error:
        raise SettingsError(f"{canonical_uri(source)}: cannot be read: {error}") from error
    try:
        record = json.loads(data)
    except ValueError as error:
        raise SettingsError(f"{canonical_uri(source)}: its run.json is damaged: {error}") from error
    if not isinstance(record, dict) or record.get("verb", "train") != "train":
        raise SettingsError(f"{canonical_uri(source)}: not an output of `segray train`")
    if not all(isinstance(record.get(name) or {}, dict) for name in ("settings", "data", "best")):
        raise SettingsError(f"{canonical_uri(source)}: its run.json is not from `segray train`")
    return record


def files_of(
    name: str, data: bytes, run: Mapping[str, Any], metrics: Mapping[str, Any] | None
) -> dict[str, bytes]:
    """Return model.pt, card.md and metrics.json of a version.

    run: the training's run.json. metrics: scores of a comparison; None: the training's own, on val. Raises
    SettingsError where `data` is not a segray model file.
    """
    about = card_of(name, data)
    if metrics is None:
        best = run.get("best") or {}
        metrics = {"holdout": None, "val": best}
    return {
        MODEL: data,
        CARD: _card(about, run, metrics).encode(),
        SCORES: json.dumps(metrics, indent=2, ensure_ascii=False).encode() + b"\n",
    }


def card_of(name: str, data: bytes) -> dict[str, Any]:
    """Return `task`, `arch`, `classes` (id to name) and more of a segray model file.

    Raises SettingsError for other files.
    """
    from dataclasses import asdict

    from segray.models.modelfile import is_model_file, model_of, plain_contents

    content = plain_contents(f"weights {name}", data)
    if not is_model_file(content):
        raise SettingsError(
            f"weights {name}: not a segray model file; train with --start-from it, then add the result"
        )
    card = model_of(f"weights {name}", content, "").card
    return {**asdict(card), "classes": card.categories}


def _card(about: Mapping[str, Any], run: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Return a model card (Mitchell et al. 2019, https://arxiv.org/abs/1810.03993) of what is known."""
    settings, data = run.get("settings") or {}, run.get("data") or {}
    counted = ", ".join(f"{data[name]} {name}" for name in ("train", "val", "test") if name in data)
    classes = ", ".join(f"{number} {name}" for number, name in about["classes"].items())
    lines = [
        f"# {about['arch']}, {about['task']}",
        "",
        f"- Classes: {classes}",
        f"- Licence: {about['licence'] or 'unknown'}",
        f"- Weights and data: {about['source'] or 'unknown'}",
        f"- Trained on: {counted or 'unknown'}"
        + (f" (sha256 of the data {data['digest'][:16]})" if data.get("digest") else ""),
        f"- Started from: {_start(settings) if settings else 'unknown'}",
        f"- Epochs: {run.get('epochs', 'unknown')}; finished {run.get('finished_at', 'unknown')}",
        "",
        "## Scores",
        "",
        *_scores(metrics),
    ]
    return "\n".join(lines) + "\n"


def _start(settings: Mapping[str, Any]) -> str:
    if settings.get("pretrained"):
        return "pretrained weights of the encoder, see above"
    return str(settings.get("start_from") or settings.get("encoder_weights") or "random weights")


def _scores(metrics: Mapping[str, Any]) -> list[str]:
    holdout = metrics.get("holdout")
    found = metrics.get("figures") or metrics.get("val") or {}
    where = f"holdout {holdout['version']}, {holdout['images']} images" if holdout else "val of its training"
    plain = {name: value for name, value in found.items() if isinstance(value, float)}
    return [f"On {where}:", "", *(f"- {name}: {value:.4f}" for name, value in plain.items())]
