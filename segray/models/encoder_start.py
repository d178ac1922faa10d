"""The start of an encoder: pretrained weights or given ones, found once, on the driver, for every worker."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from segray.errors import SettingsError
from segray.log import say
from segray.models.checks import unwrapped, weights_in
from segray.models.encoder_weights import Fitted, digest_of, encoder_state, fit_encoder, moments_for
from segray.models.modelfile import is_model_file, model_of, plain_contents
from segray.models.pretrained import Origin, origin_of
from segray.models.weights import name_of, pinned_spec, read_weights
from segray.storage import StorageSettings

_LEAST = 0.5
"""Share of an encoder's tensors that weights must fill: fewer are those of another network."""
_SHOWN = 3


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


def pretrained_start(arch: str, build: Callable[[], nn.Module], bands: int = 3) -> EncoderStart:
    """Return the encoder's weights of `build()`, which returns the network with pretrained weights.

    Raises SettingsError as `build` does.
    """
    state, origin = encoder_state(build()), origin_of(arch)
    return _start(state, origin, bands)


def given_start(
    arch: str, spec: str, storage: StorageSettings, build: Callable[[], nn.Module], bands: int = 3
) -> EncoderStart:
    """Return weights of a file for the encoder of `build()`, the network of `arch` with random weights.

    The file holds a state dict of an encoder or of a network with it, or is a segray model; of a state dict
    the normalisation is taken to be that of the encoder's published weights. Tells which weights are missing
    and which are not used. Raises SettingsError as `load_weights` does, and where most do not fit.
    """
    spec = pinned_spec(spec, storage)
    name = name_of(spec)
    weights, origin = _read(f"encoder_weights {name}", read_weights(spec, storage), origin_of(arch))
    fitted = fit_encoder(build(), weights)
    _tell(f"encoder_weights {name}", arch, fitted, weights)
    return _start(fitted.state, origin, bands)


def _start(state: dict[str, Tensor], origin: Origin, bands: int) -> EncoderStart:
    mean, std = moments_for(origin.mean, bands), moments_for(origin.std, bands)
    return EncoderStart(state, digest_of(state), mean, std, origin.source, origin.licence)


def _read(where: str, data: bytes, published: Origin) -> tuple[Mapping[str, Tensor], Origin]:
    """Return the weights in a file's bytes, and their origin."""
    digest = hashlib.sha256(data).hexdigest()
    about = f"{where.partition(' ')[2]}, sha256 {digest[:16]}"
    content = _safetensors(where, data) or plain_contents(where, data)
    if is_model_file(content):
        model = model_of(where, content, digest)
        card = model.card
        source = f"{about} ({card.source})" if card.source else about
        return model.module.state_dict(), Origin(source, card.licence, card.image_mean, card.image_std)
    if not isinstance(content, dict):
        raise SettingsError(f"{where}: holds a {type(content).__name__}, not a state dict")
    tensors = {name: each for name, each in unwrapped(content).items() if isinstance(each, Tensor)}
    return weights_in(where, tensors), Origin(about, "", published.mean, published.std)


def _safetensors(where: str, data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a file of safetensors; empty: it is another kind of file.

    By its content, as an address may end in a query: the length of its JSON (8 bytes), then the JSON.
    """
    if data[8:9] != b"{" and not where.endswith(".safetensors"):
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(data))
    except SafetensorError as error:
        raise SettingsError(f"{where}: damaged, or not a file of safetensors ({error})") from error


def _tell(where: str, arch: str, fitted: Fitted, weights: Mapping[str, Tensor]) -> None:
    """Print what did not fit; raise SettingsError where most did not."""
    wanted = len(fitted.state) + len(fitted.missing)
    fits = f"{len(fitted.state)} of {wanted} tensors of the encoder of {arch}"
    if wanted == 0:
        raise SettingsError(f"{where}: {arch} has no encoder of its own; use start_from for a whole network")
    if len(fitted.state) < _LEAST * wanted:
        raise SettingsError(
            f"{where}: is for another network, it fits {fits}; the encoder has {_few(fitted.missing)}; "
            f"the file {_few(list(weights))}"
        )
    missing = f"; missing, and random: {_few(fitted.missing)}" if fitted.missing else ""
    unused = f"; not used: {_few(fitted.unused)}" if fitted.unused else ""
    say(f"{where}: {fits}{missing}{unused}", "warning" if fitted.missing else "info")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:80] for name in names[:_SHOWN]) + more if names else "none"
