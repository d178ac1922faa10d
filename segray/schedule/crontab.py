"""cron: a line of a user's crontab, and a file with the settings."""

import shlex
import sysconfig
from pathlib import Path

from segray.schedule.plan import Plan, one_line

FOLDER = "~/segray"
COMMAND = (
    "cd {folder} && {{ output=$({segray} {verb} --config {settings} 2>&1) || {{ code=$?; "
    '[ $code = 4 ] || {{ echo "$output"; exit $code; }}; }}; }}'
)
"""Prints nothing, so that cron sends no mail, after exit codes 0 and 4."""


def files(plan: Plan) -> dict[str, str]:
    """Return path -> content of the crontab line and the settings.

    Raises SettingsError where the job cannot be written as a line of a crontab.
    """
    settings = plan.path(".yaml", FOLDER)
    command = COMMAND.format(
        folder=shlex.quote(str(Path.cwd())),
        segray=shlex.quote(str(Path(sysconfig.get_path("scripts"), "segray"))),
        verb=plan.order.verb,
        settings=settings if settings.startswith("~") else shlex.quote(settings),
    )
    zone = plan.settings.time_zone
    head = plan.comment(
        f"Made by `segray schedule --as crontab` from --cron {plan.cron.typed!r}; put it into `crontab -e`.",
        "Exit codes of segray: after 0 and 4 (nothing to do) cron sends no mail. After 1 and 130 it mails",
        "the output (to MAILTO), and the next start continues where this one stopped. After 2 (settings,",
        "or the last run is still active: that is 4 for retrain), 3 (too many rejects) and 5 (refused) it",
        "sends mail, too, and a person must check. No flock is needed: the lease in the output lets one run",
        "write at a time.",
        *_zone(zone),
        "The environment, in lines NAME=value above the next one:",
    )
    set_zone = f"CRON_TZ={zone}\n" if zone else ""
    line = one_line(f"{plan.cron.vixie} {command}").replace("%", r"\%")  # an unescaped one ends the line
    return {settings: plan.order.settings, plan.path(".crontab", FOLDER): f"{head}{set_zone}{line}\n"}


def _zone(zone: str | None) -> list[str]:
    if zone is None:
        return ["The time is that of the machine."]
    return [
        "CRON_TZ is a feature of cronie (Fedora, RHEL, SUSE, Arch), for all lines below it. The cron of",
        "Debian, Ubuntu and BusyBox ignores it and uses the machine's time zone: use systemd there.",
    ]
