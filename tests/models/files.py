"""Model files for tests."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from segray.models.modelfile import Card, model_bytes


def save_model_file(path: Path, card: Card, state_dict: Mapping[str, Tensor], **how: bool) -> None:
    """Write what training writes."""
    path.write_bytes(model_bytes(card, state_dict, **how))
