"""The plain table of models that have a name; what `segray models` prints. Imports nothing heavy."""

import json
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class NamedModel:
    """One name that `--weights` takes."""

    name: str
    task: Literal["instance", "semantic"]
    arch: str
    """The function of `torchvision.models.detection` that builds it, or our own architecture's name."""
    parameters: int
    """Trainable and frozen ones together."""
    categories: int
    """Classes without background."""
    licence: str
    """Of the weights."""
    origin: str
    """What the weights were trained on, and their published quality."""
    bundled: bool
    """Comes with segray; others are downloaded once, to torch's cache (TORCH_HOME)."""


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
        arch="compact-maskrcnn",
        parameters=4_157_339,
        categories=1,
        licence="CC0-1.0",
        origin="segray, from scratch on cell nuclei in microscope images (BBBC038, CC0): test mask AP 48.0",
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
)


def bundled() -> list[str]:
    """Names of the models that come with segray."""
    return [model.name for model in NAMED_MODELS if model.bundled]


def show(as_json: bool) -> int:
    """Print the table for people or as JSON (a list of objects); the exit code, 0."""
    if as_json:
        print(json.dumps([asdict(model) for model in NAMED_MODELS], indent=2))
        return 0
    for model in NAMED_MODELS:
        where = "bundled" if model.bundled else "downloaded once"
        size = f"{model.parameters / 1e6:.1f} M parameters, {model.categories} categories"
        print(f"{model.name:17}{model.task}, {model.arch}, {size}, {where}")
        print(f"{'':17}{model.origin}")
        print(f"{'':17}licence: {model.licence}")
    print("also: the path or URL of a segray model file or of a state dict, a model of a registry")
    print(
        "(registry://BUCKET/PATH#MODEL@ALIAS, on disk registry:PATH#MODEL@ALIAS), and python:module:factory"
    )
    return 0


def named_model(name: str) -> NamedModel | None:
    """The model of that name, or None."""
    return next((model for model in NAMED_MODELS if model.name == name), None)
