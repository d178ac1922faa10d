"""`segray schedule`: when a job runs, and who starts it."""

import difflib
from typing import Annotated, Any, Literal, get_args
from zoneinfo import available_timezones

from pydantic import AfterValidator, Field, create_model

from segray.address import LocalFile
from segray.schedule.cron import cron
from segray.settings import CommonSettings
from segray.submit.settings import ClusterJobSettings, Name

World = Literal["crontab", "systemd", "k8s", "kuberay", "raycronjob", "airflow", "slurm"]
"""Who starts it."""
WORLDS: tuple[World, ...] = get_args(World)

_POD = ("image", "namespace", "secret", "service_account", "cpus", "gpus", "memory_gib", "retries")
_OWN: dict[World, tuple[str, ...]] = {
    "crontab": ("time_zone",),
    "systemd": ("time_zone", "retries"),
    "k8s": ("time_zone", *_POD),
    "kuberay": ("time_zone", "nodes", "kubectl_image", *_POD),
    "raycronjob": ("time_zone", "nodes", *_POD),
    "airflow": ("time_zone", "retries", "setup", "shared_filesystem"),
    "slurm": (
        *("nodes", "cpus", "gpus", "memory_gib", "retries", "time_limit", "partition", "account"),
        *("setup", "shared_filesystem"),
    ),
}
_EVERYWHERE = ("cron", "as", "name", "into", *CommonSettings.model_fields)
USED = {world: frozenset((*_EVERYWHERE, *own)) for world, own in _OWN.items()}
"""The settings that each of them has a use for."""


def _checked(expression: str) -> str:
    return cron(expression).typed


def _known_zone(name: str) -> str:
    known = available_timezones()
    if not known:
        raise ValueError("this machine has no time zones; install tzdata")
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        raise ValueError("no time zone of that name" + "".join(f"; did you mean {each}?" for each in close))
    return name


class ScheduleOptions(ClusterJobSettings):
    """`ScheduleSettings` without `as`, which is a word of Python's."""

    basic = (
        *("cron", "as", "name", "time_zone", "into", "retries", "nodes", "image"),
        *CommonSettings.basic,
    )
    usage = "VERB ... --cron TIMES --as SCHEDULER"
    examples = """examples:
  segray schedule train --config train.yaml --cron "0 3 * * *" --as systemd --time-zone Europe/Berlin
  segray schedule annotate s3://bucket/photos --output s3://bucket/labels --cron "0 * * * *" --as k8s
  segray schedule --cron "30 2 * * 1-5" --as crontab --into out annotate /data/photos --output /data/labels

exit codes:
  0 printed or written   2 bad settings, of the verb too, or what that scheduler cannot say"""

    cron: Annotated[str, AfterValidator(_checked)] = Field(
        description='when, in the five fields of crontab(5): "0 3 * * *" is every night at three'
    )
    name: Name | None = Field(None, description="of the job and its files (default: the verb)")
    time_zone: Annotated[str, AfterValidator(_known_zone)] | None = Field(
        None, description="of --cron, such as Europe/Berlin (default: the scheduler's own; Airflow: UTC)"
    )
    into: LocalFile | None = Field(
        None, description="folder in which the files are written, instead of printing them"
    )
    kubectl_image: str = Field(
        "alpine/k8s:1.34.1", pattern=r"^\S+$", description="kuberay: any image with sh and kubectl"
    )

    @property
    def world(self) -> World:
        """The value of `as`."""
        found: World = getattr(self, "as")
        return found


_AS: Any = {
    "as": (World, Field(description="who starts it; raycronjob is KubeRay's own, alpha and off by default"))
}
ScheduleSettings = create_model(
    "ScheduleSettings",
    __base__=ScheduleOptions,
    __doc__="""Print what makes a scheduler run VERB again and again; segray is no scheduler.

    VERB and what follows is the command as it would be typed here: annotate, train, predict, evaluate or
    retrain. The options below may stand before or behind it, and all else is VERB's. Its settings, those of
    the environment too, are checked, and go into the text without secrets. Each text says what the scheduler
    makes of exit codes, and what must be there. Options that the chosen scheduler has no use for are
    refused.
    """,
    **_AS,
)
