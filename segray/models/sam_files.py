"""SAM's weights: from Hugging Face's cache or hub, or a folder with `config.json` and `model.safetensors`.

Safetensors hold tensors alone, so nothing is ever unpickled, and only classes of transformers are built. The
licence is printed before anything is fetched.
"""

import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segray.errors import SettingsError
from segray.log import say
from segray.models.hub import fetching
from segray.models.pretrained import in_words
from segray.models.sam_names import SAM_WEIGHTS, SamWeights
from segray.retries import retrying
from segray.sources.concurrent_requests import describe
from segray.storage import StorageSettings, open_filesystem, split_protocol

CONFIG, TENSORS = "config.json", "model.safetensors"
CLASSES = {
    "sam": ("sam", "SamModel"),
    "sam2": ("sam2", "Sam2Model"),
    "sam2_video": ("sam2", "Sam2Model"),
    "sam3_tracker": ("sam3", "Sam3TrackerModel"),
    "sam3_tracker_video": ("sam3", "Sam3TrackerModel"),
    "sam3_video": ("sam3", "Sam3TrackerModel"),
}
"""`model_type` of config.json -> our kind, transformers' class; SAM 2 and 3 are published for video."""
CATEGORIES = {1: "object"}
_NETWORK_TIMEOUT_S = 10.0


def check_sam(spec: str, storage: StorageSettings) -> None:
    """Find or fetch the files of a name or a folder; no torch is loaded.

    Raises SettingsError, which says what to fetch, from where, under which licence and where to put it.
    """
    if importlib.util.find_spec("transformers") is None:
        raise SettingsError(f"weights {spec}: SAM needs transformers; install segray with its extra `sam`")
    if spec in SAM_WEIGHTS:
        _config_of(spec, _fetched(SAM_WEIGHTS[spec]))
        return
    filesystem, path = open_filesystem(spec, storage)
    for name in (CONFIG, TENSORS):
        if not retrying(lambda name=name: filesystem.exists(f"{path}/{name}"), storage):  # type: ignore[misc]
            raise SettingsError(
                f"weights {spec}: a folder without {name}; use a model file, or a folder of SAM as "
                f"transformers saves it, with {CONFIG} and {TENSORS}"
            )


def load_sam(spec: str, storage: StorageSettings) -> dict[str, Any]:
    """Load SAM; return the fields of a `LoadedModel` but its name. Raises SettingsError as `check_sam`."""
    check_sam(spec, storage)
    with _folder(spec, storage) as folder:
        return {
            "module": _network(spec, folder),
            "categories": CATEGORIES,
            "category_ids": None,
            "digest": _digest(folder),
        }


def tensor_bytes(spec: str, storage: StorageSettings) -> int:
    """Return the size of SAM's file of tensors. Raises SettingsError where it cannot be asked for."""
    if spec in SAM_WEIGHTS:
        return (_fetched(SAM_WEIGHTS[spec]) / TENSORS).stat().st_size
    filesystem, path = open_filesystem(spec, storage)
    try:
        return int(retrying(lambda: filesystem.size(f"{path}/{TENSORS}"), storage))
    except OSError as error:
        raise SettingsError(f"weights {spec}: {TENSORS} cannot be read: {describe(error)}") from error


def _fetched(weights: SamWeights) -> Path:
    """Return the folder of a name's files, in Hugging Face's cache (HF_HOME), fetched where necessary."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = [try_to_load_from_cache(weights.repository, name) for name in (CONFIG, TENSORS)]
    folders = {Path(each).parent if isinstance(each, str) else None for each in cached}
    if None not in folders and len(folders) == 1:
        return Path(str(cached[0])).parent
    site = f"huggingface.co/{weights.repository}"
    say(f"fetching {weights.name} from {site}; licence: {weights.licence}")
    reason = None
    try:
        with fetching() as reason:
            config = hf_hub_download(weights.repository, CONFIG, etag_timeout=_NETWORK_TIMEOUT_S)
            revision = Path(config).parent.name  # so that both are of one
            hf_hub_download(weights.repository, TENSORS, revision=revision, etag_timeout=_NETWORK_TIMEOUT_S)
    except Exception as error:
        raise SettingsError(
            f"weights {weights.name}: cannot be fetched from {site} ({reason or in_words(error)})",
            f"put its {CONFIG} and {TENSORS} (licence: {weights.licence}) into a folder and name that in "
            f"place of {weights.name}, or bring the cache of a machine that has them (HF_HOME, by default "
            "~/.cache/huggingface)",
        ) from error
    return Path(config).parent


@contextmanager
def _folder(spec: str, storage: StorageSettings) -> Iterator[Path]:
    """Yield a local folder with the two files; that of a bucket is copied for the while."""
    if spec in SAM_WEIGHTS:
        yield _fetched(SAM_WEIGHTS[spec])
        return
    filesystem, path = open_filesystem(spec, storage)
    if split_protocol(spec)[0] == "file":
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="segray-sam-") as copy:
        for name in (CONFIG, TENSORS):
            try:
                retrying(lambda name=name: filesystem.get_file(f"{path}/{name}", f"{copy}/{name}"), storage)  # type: ignore[misc]
            except OSError as error:
                raise SettingsError(f"weights {spec}: {name} cannot be read: {describe(error)}") from error
        yield Path(copy)


def _config_of(spec: str, folder: Path) -> tuple[str, str]:
    """Return the kind and the class of transformers that `config.json` names."""
    try:
        content = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"weights {spec}: {CONFIG} is not JSON: {in_words(error)}") from error
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in CLASSES:
        known = ", ".join(CLASSES)
        raise SettingsError(f"weights {spec}: {CONFIG} is of a model {str(kind)[:80]!r}, not SAM's: {known}")
    return CLASSES[kind]


def _network(spec: str, folder: Path) -> Any:
    """Return the SegmentAnything of a folder, float32, in evaluation mode."""
    kind, name = _config_of(spec, folder)
    import torch
    import transformers
    from transformers.utils import logging

    from segray.models.checks import weights_in
    from segray.models.sam import SegmentAnything

    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # tensors for videos are no news
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        network, report = getattr(transformers, name).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise SettingsError(f"weights {spec}: not read as {name}: {in_words(error)[:300]}") from error
    if report["missing_keys"]:
        lost = sorted(report["missing_keys"])
        raise SettingsError(f"weights {spec}: {TENSORS} lacks {len(lost)} tensors of {name}: {lost[0]} …")
    weights_in(f"weights {spec}", network.state_dict())
    return SegmentAnything(network, kind).eval()


def _digest(folder: Path) -> str:
    """Return a sha256, hex, over the digests of the two files."""
    digest = hashlib.sha256()
    for name in (CONFIG, TENSORS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
