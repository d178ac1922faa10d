"""Settings of `segray select`: flags, environment, YAML and help come from here."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from segray.address import Address
from segray.settings import JobSettings

SUFFIXES = (".csv", ".parquet")
PASS_THRESHOLD = 0.05
"""Minimum score of the second pass; that of detections in AP, as in torchvision's own models."""


class SelectSettings(JobSettings):
    """Choose the images that a person should look at next; labels are not needed.

    RUN is a finished output of annotate or predict. Images are chosen where the model is unsure or
    contradicts itself, unlike each other, and from every group. What RUN does not hold (low scores, features
    of the model), its model finds in a second pass over its sources, whose cost is printed before. OUTPUT is
    a manifest with a reason for each image: a SOURCE of annotate and predict.
    """

    basic = (
        *("run", "budget", "output", "group_by", "labels", "against", "flips", "from_run_only", "seed"),
        *JobSettings.basic[1:],
    )
    usage = "RUN --budget N --output MANIFEST"
    examples = """examples:
  segray select out/labels --budget 200 --output next.csv
  segray select s3://bucket/labels --budget 200 --group-by camera --labels corrected/ --output next.parquet
  segray select out/labels --against out/older --budget 50 --from-run-only --output next.csv

exit codes:
  0 done   1 failed, run again to continue   2 bad settings   4 nothing can be selected
  130 interrupted, run again to continue"""

    run: CliPositionalArg[list[Address]] = Field(
        default=[],
        validate_default=True,
        min_length=1,
        max_length=1,
        description="output folder or bucket URL of the run",
    )
    budget: int = Field(ge=1, description="number of images to select")
    output: Address = Field(description="manifest to write: a .csv or .parquet file")
    group_by: str | None = Field(
        None,
        pattern=r"\S",
        description="column of `images`, from --keep-columns: images are taken from each of its values alike",
    )
    labels: list[Address] = Field(
        [],
        description="what is labelled already, and left out: output in annotate's format, COCO JSON, or "
        "manifest with a column `uri` (repeatable)",
    )
    against: Address | None = Field(
        None, description="another run over the same sources: images are chosen where the two disagree"
    )
    flips: bool = Field(
        False, description="in the second pass, compare with the mirror image: twice the time"
    )
    from_run_only: bool = Field(
        False, description="no second pass: use the tables of RUN alone, without a model"
    )
    unsure: Literal["sum", "mean"] = Field(
        "sum",
        description="sum: expected wrong instances of an image, so that full images count more; mean: their "
        "share",
    )
    candidates: int | None = Field(
        None,
        ge=1,
        description="number of most unsure images among which different ones are chosen; default "
        "10 x budget, of small runs half the images, at least 2 x budget",
    )
    seed: int = Field(0, ge=0, description="seed of the choice")
    work: Address | None = Field(
        None,
        description="folder or bucket URL of the second pass, which a later selection uses again; default "
        "next to OUTPUT: NAME.work",
    )
    overwrite: bool = Field(False, description="replace an existing manifest")
    dry_run: bool = Field(
        False, description="check everything, print what a second pass costs, write nothing"
    )

    @property
    def pass_output(self) -> str:
        """Return the address of the second pass's output."""
        return self.work or f"{self.output.rpartition('.')[0]}.work"

    @model_validator(mode="after")
    def _fits(self) -> "SelectSettings":
        problems = []
        if not self.output.lower().endswith(SUFFIXES):
            problems.append(f"output: must be a file whose name ends in {' or '.join(SUFFIXES)}")
        if self.flips and self.from_run_only:
            problems.append("flips: needs the second pass, which from_run_only rules out")
        if self.candidates is not None and self.candidates < self.budget:
            problems.append("candidates: must be at least the budget")
        if problems:
            raise ValueError("; ".join(problems))
        return self
