"""Small model files, each another one."""

from pathlib import Path

import torch

from segray.models.architectures import complete_settings
from segray.models.modelfile import SemanticCard, build_model, model_bytes

NAMES = ("background", "road")


def write_model(path: Path, seed: int = 0) -> bytes:
    """A U-Net of a few kilobytes; returns the file's bytes."""
    settings = complete_settings("unet", {"width": 4, "depth": 2})
    card = SemanticCard("unet", settings, 1, NAMES, (0.4,) * 3, (0.3,) * 3, 64, "crop", licence="CC0-1.0")
    torch.manual_seed(seed)
    data = model_bytes(card, build_model(card).state_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data
