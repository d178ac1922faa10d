"""What `segray train` does otherwise for an instance model: what is checked, read, trained and kept."""

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segray.data.coco_listing import AnnotatedPair, CocoListing
from segray.data.dataset import Data
from segray.errors import SettingsError
from segray.log import say
from segray.storage import split_protocol
from segray.train.settings import TrainSettings
from segray.train.warm_start import check_frozen, has_frozen_norms

if TYPE_CHECKING:
    from torch import Tensor

    from segray.data.pair_reader import CocoReading
    from segray.models.start import Start
    from segray.train.trainer import Run

_SEMANTIC = (
    "classes", "values", "void", "loss", "loss_settings", "class_weights", "fit", "oversample",
    "activation_checkpointing", "compile",
)  # fmt: skip
"""Settings of semantic training alone."""
_COLOURED = 2 / 255
"""Pictures whose bands differ by more in their means are coloured."""
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InstanceDesign:
    """What is trained, as far as it is known before the pictures are."""

    categories: dict[int, str]
    arch_settings: dict[str, Any]
    start: "Start | None" = None
    """What training begins with."""
    best = "ap"
    counted = "instances"
    """What `Data.counts` holds."""

    @property
    def rules(self) -> str:
        """What decides how labels are read."""
        return f"COCO categories {sorted(self.categories)}"

    def resolved(self) -> dict[str, Any]:
        """For the identity of a run."""
        categories = {str(number): name for number, name in self.categories.items()}
        start = {"start": self.start.digest} if self.start else {}
        return {"classes": categories, "arch_settings": self.arch_settings, **start}

    def reading(self, settings: TrainSettings) -> "CocoReading":
        """How pictures are read."""
        from segray.data.pair_reader import CocoReading

        return CocoReading(self.categories, settings.max_pixels, settings.storage)


def design_instances(
    settings: TrainSettings, listing: CocoListing, start: "Start | None" = None
) -> InstanceDesign:
    """Raises SettingsError for settings that do not fit an instance model, all at once."""
    from segray.models.imports import import_torchvision

    import_torchvision()
    from segray.models.modelfile import ARCHITECTURES
    from segray.train.build import check_constants
    from segray.train.transforms.strength import APPLIED_TO_INSTANCES

    defaults = TrainSettings.model_fields
    problems = [
        f"{name}: is for semantic models, {settings.arch} is an instance model"
        for name in _SEMANTIC
        if getattr(settings, name) != defaults[name].default
    ]
    given = settings.augment.model_dump(exclude={"preset", *APPLIED_TO_INSTANCES}, exclude_none=True)
    problems += [f"augment.{name}: is for semantic models" for name in given]
    if settings.pretrained and settings.arch == "compact-maskrcnn":
        problems.append("pretrained: there are no weights for compact-maskrcnn")
    _, kind = ARCHITECTURES[settings.arch]
    known = {field.name for field in fields(kind)}
    if unknown := sorted(settings.arch_settings.keys() - known):
        problems.append(
            f"arch_settings: {settings.arch} has no {', '.join(unknown)}; {', '.join(sorted(known))}"
        )
    try:
        check_constants(settings)
    except SettingsError as error:
        problems += error.lines
    if problems:
        raise SettingsError(*problems)
    usual = {}
    if (settings.pretrained or has_frozen_norms(start)) and settings.arch == "maskrcnn_resnet50_fpn":
        usual = {"norm": "frozen", "trainable_layers": 3}
    complete = json.loads(
        json.dumps(asdict(kind(**usual | settings.arch_settings)))
    )  # lists, as they come back
    design = InstanceDesign(listing.categories, complete, start)
    _build(settings, design)
    if start is not None or settings.freeze:
        _begin(settings, design)  # raises, before anything is read
    say(listing.told())
    return design


def _build(settings: TrainSettings, design: InstanceDesign) -> None:
    """Raises SettingsError for settings that the architecture does not take."""
    import torch

    from segray.models.modelfile import build_model

    with torch.device("meta"):
        build_model(_card(settings, design, (0.5,) * 3, (0.5,) * 3))


def _begin(settings: TrainSettings, design: InstanceDesign) -> "dict[str, Tensor] | None":
    """The weights that training begins with, fitted to the categories."""
    from dataclasses import replace

    from segray.models.modelfile import build_model
    from segray.models.start import fitted

    card = _card(settings, design, (0.5,) * 3, (0.5,) * 3)
    check_frozen(build_model(card), settings.freeze)
    if design.start is None:
        return None
    names = [name for _, name in sorted(design.categories.items())]

    def build(outputs: int) -> Any:
        return build_model(replace(card, categories=dict.fromkeys(range(1, outputs), "")))

    return fitted(design.start, ["\0background", *names], build, len(names) + 1)


def _card(
    settings: TrainSettings, design: InstanceDesign, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Any:
    from segray.models.modelfile import ModelCard

    return ModelCard(
        settings.arch,
        design.arch_settings,
        design.categories,
        mean,
        deviation,
        settings.min_size,
        settings.max_size,
    )


def run_of_instances(
    settings: TrainSettings, design: InstanceDesign, data: Data, device: str, precision: str
) -> "Run":
    """What every worker is given."""
    import ray

    from segray.train.build import optimizer_of, schedule_of
    from segray.train.collate_instances import InstanceFraming
    from segray.train.loader import Feed
    from segray.train.sampler import Order
    from segray.train.tasks.instance import InstanceTask
    from segray.train.trainer import Run
    from segray.train.transforms.instances import CropSettings

    sizes = data.sizes
    mean, deviation = data.mean, data.deviation
    if settings.pretrained:
        mean, deviation = IMAGENET_MEAN, IMAGENET_DEVIATION
    if design.start is not None and design.start.mean:
        mean, deviation = design.start.mean, design.start.std
    task = InstanceTask(
        _card(settings, design, mean, deviation),
        optimizer_of(settings),
        schedule_of(settings),
        settings.epochs,
        -(-sizes["train"] // settings.batch_size),
        settings.seed,
        precision,
        settings.clip,
        settings.ema,
        settings.pretrained,
        settings.accumulate,
        None if design.start is None else _begin(settings, design),
        tuple(settings.freeze),
        settings.freeze_epochs,
    )
    categories = tuple(sorted(design.categories))
    repeats = ray.put(kind_repeats(data)) if settings.balance_kinds else None
    feed = Feed(
        design.reading(settings),
        InstanceFraming(
            CropSettings(settings.size, settings.min_size), settings.augment, categories, settings.seed
        ),
        Order(settings.batch_size, settings.seed, sizes["train"], sizes["val"], repeats),
        settings.loaders,
        settings.ray.stall_timeout_s,
    )
    return Run(task, feed, device, settings.output, settings.storage, settings.checkpoint_every_s)


def kind_repeats(data: Data) -> NDArray[np.float64]:
    """How often each training picture is shown: a kind with n of them comes as the square root of n does.

    The kind is height, width and whether there is colour: a cheap name for what took the picture.
    """
    means = np.stack(data.trained["sums"].to_pylist()) / data.trained["pixels"].to_numpy()[:, None]
    coloured = np.ptp(means, axis=1) > _COLOURED
    annotations = data.table["annotations"].slice(0, data.sizes["train"]).to_pylist()
    sizes = np.array([json.loads(each)["size"] for each in annotations])
    kinds = np.column_stack([sizes, coloured])
    _, number, counts = np.unique(kinds, axis=0, return_inverse=True, return_counts=True)
    weights = 1 / np.sqrt(counts[number.ravel()])
    return np.asarray(weights / weights.mean(), np.float64)


def splits_json(design: InstanceDesign, data: Data) -> bytes:
    """A COCO file that `--data` reads back, and `segray evaluate --labels` with `--split`.

    Local paths are absolute; URLs come without credentials and query strings.
    """
    images, annotations = [], []
    for number, (pair, split) in enumerate(zip(data.pairs, data.splits, strict=True), start=1):
        assert isinstance(pair, AnnotatedPair)
        local = split_protocol(pair.image.uri)[0] == "file"
        content = json.loads(pair.annotations)
        height, width = content["size"]
        name = pair.image.address if local else pair.image.uri
        images.append({"id": number, "file_name": name, "height": height, "width": width, "split": split})
        annotations += [{**each, "image_id": number} for each in content["annotations"]]
    categories = [{"id": number, "name": name} for number, name in sorted(design.categories.items())]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()
