"""Settings of `segray evaluate`; flags, environment, YAML and help are generated from them."""

from typing import Any, Literal

from pydantic import Field, model_validator

from segray.address import Address
from segray.settings import JobSettings, WeightsAddress

COCO_DETECTIONS = 100
"""Default as in COCO's own figures."""


class EvaluateSettings(JobSettings):
    """Scores of predictions against labels, or of a model over data, into metrics.json.

    Label maps: PREDICTIONS is a folder of label images or an output of `segray predict`, LABELS a folder of
    label images or a manifest with the columns `images` and `masks`. Instances: PREDICTIONS is an output
    of `segray annotate` or a COCO results file, LABELS a COCO JSON file or corrected labels of annotate's
    shape. Panoptic: PREDICTIONS is an output of `segray panoptic`, LABELS another one, or COCO-panoptic JSON
    beside the folder of its PNG. A semantic model is scored with --weights over --data, as `segray train`
    takes it; an instance model over COCO JSON, or over scenes with --footprints, is run as `segray annotate`
    first. Ray is started for that, and to match instances of --ray-above images or more.
    """

    basic = (
        *("predictions", "labels", "weights", "data", "output", "split", "root", "classes", "void"),
        *("max_rejects", *JobSettings.basic[1:]),
    )
    usage = "{--predictions P {--labels L | --footprints F} | --weights W --data D} --output URL"
    examples = """examples:
  segray evaluate --predictions out/maps --labels streets/labels/test --classes road,tree --output out/scores
  segray evaluate --predictions out/labels --labels s3://bucket/instances.json --output s3://bucket/scores
  segray evaluate --weights out/people/model.pt --data out/people/splits.csv --split test --output out/scores

exit codes:
  0 done   1 failed, run again   2 bad settings   3 too many labels in no score   4 nothing to compare
  130 interrupted, run again"""

    predictions: Address | None = Field(
        None,
        description="folder of label images, output of predict, annotate or panoptic, COCO results",
    )
    labels: Address | None = Field(
        None,
        description="folder of label images, manifest (.csv, .parquet, .txt), COCO .json, corrected labels, "
        "output of panoptic",
    )
    weights: WeightsAddress | None = Field(
        None,
        description="model to score: a path, URL, registry://BUCKET/PATH#MODEL@ALIAS, "
        "or python:module:factory",
    )
    data: Address | None = Field(None, description="images and labels for it: folder, manifest or list")
    footprints: Address | None = Field(
        None, description="true outlines on scenes, as `segray train` takes them; in place of labels"
    )
    footprints_layer: str | None = Field(None, description="layer of a GeoPackage with several")
    class_column: str | None = Field(
        None, description="attribute of footprints with the class; without one all are of one class"
    )
    output: Address = Field(description="folder or bucket URL for metrics.json")
    root: Address | None = Field(
        None, description="base of the paths in a manifest or list; folder of COCO-panoptic's PNG"
    )
    split: Literal["train", "val", "test", "all"] | None = Field(
        None, description="split of a manifest, data or COCO JSON; default test of data, all of labels"
    )
    classes: list[str] | None = Field(
        None,
        description="names of the classes, from 0 up; default the model's, or background and foreground for "
        "0/255 masks",
    )
    values: Literal["auto", "indices", "binary"] = Field(
        "auto", description="values of labels: class indices, or 0 and 255"
    )
    volumes: bool = Field(
        False,
        description="predictions and labels are label volumes, NIfTI or TIFF stacks (extra `monai`)",
    )
    void: list[int] = Field([], description="label values besides 255 that belong to no class")
    colours: dict[str, int | str] = Field(
        {},
        description='for colour label images, class of each colour: {"0,0,255": "sky", "#000000": "void"}',
    )
    prediction_values: Literal["auto", "indices", "binary"] = Field(
        "auto", description="values of predicted label images"
    )
    prediction_colours: dict[str, int | str] = Field(
        {}, description="colours of predicted label images; other colours are void"
    )
    categories: Literal["auto", "name", "id"] = Field(
        "auto",
        description="match predicted categories with COCO labels by; auto: name, for COCO results id",
    )
    detections: int = Field(
        COCO_DETECTIONS, ge=1, description="maximum predicted instances per image and category that count"
    )
    group_by: str | None = Field(
        None,
        description="figures for each value of a column too: of the labels' images, or kept by annotate",
    )
    draws: int = Field(
        200,
        ge=0,
        le=100_000,
        description="bootstrap draws over images, for intervals of AP at 95 percent; 0: none",
    )
    interval_block: int | None = Field(
        None,
        ge=1,
        description="draw square blocks of so many pixels a side in place of whole images; default with "
        "footprints on fewer than 16 scenes: at least 16 blocks a scene, or each object of fewer than 32",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the draws")
    worst: int = Field(20, ge=0, description="images with the most errors to name in metrics.json")
    ray_above: int = Field(
        20_000,
        ge=1,
        description="instances: match on Ray from this number of images on, in this process below",
    )
    shard: int = Field(1_000, ge=1, description="images that are matched at a time; memory grows with it")
    score_threshold: float = Field(
        0.05, ge=0, le=1, description="of an instance model: keep instances above this score"
    )
    annotate: dict[str, Any] = Field(
        {}, description='further settings of annotate for an instance model: {"tile": 1024}'
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto, as in training: bf16 where the GPU multiplies it, else fp32"
    )
    max_pixels: int = Field(100_000_000, ge=1, description="reject larger images (height x width)")
    max_rejects: float = Field(
        0.0, ge=0, le=1, description="exit 3 when a larger share of the labels is in no score"
    )

    @model_validator(mode="after")
    def _one_task(self) -> "EvaluateSettings":
        """Require predictions and labels, or weights and data."""
        wanted: tuple[str, ...] = ("predictions", "labels")
        others: tuple[str, ...] = ("weights", "data")
        if self.weights is not None or self.data is not None:
            wanted, others = others, wanted
        elif self.footprints is not None:
            wanted, others = ("predictions",), (*others, "labels")
        problems = [f"{name} is required" for name in wanted if getattr(self, name) is None]
        given = [name for name in others if getattr(self, name) is not None]
        if given:
            problems.append(f"not {', '.join(given)} too")
        if self.footprints is None and (self.class_column or self.footprints_layer):
            raise ValueError("class_column and footprints_layer are for footprints: set footprints too")
        if self.volumes and (self.weights is not None or self.footprints is not None or self.colours):
            raise ValueError(
                "volumes: only predictions and labels of numbers are compared; `predict --volumes` first"
            )
        if problems:
            ways = "give --predictions and --labels (or --footprints), or --weights and --data"
            raise ValueError(f"{ways}: {'; '.join(problems)}")
        return self
