"""Settings of `segray compare`: flags, environment, YAML and help come from here."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from segray.address import Address
from segray.evaluate.settings import COCO_DETECTIONS
from segray.settings import JobSettings, WeightsAddress


class CompareSettings(JobSettings):
    """Compare models on the same labelled images: scores, parameters, FLOPs, speed, memory, panels.

    All models are of one task: semantic ones over label maps, as `segray train` takes them, instance ones
    over COCO JSON or labels of annotate's shape. The first model is the reference: every other one is given
    with its difference to it, with an interval by the bootstrap over images. An image that one model cannot
    do is in no model's score. Each model is measured in processes of its own, in turn. A killed run, run
    again with the same command, does only what is missing.
    """

    basic = (
        *("data", "weights", "names", "output", "split", "root", "classes", "rounds", "batch_size"),
        *("input_size", "threads", "panels", "retry_rejected", "max_rejects", *JobSettings.basic[1:]),
    )
    usage = "--data D --weights A,B,... --output URL"
    examples = """examples:
  segray compare --data out/a/splits.csv --weights out/a/model.pt,out/b/model.pt --output out/compared
  segray compare --data nuclei/ --weights nuclei-small,registry://bucket#nuclei@best \\
    --output s3://bucket/compared

exit codes:
  0 done   1 failed, run again to continue   2 bad settings   3 too many images in no score
  4 nothing to compare   130 interrupted, run again to continue"""

    data: Address = Field(
        description="images and labels: folder, manifest or list; COCO .json, or labels of annotate's shape"
    )
    weights: list[WeightsAddress] = Field(
        min_length=1,
        description="models, as for evaluate: names, paths, URLs, registry://, python:module:factory; commas "
        "between them, or repeatable; the first is the reference",
    )
    names: list[str] = Field(
        [], description="names of the models in the table; default the ends of their addresses that differ"
    )
    output: Address = Field(description="folder or bucket URL of table, figures and panels")
    split: Literal["train", "val", "test", "all"] = Field("test", description="split of the data")
    root: Address | None = Field(None, description="base of the paths in a manifest, list or COCO JSON")
    classes: list[str] | None = Field(
        None, description="names of the label maps' classes, from 0 up; default those of the models"
    )
    values: Literal["auto", "indices", "binary"] = Field(
        "auto", description="values of label maps: class indices, or 0 and 255"
    )
    void: list[int] = Field([], description="label values besides 255 that belong to no class")
    colours: dict[str, int | str] = Field(
        {}, description='for colour label images, class of each colour: {"0,0,255": "sky"}'
    )
    pixels: Literal["auto", "model", "image"] = Field(
        "auto",
        description="where label maps are compared: at the size a model was trained on, as evaluate does, or "
        "at the image's own; auto: the model's where all have the same, else the image's",
    )
    detections: int = Field(
        COCO_DETECTIONS, ge=1, description="maximum predicted instances per image and category that count"
    )
    score_threshold: float = Field(
        0.05, ge=0, le=1, description="of instance models: keep instances above this score"
    )
    annotate: dict[str, Any] = Field(
        {}, description='further settings of annotate for instance models: {"tile": 1024}'
    )
    draws: int = Field(
        1_000, ge=0, le=100_000, description="bootstrap draws over images, for 95 percent intervals; 0: none"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the draws, and of the panels taken at random")
    rounds: int = Field(
        3, ge=0, description="times that each model's speed and memory are measured, in turn; 0: not at all"
    )
    round_s: float = Field(3.0, gt=0, description="seconds that a round times, after the warm-up")
    warm_up: int = Field(2, ge=1, description="batches before a round's time is taken")
    batch_size: int | None = Field(
        None, ge=1, description="images of a batch while speed is measured; default 1 on a CPU, else 8"
    )
    input_size: Annotated[str, Field(pattern=r"^[1-9]\d*x[1-9]\d*$")] | None = Field(
        None,
        description="WIDTHxHEIGHT at which speed and FLOPs are measured; default the data's most frequent "
        "size, or the size a model resizes to",
    )
    threads: int | None = Field(None, ge=1, description="threads of a model on a CPU; default one a core")
    panels: int = Field(6, ge=0, description="images to draw on which the models' scores differ most")
    random_panels: int = Field(3, ge=0, description="images to draw that are taken at random")
    columns: int = Field(4, ge=1, description="panels side by side before a new row begins")
    panel_side: int = Field(320, ge=32, le=4096, description="longer side of a panel, in pixels")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the models run")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="as in evaluate: of label maps bf16 on a GPU, of instances also on a CPU with it"
    )
    max_pixels: int = Field(100_000_000, ge=1, description="reject larger images (height x width)")
    retry_rejected: bool = Field(False, description="try images again that an earlier run could not score")
    max_rejects: float = Field(
        0.0, ge=0, le=1, description="exit 3 when a larger share of the labels is in no score"
    )

    @model_validator(mode="after")
    def _named_apart(self) -> "CompareSettings":
        """Require a name for each model, and no name twice."""
        problems = []
        if self.names and len(self.names) != len(self.weights):
            problems.append(f"names: {len(self.names)} for {len(self.weights)} weights; give one for each")
        if len({*self.names}) < len(self.names):
            problems.append("names: one is given twice")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def size(self) -> tuple[int, int] | None:
        """Return height and width of the measured input, where they are given."""
        if self.input_size is None:
            return None
        width, height = (int(each) for each in self.input_size.split("x"))
        return height, width
