"""A run's identity: the settings and data that determine a model. An output accepts one identity only."""

import json
from typing import Any

from segray.errors import SettingsError
from segray.output.folder import Output
from segray.output.names import MODEL, PLAN
from segray.run import check_same
from segray.train.settings import INSTANCE_ONLY, TrainSettings

CHECKPOINT, BEFORE = "checkpoints/last.pt", "checkpoints/before.pt"
"""Files of the output."""
FORMAT = 1
UNDECIDING = frozenset(
    {
        *("config", "print_config", "dry_run", "storage", "ray"),
        *(
            "data",
            "root",
            "footprints",
            "split_areas",
            "output",
            "start_from",
            "encoder_weights",
        ),  # the content of the data decides, not its location
        *("device", "workers", "min_workers", "loaders", "max_failures", "checkpoint_every_s", "max_rejects"),
        "epochs",  # a run may be extended
    }
)
"""Settings that may change when a run continues; every other one is part of its identity."""
YOUNGER: dict[str, Any] = {
    **{"class_weights": "auto", "group_look_alikes": "loose", "footprints_layer": None, "min_score": None},
    **{"freeze": [], "freeze_epochs": None, "window_overlap": None, "encoder_lr_factor": 1.0},
}
"""Values of settings that older runs did not have, so that those runs can continue."""


def identity_of(settings: TrainSettings, resolved: dict[str, Any]) -> dict[str, Any]:
    """Return what weights depend on besides the data, by dotted names.

    resolved: the resolved values of settings that are `auto`.
    """
    others = set() if settings.is_instance else set(INSTANCE_ONLY)
    plain = settings.model_dump(mode="json", exclude=set(UNDECIDING | others)) | resolved
    for name, default in YOUNGER.items():
        if plain.get(name) == default:
            plain.pop(name, None)
    kept: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **_flat(plain)}))  # as JSON returns it
    return kept


def _flat(plain: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[before + name] = value
    return found


def holds(store: Output, name: str) -> bool:
    """Return whether the output has this file; the file is not read."""
    return any(path.lstrip("/") == name for path in store.files(name.rpartition("/")[0]))


def check_settings(store: Output, identity: dict[str, Any], output: str) -> bool:
    """Return whether a run has begun in the output.

    Raises SettingsError with every difference when it was begun with other settings, and when there is a
    model without a plan.
    """
    there = store.read_json(PLAN)
    if not isinstance(there, dict) or not isinstance(there.get("settings"), dict):
        for name in (MODEL, CHECKPOINT, BEFORE):
            if holds(store, name):
                raise SettingsError(
                    f"output: {output} holds {name}, but its {PLAN} is gone or damaged; use another --output"
                )
        return False
    kept = there["settings"]
    check_same(kept, identity, {**kept, **identity}, output, "begun")
    return True


def check_data(store: Output, summary: str, output: str) -> None:
    """Raise SettingsError when the output was made from other data; summary: identifies the data."""
    there = store.read_json(PLAN)["data"]
    if there != summary:
        raise SettingsError(
            f"output: {output} was begun with other data; use another --output, or the same data:",
            f"  data: {there} there, {summary} now",
        )


def write_plan(store: Output, identity: dict[str, Any], summary: str) -> None:
    """Write the run's identity to the output, before anything is trained."""
    store.write_json(PLAN, {"settings": identity, "data": summary})
