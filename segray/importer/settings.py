"""Settings of `segray import`: flags, environment, YAML and help come from here."""

from typing import Any, Literal

from pydantic import Field, create_model, model_validator
from pydantic_settings import CliPositionalArg

from segray.address import Address
from segray.settings import CommonSettings

Format = Literal["coco", "yolo", "cvat", "labelstudio", "gpkg", "geojson", "masks"]
ON_EARTH = ("gpkg", "geojson")
FOLDERS = ("yolo", "masks")
"""Formats of several files, in a folder."""


class ImportOptions(CommonSettings):
    """`ImportSettings` without `as`, which is a Python keyword."""

    basic = (
        *("file", "as", "run", "images", "output", "layer", "empty_images", "max_pixels", "max_rejects"),
        *("dry_run", *CommonSettings.basic),
    )
    usage = "FILE --as FORMAT [--run RUN | --images FOLDER] --output URL"
    examples = """examples:
  segray import labels.json --as coco --run out/labels --output out/corrected
  segray import out/yolo --as yolo --images photos/ --output out/corrected
  segray import kampala.gpkg --as gpkg --run s3://bucket/kampala --output s3://bucket/corrected

exit codes:
  0 done   1 failed, run again   2 bad settings, or the file cannot be read
  3 more annotations or images were rejected than --max-rejects allows   130 interrupted, run again"""

    file: CliPositionalArg[list[Address]] = Field(
        default=[],
        validate_default=True,
        min_length=1,
        max_length=1,
        description="file of corrected labels; a folder for yolo and masks",
    )
    run: Address | None = Field(
        None, description="the run that was corrected: its images are meant, and changes are counted"
    )
    images: Address | None = Field(
        None, description="without --run: folder or bucket URL of the images that the file names"
    )
    output: Address = Field(description="folder or bucket URL of the new labels")
    layer: str | None = Field(None, description="gpkg: name of the layer, if there are several")
    empty_images: bool = Field(
        False,
        description="gpkg, geojson: images of the run without an outline in the file were looked at, too",
    )
    max_pixels: int = Field(100_000_000, ge=1, description="masks: reject larger ones (height x width)")
    max_rejects: float = Field(
        0.0, ge=0, le=1, description="exit 3 when a larger share of annotations and images was rejected"
    )
    dry_run: bool = Field(False, description="read and compare everything, write nothing")

    @property
    def format(self) -> Format:
        """The value of `as`."""
        found: Format = getattr(self, "as")
        return found

    @model_validator(mode="after")
    def _fits_the_format(self) -> "ImportOptions":
        problems = []
        if self.run is not None and self.images is not None:
            problems.append("images: only without run, whose images are meant")
        if self.format in ON_EARTH and self.run is None:
            problems.append(f"run: {self.format} needs it: the run knows where the pixels of its scenes lie")
        if self.layer is not None and self.format != "gpkg":
            problems.append(f"layer: {self.format} does not have it")
        if self.empty_images and self.format not in ON_EARTH:
            problems.append(f"empty_images: {self.format} names its images itself")
        if problems:
            raise ValueError("; ".join(problems))
        return self


_AS: Any = {"as": (Format, Field(description="format to read"))}
ImportSettings = create_model(
    "ImportSettings",
    __base__=ImportOptions,
    __doc__="""Read corrected labels of another program into the tables of annotate, for train and evaluate.

    All instances in the output have no score: a person looked at them. Images that the file does not name are
    not in the output. With --run, what was changed, added and removed is counted. Masks of classes become
    label maps and a manifest.
    """,
    **_AS,
)
