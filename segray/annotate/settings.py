"""Settings of `segray annotate`; flags, environment, YAML and help are generated from them."""

from pydantic import BaseModel, ConfigDict, Field

from segray.address import Address
from segray.bulk.settings import BulkSettings
from segray.settings import JobSettings, WeightsAddress


class SamSettings(BaseModel):
    """How SAM (`--weights sam2-tiny`) finds objects by itself: its paper's defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    points_per_side: int = Field(
        32, ge=1, le=1024, description="points along each side of the grid it is asked at"
    )
    predicted_iou: float = Field(0.88, ge=0, le=1, description="keep masks whose predicted IoU is above this")
    stability: float = Field(0.95, ge=0, le=1, description="keep masks whose stability score is above this")
    stability_offset: float = Field(1.0, gt=0, description="change of the threshold of the stability score")
    nms_iou: float = Field(
        0.7, ge=0, le=1, description="of two masks whose boxes overlap more, keep the better"
    )


class AnnotateSettings(BulkSettings):
    """Mask R-CNN over a collection of images, into Parquet instance annotations.

    A SOURCE is a folder (recursive), a file, a glob, a .tar/.tar.gz (WebDataset) or .zip archive, or a
    Parquet/CSV manifest with a column `uri`; on local disk, s3://, gs:// or az://. A killed run, run again
    with the same command, does only what is missing.
    """

    basic = (*("sources", "output", "weights", "score_threshold", "max_rejects"), *JobSettings.basic[1:])
    examples = """examples:
  segray annotate photos/ --weights nuclei-small --output out/
  segray annotate s3://bucket/shards/ --output s3://bucket/labels --weights coco-v2 --actors 8
  segray annotate photos/ --weights coco-v2 --refine sam2-tiny --output out/
  segray annotate list.parquet more.tar --config annotate.yaml --max-rejects 0.01

exit codes:
  0 done   1 failed, run again to continue   2 bad settings   3 too many rejects   4 nothing to do
  130 interrupted, run again to continue"""

    weights: WeightsAddress = Field(
        "coco-v2",
        description="model: a name (see `segray models`), a path or URL, registry://BUCKET/PATH#MODEL@ALIAS, "
        "or python:module:factory",
    )
    score_threshold: float = Field(0.5, ge=0, le=1, description="keep instances above this score")
    proposals: int | None = Field(
        None, ge=1, description="maximum proposals per image of a Mask R-CNN; default the model's own"
    )
    refine: WeightsAddress | None = Field(
        None, description="SAM that turns the boxes found into masks: a name such as sam2-tiny, or a folder"
    )
    boxes: Address | None = Field(
        None, description="COCO file whose boxes `refine` turns into masks, in place of a model's"
    )
    sam: SamSettings = SamSettings()
