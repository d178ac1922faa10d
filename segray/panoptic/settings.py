"""Settings of `segray panoptic`: flags, environment, YAML and help come from here."""

from pydantic import Field

from segray.address import Address
from segray.settings import JobSettings


class PanopticSettings(JobSettings):
    """Fuse instances of annotate and label maps of predict into panoptic segmentation.

    Both runs are finished outputs of the same files: images are matched by image_id, one that is in one run
    only is rejected. Things by falling score: each keeps the pixels that no better one took, and is dropped
    where less than min_visible of its mask is left; what a person drew comes first. Stuff, the other classes
    of the map, fills the rest; pixels of neither are void. A killed run, run again with the same command,
    does only what is missing. Runs in this process; Ray is not needed.
    """

    basic = (
        *("instances", "maps", "output", "things", "void", "min_visible", "min_stuff_area", "min_score"),
        *("max_rejects", *JobSettings.basic[1:]),
    )
    usage = "--instances RUN --maps RUN --output URL"
    examples = """examples:
  segray panoptic --instances out/labels --maps out/maps --output out/panoptic
  segray panoptic --instances s3://bucket/labels --maps s3://bucket/maps --output s3://bucket/panoptic \\
    --things car,person --void background --min-stuff-area 4096

exit codes:
  0 done   1 failed, run again to continue   2 bad settings   3 too many rejects   4 no image in both runs
  130 interrupted, run again to continue"""

    instances: Address = Field(description="output of annotate, or labels of its tables: the things")
    maps: Address = Field(description="output of predict: the stuff")
    output: Address = Field(description="folder or bucket URL of the output")
    things: list[str] = Field(
        [],
        description="classes of the maps that are things, so never stuff; those named like a category of "
        "the instances always are",
    )
    void: list[str] = Field([], description="classes of the maps that are nothing, such as background")
    min_visible: float = Field(
        0.5, ge=0, le=1, description="drop a thing where a smaller share of its mask is left"
    )
    min_stuff_area: int = Field(
        0, ge=0, description="stuff of fewer pixels in an image becomes void; 4096 is usual for COCO"
    )
    min_score: float | None = Field(
        None, ge=0, le=1, description="minimum score of a thing; those without a score, from a person, stay"
    )
    stuff_ids_from: int = Field(
        1000, ge=1, description="category_id of a stuff class: this plus its index in the maps"
    )
    max_rejects: float = Field(0.0, ge=0, le=1, description="exit 3 when a larger share is rejected")
    retry_rejected: bool = Field(False, description="try images again that an earlier run rejected")
    threads: int | None = Field(None, ge=1, description="images fused at a time; default one a CPU")
    commit_every_s: float = Field(10.0, ge=0, description="seconds between commits of results")
