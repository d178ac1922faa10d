"""Settings of `segray drift`: flags, environment, YAML and help come from here."""

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import CliPositionalArg

from segray.address import Address, absolute_address
from segray.registry.address import absolute, is_registry
from segray.settings import CommonSettings


def _absolute(against: str) -> str:
    return absolute(against) if is_registry(against) else absolute_address(against)


RunOrVersion = Annotated[str, Field(pattern=r"\S"), AfterValidator(_absolute)]
"""URL or folder of a run, or address of a version in a registry."""


class DriftSettings(CommonSettings):
    """Test whether the images and labels of one run are distributed as those of another.

    RUN is a finished output of annotate or predict, on local disk or in a bucket. Scores, classes, areas,
    instances an image, brightness and sharpness are compared by population stability index (PSI) and
    Jensen-Shannon divergence. A measure drifts where it reaches its threshold and exceeds the noise of
    samples of this size. Nothing is written without --output. With --json, JSON is printed.
    """

    basic = ("run", "against", "group_by", "output", "psi", "js", "min_images", *CommonSettings.basic)
    usage = "RUN --against RUN [--json]"
    examples = """examples:
  segray drift out/november --against out/october
  segray drift s3://bucket/labels --against registry://bucket/models#buildings@champion --json
  segray drift out/november --against out/october --group-by camera --output out/drift

exit codes:
  0 no drift   1 failed, run again   2 bad settings   3 drift: a threshold is crossed   4 no run there"""

    run: CliPositionalArg[list[Address]] = Field(
        default=[],
        validate_default=True,
        min_length=1,
        max_length=1,
        description="output folder or bucket URL of the run",
    )
    against: RunOrVersion = Field(
        description="run to compare with, or registry://BUCKET/PATH#MODEL@ALIAS: the profile of a model "
        "version"
    )
    group_by: str | None = Field(
        None,
        pattern=r"\S",
        description="column of `images`, from --keep-columns: its values are also compared separately",
    )
    output: Address | None = Field(None, description="folder or bucket URL for drift.json and drift.html")
    psi: float = Field(0.2, gt=0, description="threshold of the population stability index (exit 3)")
    js: float = Field(0.1, gt=0, le=1, description="threshold of Jensen-Shannon divergence in bits (exit 3)")
    min_images: int = Field(
        100, ge=1, description="minimum number of images on each side; fewer are reported, not judged"
    )
    noise: float = Field(
        0.01, gt=0, lt=1, description="false alarm rate: probability of a drift without a real difference"
    )
