"""The table of architectures: names for `--arch`, builders, settings, and what `segray models` prints.

Plain values; neither torch nor the libraries that build a network are imported before one is built.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pkgutil import resolve_name
from typing import Any, Literal

from segray.errors import SettingsError
from segray.models import smp_names

Task = Literal["instance", "semantic", "volume"]
USES: dict[Task, str] = {
    "instance": "finds instances, use it with `segray annotate`",
    "semantic": "gives every pixel a class, use it with `segray predict`",
    "volume": "gives every voxel a class, use it with `segray predict --volumes`",
}
_ENCODER = ":ENCODER"
_RESIDUAL = ("resnet", "resnext")
"""Prefixes of encoders whose blocks are in `layer1` to `layer4`."""


@dataclass(frozen=True, slots=True)
class Library:
    """The library that provides the code of a network."""

    name: str
    licence: str
    """Licence of the code; pretrained weights have their own."""
    pretrained: str
    """Source of the weights that `--pretrained` starts with; empty: there are none."""


_TIMM_WEIGHTS = "mostly of ImageNet (packages of the extra `pretrained`, else huggingface.co)"
OWN = Library("segray", "Apache-2.0", "")
SMP = Library("segmentation-models-pytorch", "MIT", f"the encoder's, {_TIMM_WEIGHTS}")
OWN_ON_RESNET = Library("segray", "Apache-2.0", "the ResNet's, of ImageNet (download.pytorch.org)")
OWN_ON_VGG = Library("segray", "Apache-2.0", "the VGG16's, of ImageNet (download.pytorch.org)")
TIMM = Library("timm", "Apache-2.0", "the backbone's, of ImageNet (huggingface.co)")
TORCHVISION = Library("torchvision", "BSD-3-Clause", "the ResNet's, of ImageNet (download.pytorch.org)")
TRANSFORMERS = Library("transformers", "Apache-2.0", "")
MONAI = Library("monai", "Apache-2.0", "")
OWN_ON_TIMM = Library("segray on timm", "Apache-2.0", f"the encoder's, {_TIMM_WEIGHTS}")
ON_TIMM = Library("torchvision on timm", "BSD-3-Clause, Apache-2.0", f"the encoder's, {_TIMM_WEIGHTS}")


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row of the table."""

    name: str
    """Value of `--arch`; FAMILY:ENCODER where there are several encoders."""
    task: Task
    library: Library
    parameters: int
    """Parameters of `arch` with its default settings, three bands and one class besides background."""
    build: str
    """`module:function` in this package. A semantic one takes (arch, bands, outputs, settings, pretrained),
    see `build_semantic`; one for volumes (outputs, settings); an instance one (classes without background,
    settings, pretrained), before them the encoder, where there are several."""
    settings: str
    """`module:class` of its settings, a dataclass of plain values; empty: see `_defaults`."""
    origin: str
    """Publication."""
    encoders: tuple[str, ...] = ()
    """Known encoders; empty: those of segmentation-models-pytorch, of an instance network those of timm."""
    example: str = "resnet50"
    """The encoder of `arch`, where there are several."""
    pretrained_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings whose defaults differ with pretrained weights."""

    @property
    def family(self) -> str:
        """Return the name in front of the encoder."""
        return self.name.removesuffix(_ENCODER)

    @property
    def arch(self) -> str:
        """Return the name, or an example of FAMILY:ENCODER."""
        return self.name.replace(_ENCODER, f":{self.example}")


def _smp(family: str, parameters: int, origin: str, example: str = "resnet50") -> Architecture:
    name, build = family + _ENCODER, "smp_networks:build_smp"
    return Architecture(name, "semantic", SMP, parameters, build, "", origin, example=example)


_UNET = "Ronneberger, Fischer and Brox 2015, https://arxiv.org/abs/1505.04597"
_MASK2FORMER = "Cheng et al. 2022, https://arxiv.org/abs/2112.01527, on a Swin-T"
_MASK_RCNN = "He et al. 2017, https://arxiv.org/abs/1703.06870"
ARCHITECTURES = (
    Architecture(
        "unet", "semantic", OWN, 31_043_521, "unet:build_unet", "unet:UNetSettings", _UNET
    ),
    _smp("unet", 32_521_105, _UNET),
    _smp("unetplusplus", 48_985_745, "Zhou et al. 2018, https://arxiv.org/abs/1807.10165"),
    _smp("deeplabv3", 39_633_729, "Chen et al. 2017, https://arxiv.org/abs/1706.05587"),
    _smp("deeplabv3plus", 26_677_585, "Chen et al. 2018, https://arxiv.org/abs/1802.02611"),
    _smp("pspnet", 24_300_993, "Zhao et al. 2017, https://arxiv.org/abs/1612.01105"),
    _smp("fpn", 26_116_033, "Lin et al. 2017, https://arxiv.org/abs/1612.03144"),
    _smp("linknet", 31_177_777, "Chaurasia and Culurciello 2017, https://arxiv.org/abs/1707.03718"),
    _smp("manet", 147_439_993, "Fan et al. 2020, https://doi.org/10.1109/ACCESS.2020.3025372"),
    _smp("upernet", 37_284_673, "Xiao et al. 2018, https://arxiv.org/abs/1807.10221"),
    _smp("segformer", 3_714_401, "Xie et al. 2021, https://arxiv.org/abs/2105.15203", "mit_b0"),
    _smp("dpt", 121_778_153, "Ranftl, Bochkovskiy and Koltun 2021, https://arxiv.org/abs/2103.13413",
         "tu-vit_base_patch16_224"),
    Architecture(
        "fcn:ENCODER", "semantic", TORCHVISION, 32_946_753, "fcn:build_fcn", "",
        "Long, Shelhamer and Darrell 2015, https://arxiv.org/abs/1411.4038", ("resnet50", "resnet101"),
    ),
    Architecture(
        "segnet", "semantic", OWN_ON_VGG, 29_443_585, "segnet:build_segnet", "segnet:SegNetSettings",
        "Badrinarayanan, Kendall and Cipolla 2015, https://arxiv.org/abs/1511.00561",
    ),
    Architecture(
        "attention_unet", "semantic", OWN, 33_109_700, "attention_unet:build_attention_unet",
        "attention_unet:AttentionUNetSettings", "Oktay et al. 2018, https://arxiv.org/abs/1804.03999",
    ),
    Architecture(
        "transunet", "semantic", OWN_ON_RESNET, 101_924_369, "transunet:build_transunet",
        "transunet:TransUNetSettings", "Chen et al. 2021, https://arxiv.org/abs/2102.04306",
    ),
    Architecture(
        "hrnet:ENCODER", "semantic", TIMM, 9_636_241, "hrnet:build_hrnet", "",
        "Wang et al. 2019, https://arxiv.org/abs/1908.07919",
        ("w18", "w30", "w32", "w40", "w44", "w48", "w64", "w18_small", "w18_small_v2"), example="w18",
    ),
    Architecture(
        "compact-maskrcnn", "instance", OWN, 4_157_339, "maskrcnn:build_compact_maskrcnn",
        "maskrcnn:CompactSettings", f"narrow, for CPUs; {_MASK_RCNN}",
    ),
    Architecture(
        "maskrcnn_resnet50_fpn", "instance", TORCHVISION, 43_975_515, "resnetmaskrcnn:build_resnet50",
        "resnetmaskrcnn:ResNetSettings", _MASK_RCNN,
        pretrained_settings={"norm": "frozen", "trainable_layers": 3},
    ),
    Architecture(
        "maskrcnn_resnet50_fpn_v2", "instance", TORCHVISION, 45_880_411, "resnetmaskrcnn:build_resnet50_v2",
        "resnetmaskrcnn:ResNetSettings", "Li et al. 2021, https://arxiv.org/abs/2111.11429",
    ),
    Architecture(
        "maskrcnn_resnet101_fpn", "instance", TORCHVISION, 62_967_643, "resnetmaskrcnn:build_resnet101",
        "resnetmaskrcnn:ResNetSettings", _MASK_RCNN,
        pretrained_settings={"norm": "frozen", "trainable_layers": 3},
    ),
    Architecture(
        "maskrcnn:ENCODER", "instance", ON_TIMM, 22_570_267, "encoder_maskrcnn:build_encoder_maskrcnn",
        "encoder_maskrcnn:MaskRCNNSettings", _MASK_RCNN, example="efficientnet-lite0",
    ),
    Architecture(
        "solov2:ENCODER", "instance", OWN_ON_TIMM, 46_228_801, "solov2:build_solov2", "solov2:SOLOv2Settings",
        "Wang et al. 2020, https://arxiv.org/abs/2003.10152",
    ),
    Architecture(
        "mask2former", "instance", TRANSFORMERS, 47_402_876, "mask2former:build_mask2former_instances",
        "mask2former:Mask2FormerSettings", _MASK2FORMER,
    ),
    Architecture(
        "mask2former-semantic", "semantic", TRANSFORMERS, 47_403_133, "mask2former:build_mask2former_maps",
        "mask2former:Mask2FormerSettings", _MASK2FORMER,
    ),
    Architecture(
        "unet3d", "volume", MONAI, 19_215_118, "volume_networks:build_unet3d",
        "volume_networks:UNet3DSettings",
        "Cicek et al. 2016, https://arxiv.org/abs/1606.06650, with the residual units of Kerfoot et al. 2018",
    ),
    Architecture(
        "swinunetr", "volume", MONAI, 62_186_659, "volume_networks:build_swinunetr",
        "volume_networks:SwinUNETRSettings", "Hatamizadeh et al. 2022, https://arxiv.org/abs/2201.01266",
    ),
)  # fmt: skip
_PLAIN = {row.name: row for row in ARCHITECTURES if row.name == row.arch}
_OWN = tuple(row.name for row in _PLAIN.values() if row.task == "semantic" and row.library.name == OWN.name)
_FAMILIES = {row.family: row for row in ARCHITECTURES if row.name != row.arch}


def _choices(task: Task) -> str:
    """Return the text of `--help` about the values of `--arch` for a task."""
    plain = ", ".join(row.name for row in _PLAIN.values() if row.task == task)
    families = [row for row in _FAMILIES.values() if row.task == task]
    if not families:
        return plain
    libraries = dict[str, list[str]]()
    for row in families:
        libraries.setdefault(row.library.name, []).append(row.family)
    names = " or ".join(f"{', '.join(each)} ({library})" for library, each in libraries.items())
    return f"{plain}, or FAMILY:ENCODER of {names}, such as {families[0].arch}"


CHOICES = f"{_choices('semantic')}; instances: {_choices('instance')}; with `volumes`: {_choices('volume')}"


def part_of(row_part: str) -> Any:
    """Return the object that `Architecture.build` or `Architecture.settings` names, after importing it."""
    return resolve_name(f"segray.models.{row_part}")


def architecture(arch: str) -> Architecture:
    """Return the row of a value of `--arch`. Raises SettingsError, one line, for unknown ones."""
    family, encoder = parsed(arch)
    return _FAMILIES[family] if encoder else _PLAIN[family]


def task_of(arch: str) -> Task:
    """Return the task of a value of `--arch`. Raises SettingsError, one line, for unknown ones."""
    return architecture(arch).task


def parsed(arch: str) -> tuple[str, str]:
    """Return family and encoder of a value of `--arch`; the encoder is empty where there is no choice.

    Raises SettingsError, one line, for unknown ones.
    """
    if arch in _PLAIN:
        return arch, ""
    family, colon, encoder = arch.partition(":")
    if family not in _FAMILIES:
        if family in _PLAIN:
            raise SettingsError(f"architecture {arch!r}: {family} takes no encoder; write {family}")
        if family.casefold().startswith("sam"):
            raise SettingsError(
                f"unknown architecture {arch!r}: SAM is not trained here, use it with `segray annotate`"
            )
        known = _FAMILIES if colon else (*_PLAIN, *_FAMILIES)
        raise SettingsError(
            f"unknown architecture {arch!r}{_near(family, known)}; known: {', '.join(_PLAIN)}, "
            f"FAMILY:ENCODER with {', '.join(_FAMILIES)}"
        )
    if not encoder:
        raise SettingsError(f"architecture {arch!r} needs an encoder, such as {_FAMILIES[family].arch}")
    encoders = encoders_of(_FAMILIES[family], encoder)
    if encoder not in encoders:
        raise SettingsError(f"{family} has no encoder {encoder!r}{_near(encoder, encoders)}")
    return family, encoder


def encoders_of(row: Architecture, asked: str = "") -> Sequence[str]:
    """Return the names of a family's encoders; `asked`: see `smp_names.encoders`."""
    if row.encoders:
        return row.encoders
    return smp_names.encoders(asked) if row.library is SMP else smp_names.timm_encoders(asked)


def complete_settings(arch: str, settings: Mapping[str, Any], *, pretrained: bool = False) -> dict[str, Any]:
    """Return every setting of the network as plain values, for the model file: the given ones over defaults.

    They are the fields of its dataclass (`UNetSettings`, `CompactSettings`, `ResNetSettings`), or the keyword
    arguments of a family of segmentation-models-pytorch (`encoder_depth`, `decoder_channels`, ...); "fcn" has
    none. pretrained: use the defaults of a network that starts with pretrained weights. Raises SettingsError
    for an unknown name, encoder or setting, and for a value that is not plain.
    """
    row = architecture(arch)
    known = _defaults(row)
    problems = [
        f"{arch}: {name} must be numbers, text, or lists or tables of them"
        if name in known
        else f"{arch} has no setting {name}{_near(name, known)}"
        for name, value in settings.items()
        if name not in known or not _is_plain(value)
    ]
    if problems:
        raise SettingsError(*problems)
    values = {**known, **(row.pretrained_settings if pretrained else {}), **settings}
    if not row.settings:
        return values
    complete: dict[str, Any] = json.loads(json.dumps(asdict(part_of(row.settings)(**values))))
    return complete  # with lists, as a model file returns them


def check_recomputing(arch: str) -> None:
    """Raise SettingsError for an architecture that `recompute_blocks` does not support."""
    if arch not in _OWN and not arch.partition(":")[2].startswith(_RESIDUAL):
        raise SettingsError(
            f"activation_checkpointing: {arch} is not supported; {', '.join(_OWN)} are, and FAMILY:ENCODER "
            "with an encoder whose name begins with resnet or resnext"
        )


def _defaults(row: Architecture) -> dict[str, Any]:
    if row.settings:
        return {each.name: each.default for each in fields(part_of(row.settings))}
    return smp_names.settings_of(row.family) if row.library is SMP else {}


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.casefold(), list(dict.fromkeys(known)), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
