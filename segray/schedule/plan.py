"""What the texts for all schedulers are made from."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segray.errors import SettingsError
from segray.schedule.cron import Cron
from segray.schedule.settings import ScheduleOptions
from segray.settings import ENV_PREFIX
from segray.submit.order import Order
from segray.submit.settings import SubmitSettings

RIGHTS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role of the machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or a service account of the machine",
    "az": "AZURE_STORAGE_CONNECTION_STRING, or a managed identity",
}
"""Of a kind of storage: what gives them."""
_LIKE = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A job, when it runs, and who starts it."""

    settings: ScheduleOptions
    cron: Cron
    order: Order
    submit: SubmitSettings
    """What the job would be sent with, its name included."""

    @property
    def name(self) -> str:
        """Of the job and its files."""
        return self.settings.name or self.order.verb

    def path(self, suffix: str, folder: str) -> str:
        """Of a file: in the folder that is written to, or where the text says that it is to lie."""
        into = self.settings.into
        return str((into if into is not None else Path(folder)) / f"{self.name}{suffix}")

    def comment(self, *lines: str) -> str:
        """The lines, then what the environment must hold, each as a comment."""
        told = (*lines, *_needs(self.order))
        return "".join(f"# {line}\n" for line in told)


def _needs(order: Order) -> Iterator[str]:
    schemes = {_LIKE.get(each, each) for each in re.findall(r"\b([a-z0-9]+)://", order.settings)}
    for scheme in sorted(schemes & RIGHTS.keys()):
        yield f"Needs rights on {scheme}://: {RIGHTS[scheme]}."
    for name in order.kept_back:
        variable = ENV_PREFIX + name.upper().replace(".", "__")
        yield f"Not in here, since it is secret: {name}; the environment may hold it as {variable}."


def one_line(text: str) -> str:
    """Raise SettingsError where a name holds a line break, which would end a line of the text."""
    if "\n" in text:
        raise SettingsError("a path with a line break in it cannot be scheduled")
    return text
