"""Weights of an encoder alone, fitted to a network: whatever prefixes their names have, for any bands."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ENCODER = re.compile(r"(network\.)?(encoder|backbone)\.(?!fpn\.)")
_PREFIX = re.compile(r"((module|_orig_mod|model|network|encoder|backbone|body)\.)*")
_FLAT = re.compile(r"_(\d+)(?=\.)")
_BATCHES = "num_batches_tracked"


@dataclass(frozen=True)
class Fitted:
    """Weights for the encoder of a network."""

    state: dict[str, Tensor]
    """Tensors by the network's names, of its shapes."""
    missing: list[str]
    """The encoder's names without weights."""
    unused: list[str]
    """Names of the weights, as they were given, that the encoder does not have."""


def in_encoder(name: str) -> bool:
    """Return whether a network's parameter belongs to its encoder (backbone), a feature pyramid not."""
    return _ENCODER.match(name) is not None


def has_encoder(network: nn.Module) -> bool:
    """Return whether a network has an encoder."""
    return any(in_encoder(name) for name, _ in network.named_parameters())


def encoder_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network's encoder by the network's names, on the CPU."""
    return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items() if in_encoder(name)}


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names and values, hex."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def fit_encoder(network: nn.Module, weights: Mapping[str, Tensor]) -> Fitted:
    """Fit weights to a network's encoder: by name, after the prefix of both by which most of them match.

    The first convolution may have another number of bands (`for_bands`). Tensors get the network's data
    types: the same numbers give the same state and digest, whatever the weights were stored in.
    """
    own = encoder_state(network)
    first = next((name for name, tensor in own.items() if tensor.ndim == 4), "")
    known = {_nested(name): name for name in weights}

    def fit(theirs: str, ours: str) -> dict[str, str]:
        """Return name in the network -> name of the weight."""
        pairs = {
            name: known.get(_nested(theirs + name.removeprefix(ours)))
            for name in own
            if name.startswith(ours)
        }
        return {
            name: found
            for name, found in pairs.items()
            if found is not None and _fits(own[name], weights[found], is_first=name == first)
        }

    candidates = [fit(theirs, ours) for ours in _prefixes(own) for theirs in _prefixes(weights)]
    names = max(candidates, key=len, default={})
    state = {name: weights[found].to(own[name].dtype) for name, found in names.items()}
    if first in state:
        state[first] = for_bands(state[first], own[first].shape[1])
    missing = [name for name in own if name not in state and not name.endswith(_BATCHES)]
    used = set(names.values())
    return Fitted(state, missing, [name for name in weights if name not in used])


def for_bands(weight: Tensor, bands: int) -> Tensor:
    """Return the first convolution's weight (out, k, h, w) for `bands` in place of its k bands.

    Bands that it knows keep their weights; a further one, as near infrared after red, green and blue, gets
    their mean. With fewer bands than k all get the mean, as none is known to be red. All are scaled by
    k / bands, so that the response keeps its scale: the same where all bands are equal.
    """
    known = weight.shape[1]
    if bands == known:
        return weight
    mean = weight.mean(1, keepdim=True)
    kept = [weight] if bands > known else []
    further = bands - known if bands > known else bands
    return torch.cat([*kept, mean.expand(-1, further, -1, -1)], 1) * (known / bands)


def moments_for(moments: tuple[float, ...], bands: int) -> tuple[float, ...]:
    """Return the mean or the deviation of each of `bands`, as `for_bands` shares out the weights: further
    bands, and all where there are fewer, have the mean of those that are known."""
    mean = sum(moments) / len(moments)
    kept = moments if bands >= len(moments) else ()
    return (*kept, *[mean] * (bands - len(kept)))


def _fits(ours: Tensor, theirs: Tensor, *, is_first: bool) -> bool:
    if is_first and theirs.ndim == ours.ndim:
        return ours.shape[:1] == theirs.shape[:1] and ours.shape[2:] == theirs.shape[2:]
    return ours.shape == theirs.shape


def _nested(name: str) -> str:
    """Return `stages.0.` for `stages_0.`, as timm names the stages of an encoder without its classifier."""
    return _FLAT.sub(r".\1", name)


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return every run of usual prefixes that names begin with, "" included, the shortest first."""
    found = {""}
    for name in names:
        match = _PREFIX.match(name)
        parts = (match.group() if match else "").split(".")[:-1]
        found |= {".".join(parts[:number]) + "." for number in range(1, len(parts) + 1)}
    return sorted(found, key=lambda each: (len(each), each))
