"""The table of named weights, which `segray models` prints. Imports nothing heavy."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from segray.models import smp_names
from segray.models.architectures import ARCHITECTURES, Architecture, Task, encoders_of
from segray.models.pretrained import PACKAGES, packaged_file
from segray.models.sam_names import SAM_WEIGHTS, SamWeights


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A named set of weights for `--weights`."""

    name: str
    task: Task
    arch: str
    """Its name in `ARCHITECTURES`; of SAM, which cannot be trained here, transformers' type of the model."""
    parameters: int
    """Trainable and frozen parameters."""
    categories: int
    """Classes without background."""
    licence: str
    """Licence of the weights."""
    origin: str
    """Training data of the weights, and their published quality."""
    bundled: bool
    """Whether it comes with segray; others are downloaded once, to torch's cache (TORCH_HOME), or
    SAM's to Hugging Face's (HF_HOME)."""


def _sam(weights: SamWeights) -> NamedModel:
    origin = f"{weights.origin} (huggingface.co/{weights.repository})"
    about = weights.name, "instance", weights.kind, weights.parameters, 1, weights.licence, origin
    return NamedModel(*about, bundled=False)  # type: ignore[arg-type]


NAMED_MODELS = (
    NamedModel(
        name="coco-v2",
        task="instance",
        arch="maskrcnn_resnet50_fpn_v2",
        parameters=46_359_409,
        categories=80,
        licence="BSD-3-Clause (torchvision); trained on COCO images of various licences",
        origin="torchvision MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1: COCO train2017, mask AP 41.8",
        bundled=False,
    ),
    NamedModel(
        name="coco-v1",
        task="instance",
        arch="maskrcnn_resnet50_fpn",
        parameters=44_401_393,
        categories=80,
        licence="BSD-3-Clause (torchvision); trained on COCO images of various licences",
        origin="torchvision MaskRCNN_ResNet50_FPN_Weights.COCO_V1: COCO train2017, mask AP 34.6",
        bundled=False,
    ),
    NamedModel(
        name="nuclei-small",
        task="instance",
        arch="maskrcnn:efficientnet-lite0",
        parameters=3_876_955,
        categories=1,
        licence="Apache-2.0",
        origin="segray, from EfficientNet-Lite0 (ImageNet-1k) on cell nuclei in microscope images (BBBC038, "
        "CC0): test mask AP 55.6",
        bundled=True,
    ),
    NamedModel(
        name="buildings-small",
        task="instance",
        arch="compact-maskrcnn",
        parameters=4_157_339,
        categories=1,
        licence="CC-BY-4.0; ODbL-1.0 where the weights count as a derived database",
        origin="segray, from scratch on one aerial scene of Kampala (imagery OpenAerialMap contributors, CC "
        "BY 4.0; outlines (c) OpenStreetMap contributors, ODbL 1.0): test mask AP 55.5, of 12 buildings only",
        bundled=True,
    ),
    *map(_sam, SAM_WEIGHTS.values()),
)


def bundled() -> list[str]:
    """Return the names of the models that come with segray."""
    return [model.name for model in NAMED_MODELS if model.bundled]


def named_model(name: str) -> NamedModel | None:
    """Return the model of that name, or None."""
    return next((model for model in NAMED_MODELS if model.name == name), None)


def show(as_json: bool) -> int:
    """Print what can be loaded and what can be trained, for people or as JSON; return the exit code, 0.

    JSON is a list of objects; `kind` distinguishes `weights`, for `--weights`, `encoder`, whose pretrained
    weights are a package, and `architecture`, for `--arch`.
    """
    if as_json:
        weights = [{"kind": "weights", **asdict(model)} for model in NAMED_MODELS]
        encoders = [_encoder(name) for name in PACKAGES]
        print(json.dumps([*weights, *encoders, *map(_architecture, ARCHITECTURES)], indent=2))
        return 0
    print("weights, for --weights and --start-from")
    for model in NAMED_MODELS:
        where = "bundled" if model.bundled else "downloaded once"
        size = f"{model.parameters / 1e6:.1f} M parameters, {model.categories} categories"
        about = f"{model.task}, {model.arch}, {size}, {where}"
        _print(model.name, about, model.origin, f"licence: {model.licence}")
    print("also: the path or URL of a segray model file or of a state dict, a model of a registry")
    print(
        "(registry://BUCKET/PATH#MODEL@ALIAS, on disk registry:PATH#MODEL@ALIAS), and python:module:factory"
    )
    print("\nencoders whose ImageNet weights are a package (extra `pretrained`), for --arch and --pretrained")
    for name, package in PACKAGES.items():
        where = "installed" if packaged_file(name) else "not installed"
        _print(
            name,
            f"encoder, {package.parameters / 1e6:.1f} M parameters, {package.encoder} of timm, {where}",
            f"{package.name}: {package.origin}",
            f"licence: {package.licence}",
        )
    print("\narchitectures, for train --arch; ENCODER: one of those in --json, or tu-NAME for one of timm;")
    print("of an instance network NAME, as timm has it")
    for row in ARCHITECTURES:
        size = f"{row.parameters / 1e6:.1f} M parameters" + f" as {row.arch}" * (row.arch != row.name)
        about = f"{row.library.name} ({row.library.licence}): {row.origin}"
        _print(row.name, f"{row.task}, {size}", about, f"pretrained: {row.library.pretrained or 'no'}")
    return 0


def _print(name: str, *lines: str) -> None:
    print("\n".join(f"{title:26}{line}" for title, line in zip((name, "", ""), lines, strict=True)))


def _encoder(name: str) -> dict[str, Any]:
    """Return a row with the same keys as weights; `bundled` is whether its package is installed."""
    package = PACKAGES[name]
    return {
        "kind": "encoder", "name": name, "task": None, "arch": package.encoder,
        "parameters": package.parameters, "categories": None, "licence": package.licence,
        "origin": f"{package.name}: {package.origin}", "bundled": packaged_file(name) is not None,
    }  # fmt: skip


def _architecture(row: Architecture) -> dict[str, Any]:
    """Return a row with the same keys as weights; `encoders` lacks those of timm, more than a thousand."""
    offered: Sequence[str] = ()
    if row.name != row.arch:
        of_timm = row.task == "instance" and not row.encoders
        offered = tuple(PACKAGES) if of_timm else encoders_of(row)
    return {
        "kind": "architecture", "name": row.name, "task": row.task, "arch": row.arch,
        "parameters": row.parameters, "categories": None, "licence": row.library.licence,
        "origin": row.origin, "bundled": None, "library": row.library.name,
        "pretrained": row.library.pretrained,
        "encoders": [each for each in offered if not each.startswith(smp_names.TIMM)],
    }  # fmt: skip
