"""Whether an address holds labels of instances, by its name and its files alone."""

from segray.output.io import files_below
from segray.storage import StorageSettings, open_filesystem

FOLDER_FILE = "instances.json"


def holds_coco(data: str, storage: StorageSettings) -> bool:
    """Return whether `data` is COCO JSON, or a folder with `instances.json`."""
    if data.lower().endswith(".json"):
        return True
    filesystem, path = open_filesystem(f"{data.rstrip('/')}/{FOLDER_FILE}", storage)
    return bool(filesystem.exists(path))


def holds_instances(labels: str, storage: StorageSettings) -> bool:
    """Return whether `labels` is COCO JSON, or a folder of tables of `annotate`'s shape."""
    if labels.lower().endswith(".json"):
        return True
    return bool(files_below(f"{labels.rstrip('/')}/instances", (".parquet",), storage))


def holds_labels(data: str, storage: StorageSettings) -> bool:
    """Return whether `data` is COCO JSON, a folder with `instances.json`, or tables of `annotate`'s shape."""
    return holds_coco(data, storage) or holds_instances(data, storage)
