"""Record in the registry which version a run used; `segray registry show` lists these runs."""

from collections.abc import Mapping
from typing import Any

from segray.errors import SegrayError
from segray.log import say
from segray.registry.address import is_registry, parse
from segray.registry.registry import Registry
from segray.storage import StorageSettings, canonical_uri


def note_run(weights: str, output: str, record: Mapping[str, Any], storage: StorageSettings) -> None:
    """Record with the version that a run used it; do nothing for other weights.

    weights: pinned. A read-only registry only causes a warning: the run has its own record.
    """
    if not is_registry(weights):
        return
    address = parse(weights)
    run = {"output": canonical_uri(output)}
    run |= {name: record[name] for name in ("verb", "finished_at", "counts") if name in record}
    try:
        Registry(address.url, storage).note_run(address.model, address.which, run)
    except (SegrayError, OSError) as error:
        say(f"this run is not recorded in the registry: {error}", "warning")
