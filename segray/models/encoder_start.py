"""The start of `train --pretrained`: an encoder's weights, found once, on the driver, for every worker."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from segray.models.encoder_weights import digest_of, encoder_state
from segray.models.pretrained import origin_of


@dataclass(frozen=True)
class EncoderStart:
    """Weights that a network's encoder starts with, and what goes with them."""

    state: dict[str, Tensor]
    """Tensors by the network's names; what it lacks keeps its initial weights."""
    digest: str
    """sha256 of the weights, hex."""
    mean: tuple[float, ...]
    """Normalisation the weights were trained with, per band, pixels in 0..1."""
    std: tuple[float, ...]
    source: str
    licence: str


def pretrained_start(arch: str, build: Callable[[], nn.Module]) -> EncoderStart:
    """Return the encoder's weights of `build()`, which returns the network with pretrained weights.

    Raises SettingsError as `build` does.
    """
    state, origin = encoder_state(build()), origin_of(arch)
    return EncoderStart(state, digest_of(state), origin.mean, origin.std, origin.source, origin.licence)
