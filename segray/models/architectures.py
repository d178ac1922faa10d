"""Architectures by name, and the settings of semantic ones; neither torch nor their libraries are loaded.

unet              our own (`segray.models.unet`), random weights only
FAMILY:ENCODER    unet, unetplusplus, deeplabv3, deeplabv3plus, pspnet or fpn of
                  segmentation-models-pytorch, with its encoders (resnet34, efficientnet-b0, ...) or
                  timm's with tu- in front (tu-hrnet_w18)
fcn:ENCODER       torchvision's FCN, with resnet50 or resnet101
compact-maskrcnn, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2    instance models

What the libraries offer stands in `smp_names.json`, which `python -m segray.models.smp_networks` writes: to
import them takes 5 s. With other versions of them than it was made from, they are asked themselves where the
table does not know a name.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from segray.errors import SettingsError
from segray.models.unet_settings import UNetSettings

INSTANCE_ARCHITECTURES = ("compact-maskrcnn", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
SMP_CLASSES = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "pspnet": "PSPNet",
    "fpn": "FPN",
}
"""Our name of a family to its class in segmentation-models-pytorch."""
FAMILIES = (*SMP_CLASSES, "fcn")
FCN_ENCODERS = ("resnet50", "resnet101")
SMP_NAMES = Path(__file__).with_name("smp_names.json")
_RESIDUAL = ("resnet", "resnext")
"""How the names of encoders begin whose blocks stand in `layer1` to `layer4`."""


def check_architecture(arch: str) -> None:
    """Raise SettingsError, one line, for a name that is none."""
    if arch not in INSTANCE_ARCHITECTURES:
        parsed(arch)


def complete_settings(arch: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of the network as plain values, for the model file: the given ones over the defaults.

    "unet" has those of `UNetSettings`, the families of segmentation-models-pytorch the keyword arguments of
    their classes (`encoder_depth`, `decoder_channels`, ...), "fcn" none.
    Raises SettingsError for an unknown name, encoder or setting, and for one that is not plain.
    """
    family, encoder = parsed(arch)
    known = _defaults(family, encoder)
    for name, value in settings.items():
        if name not in known:
            raise SettingsError(f"{arch} has no setting {name}{_near(name, known)}")
        if not _is_plain(value):
            raise SettingsError(f"{arch}: {name} must be numbers, text, or lists or tables of them")
    values = {**known, **settings}
    return values if encoder else asdict(UNetSettings(**values))


def check_recomputing(arch: str) -> None:
    """Raise SettingsError for an architecture that `recompute_blocks` does not know."""
    encoder = arch.partition(":")[2]
    if encoder and not encoder.startswith(_RESIDUAL):
        raise SettingsError(
            f"activation_checkpointing: {arch} cannot do it; unet can, and FAMILY:ENCODER with an encoder "
            "whose name begins with resnet or resnext"
        )


def parsed(arch: str) -> tuple[str, str]:
    """Return family and encoder, both known; our own U-Net has no encoder. Raises SettingsError, one line."""
    if arch == "unet":
        return arch, ""
    family, colon, encoder = arch.partition(":")
    if family not in FAMILIES:
        known = FAMILIES if colon else ("unet", *INSTANCE_ARCHITECTURES, *FAMILIES)
        raise SettingsError(
            f"unknown architecture {arch!r}{_near(family, known)}; known: unet, FAMILY:ENCODER with "
            f"{', '.join(FAMILIES)}; {', '.join(INSTANCE_ARCHITECTURES)}"
        )
    if not encoder:
        raise SettingsError(f"architecture {arch!r} needs an encoder, such as {family}:resnet50")
    encoders = FCN_ENCODERS if family == "fcn" else _encoders(encoder)
    if encoder not in encoders:
        raise SettingsError(f"{family} has no encoder {encoder!r}{_near(encoder, encoders)}")
    return family, encoder


def _encoders(asked: str) -> list[str]:
    """All of segmentation-models-pytorch; with `asked` itself if its name without the weights' is one."""
    names = _smp_names()["encoders"]
    bare = asked.partition(".")[0]
    if bare not in names and not _is_current():
        names = _asked_smp()["encoders"]
    return [*names, asked] if asked.startswith("tu-") and bare in names else list(names)


@cache
def _smp_names() -> dict[str, Any]:
    """`encoders`, those of timm with tu- in front; `families` to their settings; `versions`."""
    names: dict[str, Any] = json.loads(SMP_NAMES.read_text(encoding="utf-8"))
    return names


@cache
def _is_current() -> bool:
    """Whether the libraries are those that the table was made from."""
    return all(version(library) == known for library, known in _smp_names()["versions"].items())


@cache
def _asked_smp() -> dict[str, Any]:
    from segray.models.smp_networks import offered

    return offered()


def _defaults(family: str, encoder: str) -> dict[str, Any]:
    if not encoder:
        return {each.name: each.default for each in fields(UNetSettings)}
    names = _smp_names() if _is_current() else _asked_smp()
    return {} if family == "fcn" else dict(names["families"][family])


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
