"""Settings of `segray predict`; flags, environment, YAML and help are generated from them."""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from segray.bulk.settings import BulkSettings
from segray.scenes.scene import Tiling
from segray.settings import WeightsAddress


class PredictSettings(BulkSettings):
    """A semantic model over a collection of images, into label maps: PNG for images, COG for scenes.

    A SOURCE is a folder (recursive), a file, a glob, a .tar/.tar.gz (WebDataset) or .zip archive, or a
    Parquet/CSV manifest with a column `uri`; on local disk, s3://, gs:// or az://. A killed run, run again
    with the same command, does only what is missing.
    """

    basic = (
        *("sources", "output", "weights", "tta", "probabilities", "polygons", "blur", "max_rejects"),
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
    probabilities: bool = Field(
        False, description="also write probabilities/<image_id>.tif, a byte a class: 255 is certain"
    )
    polygons: bool = Field(
        False, description="also write polygons/<image_id>.parquet of scenes: GeoParquet, a row a region"
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
        return replace(how, picture_pixels=self.max_pixels) if self.blur else how
