"""Settings of `segray registry`: flags, environment and help."""

from pydantic import Field
from pydantic_settings import CliPositionalArg

from segray.address import Address
from segray.settings import CommonSettings

ACTIONS = {
    "list": "[MODEL]",
    "show": "MODEL[@ALIAS|@VERSION]",
    "add": "MODEL FILE|RUN",
    "promote": "MODEL@VERSION",
    "rollback": "MODEL",
    "diff": "MODEL@A MODEL@B",
    "verify": "[MODEL]",
    "gc": "MODEL (--keep N | --older-than-days D)",
}
"""Actions and their arguments."""


class RegistrySettings(CommonSettings):
    """Manage models with immutable versions and aliases: champion, challenger, previous.

    list: models and their champions. show: versions of a model, its history, the runs that used it. add: add
    a model file, or the model of a training (RUN, its output), as a version and as challenger. promote: make
    a version the champion. rollback: return to the previous champion. diff: compare two versions. verify:
    check that every object is intact. gc: delete versions by a rule, never one with an alias.
    A registry is a folder or a bucket; `--weights registry://BUCKET/PATH#MODEL@ALIAS` loads a model from it.
    With --json, JSON is printed.
    """

    basic = ("words", "registry", *CommonSettings.basic)
    usage = "ACTION [MODEL[@ALIAS|@VERSION]] ... --registry URL [--json]"
    examples = """examples:
  segray registry list --registry s3://bucket/models
  segray registry add roads out/roads --registry models --why "first labels"
  segray registry promote roads@challenger --registry models
  segray registry show roads --registry models
  segray registry rollback roads --registry models --why "worse at night"
  segray registry gc roads --registry models --keep 10 --older-than-days 90

exit codes:
  0 done   1 failed, or verify found damage   2 bad settings   4 not found   5 promotion refused"""

    words: CliPositionalArg[list[str]] = Field(
        default=[],
        validate_default=True,
        min_length=1,
        description=f"action, one of {', '.join(ACTIONS)}, and its model",
    )
    registry: Address = Field(description="folder or bucket URL of the registry")
    why: str = Field("", description="reason for the history (add, promote, rollback)")
    force: bool = Field(False, description="promote a version that its comparison with the champion refused")
    keep: int | None = Field(None, ge=0, description="gc: number of newest versions without alias to keep")
    older_than_days: float | None = Field(None, ge=0, description="gc: delete only versions older than this")
    dry_run: bool = Field(False, description="gc: print what would be deleted, delete nothing")
