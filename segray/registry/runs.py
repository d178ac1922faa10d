"""Runs tell the registry which version they used; `segray registry show` lists them."""

from collections.abc import Mapping
from typing import Any

from segray.errors import SegrayError
from segray.log import say
from segray.registry.address import is_registry, parse
from segray.registry.registry import Registry
from segray.storage import StorageSettings, canonical_uri


def note_run(weights: str, output: str, record: Mapping[str, Any], storage: StorageSettings) -> None:
    """Keep with the version that a run used it; nothing for other weights.

    weights: pinned. A registry that may only be read costs a warning: the run itself has its record.
    """
    if not is_registry(weights):
        return
    address = parse(weights)
    run = {"output": canonical_uri(output)}
    run |= {name: record[name] for name in ("verb", "finished_at", "counts") if name in record}
    try:
        Registry(address.url, storage).note_run(address.model, address.which, run)
    except (SegrayError, OSError) as error:
        say(f"the registry does not know of this run: {error}", "warning")
