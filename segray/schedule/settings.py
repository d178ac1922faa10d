"""Settings of `segray schedule`: when a job runs, and which scheduler starts it."""

import difflib
from typing import Annotated, Any, Literal, get_args
from zoneinfo import available_timezones

from pydantic import AfterValidator, Field, create_model

from segray.address import LocalFile
from segray.schedule.cron import cron
from segray.settings import CommonSettings
from segray.submit.settings import ClusterJobSettings, Name

Scheduler = Literal["crontab", "systemd", "k8s", "kuberay", "raycronjob", "airflow", "slurm"]
"""Scheduler to generate files for."""
SCHEDULERS: tuple[Scheduler, ...] = get_args(Scheduler)

_POD = ("image", "namespace", "secret", "service_account", "cpus", "gpus", "memory_gib", "retries")
_OWN: dict[Scheduler, tuple[str, ...]] = {
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
USED = {scheduler: frozenset((*_EVERYWHERE, *own)) for scheduler, own in _OWN.items()}
"""Scheduler -> the settings that it supports."""


def _checked(expression: str) -> str:
    return cron(expression).typed


def _known_zone(name: str) -> str:
    known = available_timezones()
    if not known:
        raise ValueError("this machine has no time zone database; install tzdata")
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        raise ValueError("no time zone of that name" + "".join(f"; did you mean {each}?" for each in close))
    return name


class ScheduleOptions(ClusterJobSettings):
    """`ScheduleSettings` without `as`, which is a Python keyword."""

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
  0 printed or written   2 bad settings, also of the verb, or unsupported by that scheduler"""

    cron: Annotated[str, AfterValidator(_checked)] = Field(
        description='cron expression, the five fields of crontab(5): "0 3 * * *" is every night at three'
    )
    name: Name | None = Field(None, description="name of the job and its files (default: the verb)")
    time_zone: Annotated[str, AfterValidator(_known_zone)] | None = Field(
        None, description="time zone of --cron, as Europe/Berlin (default: the scheduler's; Airflow: UTC)"
    )
    into: LocalFile | None = Field(None, description="folder to write the files to, instead of printing them")
    kubectl_image: str = Field(
        "alpine/k8s:1.34.1", pattern=r"^\S+$", description="kuberay: container image with sh and kubectl"
    )

    @property
    def scheduler(self) -> Scheduler:
        """The value of `as`."""
        found: Scheduler = getattr(self, "as")
        return found


_AS: Any = {
    "as": (Scheduler, Field(description="scheduler; raycronjob is KubeRay's own, alpha and off by default"))
}
ScheduleSettings = create_model(
    "ScheduleSettings",
    __base__=ScheduleOptions,
    __doc__="""Print the files with which a scheduler runs VERB regularly; segray itself does not schedule.

    VERB and what follows is the command as you would type it here: annotate, train, predict, evaluate or
    retrain. The options below may be before or after it; all others are VERB's. VERB's settings, including
    those of the environment, are checked and written without secrets. Each file says how the scheduler
    handles exit codes, and what it requires. Options that the chosen scheduler does not support are errors.
    """,
    **_AS,
)
