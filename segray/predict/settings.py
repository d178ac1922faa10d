"""Settings of `segray predict`; flags, environment, YAML and help are generated from them."""

from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segray.bulk.settings import BulkSettings
from segray.scenes.scene import Tiling
from segray.settings import WeightsAddress

NOT_FOR_VOLUMES = (
    "tta", "sliding_window", "superpixels", "smallest_area", "close_holes", "probabilities", "polygons",
    "blur", "bands", "resolution", "scaling",
)  # fmt: skip
"""Settings of images and scenes alone."""


class CrfSettings(BaseModel):
    """A dense CRF after the network, by mean field; the names are those of its paper, see `predict.crf`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    iterations: int = Field(
        0, ge=0, le=100, description="dense CRF: rounds of mean field, usually 5; 0: no CRF"
    )
    w1: float = Field(10.0, ge=0, description="weight of the appearance kernel: near and of similar colour")
    theta_alpha: float = Field(80.0, ge=1, description="its standard deviation in position, pixels")
    theta_beta: float = Field(7.0, ge=1, description="its standard deviation in colour, of 0 to 255")
    w2: float = Field(3.0, ge=0, description="weight of the smoothness kernel: near")
    theta_gamma: float = Field(3.0, ge=0.5, description="its standard deviation in position, pixels")


class PredictSettings(BulkSettings):
    """A semantic model over a collection of images, into label maps: PNG for images, COG for scenes.

    A SOURCE is a folder (recursive), a file, a glob, a .tar/.tar.gz (WebDataset) or .zip archive, or a
    Parquet/CSV manifest with a column `uri`; on local disk, s3://, gs:// or az://. A killed run, run again
    with the same command, does only what is missing.
    """

    basic = (
        *("sources", "output", "weights", "tta", "sliding_window", "crf.iterations", "superpixels"),
        *("smallest_area", "close_holes", "probabilities", "polygons", "blur", "max_rejects", "volumes"),
        *BulkSettings.basic[1:],
    )
    examples = """examples:
  segray predict photos/ --weights out/people/model.pt --output out/maps
  segray predict s3://bucket/scenes --weights s3://bucket/model/model.pt --output s3://bucket/maps --tta flip
  segray predict scene.tif --weights model.pt --output out/roads --probabilities --polygons
  segray predict photos/ --weights faces.pt --output out/private --blur face,plate --no-location

exit codes:
  0 done   1 failed, run again to continue   2 bad settings   3 too many rejects   4 nothing to do
  130 interrupted, run again to continue"""

    weights: WeightsAddress = Field(
        description="model.pt of `segray train`, a path or URL, registry://BUCKET/PATH#MODEL@ALIAS, or "
        "python:module:factory"
    )
    tta: Literal["none", "flip", "d4"] = Field(
        "none",
        description="mean over image and mirror image, or over all 8 flips and rotations",
    )
    sliding_window: int | None = Field(
        None,
        ge=32,
        description="side in pixels of windows, overlapping by half, that the model sees of each image "
        "and of each tile of a scene; default all at once",
    )
    crf: CrfSettings = CrfSettings()
    superpixels: int | None = Field(
        None,
        ge=2,
        description="side in pixels of SLIC superpixels, each of which gets the mean of its probabilities "
        "(extra `superpixels`)",
    )
    compactness: float = Field(
        10.0, gt=0, description="of superpixels: 1 follows every edge of colour, 100 makes them square"
    )
    smallest_area: int = Field(
        0, ge=0, description="regions of fewer pixels take the class of their largest neighbour"
    )
    close_holes: int = Field(
        0,
        ge=0,
        description="holes of at most this many pixels take the class around them; not in `background`",
    )
    probabilities: bool = Field(
        False, description="also write probabilities/<image_id>.tif, a byte a class: 255 is certain"
    )
    polygons: bool = Field(
        False, description="also write polygons/<image_id>.parquet of scenes: GeoParquet, a row a region"
    )
    volumes: bool = Field(
        False,
        description="sources are volumes, NIfTI or TIFF stacks, for a model of `train --volumes`: write "
        "labels/<image_id>.nii.gz or .tif (extra `monai`)",
    )
    blur: list[str] = Field(
        [],
        description="classes to hide, `face,plate`: also write blurred/<image_id>.jpg or .png, a copy of "
        "each image without metadata in which they are blurred",
    )
    blur_margin: float = Field(
        0.2, ge=0, le=2, description="blur this much around a region, as a share of its longer side"
    )
    tile_above: int = Field(
        2_000_000,
        ge=1,
        description="images with more pixels (height x width) are processed in windows, too; with a model of "
        "whole images (fit: resize) never",
    )
    overlap: int = Field(256, ge=0, description="pixels that neighbouring windows share and blend")

    @property
    def tiling(self) -> Tiling:
        """Return how scenes are cut; with `blur` no image is: see `predict.windowed`."""
        how = super().tiling
        if self.volumes:
            return replace(how, volumes=True)
        return replace(how, picture_pixels=self.max_pixels) if self.blur else how

    @model_validator(mode="after")
    def _volumes_or_images(self) -> "PredictSettings":
        fields = type(self).model_fields
        wrong = [name for name in NOT_FOR_VOLUMES if getattr(self, name) != fields[name].get_default()]
        if self.volumes and (wrong or self.crf.iterations):
            raise ValueError(f"{', '.join(wrong or ['crf'])}: not with volumes")
        return self
