"""Training state on disk: everything to go on exactly, written so that a kill leaves the old or the new."""

import os
from pathlib import Path
from typing import Any

import torch

from segray.errors import SettingsError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write plain types and tensors to `path`, atomically and flushed to the disk."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state, or None if there is none yet; no code is loaded from the file.

    Raises SettingsError for a file that is no checkpoint of ours.
    """
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or "step" not in state:
        raise SettingsError(f"{path}: not a checkpoint of this training")
    return state
