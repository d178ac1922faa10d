"""Settings of `segray export`: flags, environment, YAML and help come from here."""

from typing import Any, Literal

from pydantic import Field, create_model, model_validator
from pydantic_settings import CliPositionalArg

from segray.address import Address
from segray.settings import CommonSettings

Format = Literal[
    "coco",
    "yolo",
    "geojson",
    "gpkg",
    "flatgeobuf",
    "pmtiles",
    "stac",
    "masks",
    "labelstudio",
    "coco-panoptic",
]
FILE_SUFFIX = {
    "coco": ".json",
    "geojson": ".geojson",
    "gpkg": ".gpkg",
    "flatgeobuf": ".fgb",
    "pmtiles": ".pmtiles",
}
"""Formats of one file, or of one file a split or group; the others are folders."""
ON_EARTH = ("geojson", "gpkg", "flatgeobuf", "pmtiles", "stac")


class ExportOptions(CommonSettings):
    """`ExportSettings` without `as`, which is a Python keyword."""

    basic = (
        *("run", "as", "output", "classes", "min_score", "min_area", "split", "by_split", "group_by"),
        *("segmentation", "pixels", "relative_to", "prefix", "overwrite", "dry_run", *CommonSettings.basic),
    )
    usage = "RUN --as FORMAT --output PATH"
    examples = """examples:
  segray export out/labels --as coco --output out/labels.json
  segray export out/labels --as yolo --by-split --output out/yolo --min-score 0.7
  segray export s3://bucket/kampala --as gpkg --output kampala.gpkg --classes building

exit codes:
  0 done   1 failed, run again   2 bad settings, or the format cannot hold the run
  4 nothing matches the filter   130 interrupted, run again"""

    run: CliPositionalArg[list[Address]] = Field(
        default=[],
        validate_default=True,
        min_length=1,
        max_length=1,
        description="output folder or bucket URL of the run",
    )
    output: Address = Field(
        description="a file (.json, .geojson, .gpkg, .fgb, .pmtiles), or a folder for yolo, stac, masks, "
        "labelstudio, coco-panoptic and with --by-split or --group-by"
    )
    classes: list[str] = Field([], description="names of the classes to export (default: all)")
    min_score: float | None = Field(
        None, ge=0, le=1, description="minimum score; instances without a score, from a person, are kept"
    )
    min_area: int | None = Field(None, ge=1, description="minimum area of a mask in pixels")
    split: str | None = Field(None, pattern=r"\S", description="export images of this split only")
    by_split: bool = Field(False, description="one file, or one folder of labels, for each split")
    group_by: str | None = Field(
        None,
        pattern=r"\S",
        description="one file, or one folder of labels, for each value of this column of images, as region",
    )
    segmentation: Literal["rle", "polygons"] | None = Field(
        None,
        description="coco, labelstudio: how masks are written (default rle); polygons: along pixel edges, "
        "and RLE for masks of several parts or with holes",
    )
    pixels: Literal["instances", "classes"] | None = Field(
        None,
        description="masks: value of a pixel, the number of its instance or its category_id "
        "(default instances)",
    )
    relative_to: Address | None = Field(
        None,
        description="coco, coco-panoptic, labelstudio: name images by their path below this folder or URL",
    )
    prefix: str = Field("", description="and put this before it, such as /data/local-files/?d=")
    overwrite: bool = Field(False, description="replace an existing file, or an earlier export in the folder")
    dry_run: bool = Field(False, description="check everything, count what would be exported, write nothing")

    @property
    def format(self) -> Format:
        """The value of `as`."""
        found: Format = getattr(self, "as")
        return found

    @property
    def is_folder(self) -> bool:
        """Whether the output is a folder."""
        return self.by_split or self.group_by is not None or self.format not in FILE_SUFFIX

    @property
    def filters(self) -> bool:
        """Whether some instances are left out on purpose."""
        return bool(self.classes) or self.min_score is not None or self.min_area is not None

    @model_validator(mode="after")
    def _fits_the_format(self) -> "ExportOptions":
        suffix = FILE_SUFFIX.get(self.format, "")
        name = self.output.rstrip("/").rpartition("/")[2].lower()
        problems = []
        if not self.is_folder and not name.endswith(suffix):
            problems.append(f"output: {self.format} is one file, whose name ends in {suffix}")
        if self.is_folder and name.endswith((*FILE_SUFFIX.values(), ".txt", ".png")):
            problems.append("output: must be a folder here, not the name of a file")
        if self.segmentation and self.format not in ("coco", "labelstudio"):
            problems.append(f"segmentation: {self.format} does not have it")
        if self.pixels and self.format != "masks":
            problems.append(f"pixels: {self.format} does not have it")
        if self.relative_to and self.format not in ("coco", "coco-panoptic", "labelstudio"):
            problems.append(f"relative_to: {self.format} does not have it")
        if self.prefix and not self.relative_to:
            problems.append("prefix: goes with relative_to")
        if self.by_split and self.group_by:
            problems.append("group_by: not with by_split")
        if problems:
            raise ValueError("; ".join(problems))
        return self


_AS: Any = {"as": (Format, Field(description="format to write"))}
ExportSettings = create_model(
    "ExportSettings",
    __base__=ExportOptions,
    __doc__="""Write the labels of a run in the format of another program.

    RUN is a finished output of annotate, or labels of the same tables; `masks` and `stac` also take an
    output of predict, `coco-panoptic` takes one of panoptic. All annotated images are listed, also those
    without an instance; rejected images are left out and counted. The run is not changed, and images are not
    copied.
    """,
    **_AS,
)
