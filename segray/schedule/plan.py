"""The plan of a scheduled job, and helpers to write it as a scheduler's file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segray.errors import SettingsError
from segray.schedule.cron import Cron
from segray.schedule.settings import ScheduleOptions
from segray.settings import ENV_PREFIX
from segray.submit.job_package import Order
from segray.submit.settings import SubmitSettings

RIGHTS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role of the machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or a service account of the machine",
    "az": "AZURE_STORAGE_CONNECTION_STRING, or a managed identity",
}
"""URL scheme -> what gives access to its storage."""
_LIKE = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A job, the times at which it runs, and the scheduler that starts it."""

    settings: ScheduleOptions
    cron: Cron
    order: Order
    submit: SubmitSettings
    """Settings with which the job would be submitted, its name included."""

    @property
    def name(self) -> str:
        """Name of the job and its files."""
        return self.settings.name or self.order.verb

    def path(self, suffix: str, folder: str) -> str:
        """Return the path of a file: in `--into`, else in `folder`, where the text says to put it."""
        into = self.settings.into
        return str((into if into is not None else Path(folder)) / f"{self.name}{suffix}")

    def comment(self, *lines: str) -> str:
        """Return the lines, then what the environment must contain, each as a comment."""
        return "".join(f"# {line}\n" for line in (*lines, *_needs(self.order)))


def _needs(order: Order) -> Iterator[str]:
    schemes = {_LIKE.get(each, each) for each in re.findall(r"\b([a-z0-9]+)://", order.settings)}
    for scheme in sorted(schemes & RIGHTS.keys()):
        yield f"Needs access to {scheme}://: {RIGHTS[scheme]}."
    for name in order.kept_back:
        variable = ENV_PREFIX + name.upper().replace(".", "__")
        yield f"Left out because it is secret: {name}; set it in the environment as {variable}."


def one_line(text: str) -> str:
    """Return the text. Raises SettingsError where it contains a line break, which would end the line."""
    if "\n" in text:
        raise SettingsError("a path with a line break in it cannot be scheduled")
    return text
