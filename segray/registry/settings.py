"""What `segray registry` can be told."""

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
"""And what each takes."""


class RegistrySettings(CommonSettings):
    """Models with versions that never change, and aliases that do: champion, challenger, previous.

    list: models and their champions. show: versions of one, its history, the runs that used it. add: keep a
    model file, or the model of a training (RUN, its output), as a version and as challenger. promote: make a
    version the champion. rollback: back to the champion before. diff: two versions beside each other. verify:
    whether every object is what it was. gc: delete versions by a rule, never one that an alias means.
    A registry is a folder or a bucket; `--weights registry://BUCKET/PATH#MODEL@ALIAS` takes a model from it.
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
  0 done   1 failed, or verify found damage   2 bad settings   4 nothing there   5 promotion refused"""

    words: CliPositionalArg[list[str]] = Field(
        default=[],
        validate_default=True,
        min_length=1,
        description=f"what to do, one of {', '.join(ACTIONS)}, and with which model",
    )
    registry: Address = Field(description="folder or bucket URL of the registry")
    why: str = Field("", description="kept in the history by add, promote and rollback")
    force: bool = Field(False, description="promote what a comparison with the champion has refused")
    keep: int | None = Field(None, ge=0, description="gc: keep so many of the newest versions without alias")
    older_than_days: float | None = Field(None, ge=0, description="gc: delete only versions older than this")
    dry_run: bool = Field(False, description="gc: say what would be deleted, delete nothing")
