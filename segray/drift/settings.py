"""What `segray drift` can be told; flags, environment, YAML and help come from here."""

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import CliPositionalArg

from segray.address import Address, absolute_address
from segray.registry.address import absolute, is_registry
from segray.settings import CommonSettings


def _absolute(against: str) -> str:
    return absolute(against) if is_registry(against) else absolute_address(against)


RunOrVersion = Annotated[str, Field(pattern=r"\S"), AfterValidator(_absolute)]
"""The address of a run, or of a version in a registry."""


class DriftSettings(CommonSettings):
    """Whether the images and labels of one run are distributed as those of another.

    RUN is a finished output of annotate or predict, on local disk or in a bucket. Compared are scores,
    classes, areas, instances an image, brightness and sharpness: population stability index and
    Jensen-Shannon divergence. One crosses its threshold where it is also more than the noise of samples of
    this size. Nothing is written without --output. With --json, JSON is printed.
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
        description="the run it is compared with, or registry://BUCKET/PATH#MODEL@ALIAS: the profile "
        "that is kept with a version"
    )
    group_by: str | None = Field(
        None,
        pattern=r"\S",
        description="column of `images`, as of --keep-columns: each of its values is compared by itself, too",
    )
    output: Address | None = Field(None, description="folder or bucket URL for drift.json and drift.html")
    psi: float = Field(0.2, gt=0, description="exit 3 from this population stability index on")
    js: float = Field(0.1, gt=0, le=1, description="exit 3 from this Jensen-Shannon divergence on, in bits")
    min_images: int = Field(
        100, ge=1, description="what has fewer images on either side is reported and not judged"
    )
    noise: float = Field(
        0.01, gt=0, lt=1, description="chance that one drift is reported of two samples of the same images"
    )
