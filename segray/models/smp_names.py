"""Names from segmentation-models-pytorch and timm: families, their settings, and encoders.

They are kept in `smp_names.json`, which `python -m segray.models.smp_names` writes: importing the libraries
takes 5 s. If other versions of them are installed, they are imported and queried instead.
"""

import inspect
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from segray.models.pretrained import PACKAGES

SMP_CLASSES = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "pspnet": "PSPNet",
    "fpn": "FPN",
    "linknet": "Linknet",
    "manet": "MAnet",
    "upernet": "UPerNet",
    "segformer": "Segformer",
    "dpt": "DPT",
}
"""Our name of a family -> its class in segmentation-models-pytorch."""
SMP_NAMES = Path(__file__).with_name("smp_names.json")
TIMM = "tu-"
"""Prefix of the name of an encoder of timm."""
_NOT_SETTINGS = (
    "encoder_name", "encoder_weights", "in_channels", "classes",  # have names of their own here
    "activation", "aux_params",  # would change what the network returns
    "kwargs",
)  # fmt: skip


def encoders(asked: str = "") -> list[str]:
    """Return the names of all encoders, those of `PACKAGES` first, those of timm with the prefix tu-.

    `asked` is among them if it is an encoder of timm with the name of its weights (tu-NAME.WEIGHTS).
    """
    names = _known()["encoders"]
    bare = asked.partition(".")[0]
    if bare not in (*PACKAGES, *names) and not _is_current():
        names = _offered()["encoders"]
    more = [asked] if asked.startswith(TIMM) and bare in names else []
    return [*PACKAGES, *names, *more]


def library_name(encoder: str) -> str:
    """Return the library's name of an encoder: those of `PACKAGES` are timm's there.

    Of the two that the library has, `tu-tf_efficientnet_lite0` and `timm-tf_efficientnet_lite0`, it is to
    remove the latter. The former has no convolution of 1280 channels on which no logit depends (0.4 M
    parameters), its map of stride 2 comes after a block more, and timm pads as in training.
    """
    return TIMM + PACKAGES[encoder].encoder if encoder in PACKAGES else encoder


def timm_encoders(asked: str = "") -> list[str]:
    """Return the names of timm's encoders as they are there, those of `PACKAGES` first; asked: see above."""
    names = [name.removeprefix(TIMM) for name in encoders(TIMM + asked) if name.startswith(TIMM)]
    return [*PACKAGES, *names]


def settings_of(family: str) -> dict[str, Any]:
    """Return the settings of a family and their defaults: keyword arguments of its class."""
    names = _known() if _is_current() else _offered()
    return dict(names["families"][family])


def offered() -> dict[str, Any]:
    """Return the contents of `smp_names.json`: `versions`, `encoders` and the settings of `families`."""
    import segmentation_models_pytorch as smp
    import timm

    def defaults(name: str) -> dict[str, Any]:
        parameters = inspect.signature(getattr(smp, name)).parameters.values()
        return {each.name: each.default for each in parameters if each.name not in _NOT_SETTINGS}

    return {
        "versions": {each: version(each) for each in ("segmentation-models-pytorch", "timm")},
        "families": {family: defaults(name) for family, name in SMP_CLASSES.items()},
        "encoders": [*smp.encoders.get_encoder_names(), *(f"{TIMM}{each}" for each in timm.list_models())],
    }


@cache
def _known() -> dict[str, Any]:
    names: dict[str, Any] = json.loads(SMP_NAMES.read_text(encoding="utf-8"))
    return names


@cache
def _is_current() -> bool:
    """Return whether the installed libraries have the versions of the table."""
    return all(version(library) == known for library, known in _known()["versions"].items())


_offered = cache(offered)


if __name__ == "__main__":
    SMP_NAMES.write_text(json.dumps(offered(), indent=1) + "\n", encoding="utf-8")
