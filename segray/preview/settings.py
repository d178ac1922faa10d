"""Settings of `segray preview`: flags, environment, YAML and help come from here."""

from pydantic import Field
from pydantic_settings import CliPositionalArg

from segray.address import Address
from segray.settings import CommonSettings


class PreviewSettings(CommonSettings):
    """Look at a run in a browser: pictures with outlines or label maps, figures, reasons of rejects.

    RUN is a finished output of annotate, predict, train, evaluate, compare or retrain. The pages open from
    disk, without a server, and request nothing from the internet. Pictures are read again from the sources;
    one that is gone costs that picture. Of two runs of annotate or predict, the images on which they differ
    most are shown side by side.
    """

    basic = ("run", "output", "images", "side", *CommonSettings.basic)
    usage = "RUN [RUN] --output DIR"
    examples = """examples:
  segray preview out/labels --output out/page
  segray preview s3://bucket/labels --output out/page --images 500
  segray preview out/old out/new --output out/difference

exit codes:
  0 done   1 failed, run again   2 bad settings, or no run   4 the run is empty   130 interrupted"""

    run: CliPositionalArg[list[Address]] = Field(
        default=[],
        validate_default=True,
        min_length=1,
        max_length=2,
        description="output folder or bucket URL of a run; a second one is compared with it",
    )
    output: Address = Field(
        description="local folder for the pages; an earlier preview in it is replaced, nothing else is"
    )
    images: int = Field(
        200, ge=1, le=5_000, description="maximum number of images shown, a stable sample of the run"
    )
    side: int = Field(1_280, ge=128, le=8_192, description="longest side of a picture in the pages, pixels")
    max_pixels: int = Field(100_000_000, ge=1, description="larger images are not drawn; scenes are")
