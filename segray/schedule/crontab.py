"""cron: a line of a user's table, and the settings in a file of their own."""

import shlex
import sysconfig
from pathlib import Path

from segray.schedule.plan import Plan, one_line

FOLDER = "~/segray"
COMMAND = (
    "cd {folder} && {{ said=$({segray} {verb} --config {settings} 2>&1) || {{ code=$?; "
    '[ $code = 4 ] || {{ echo "$said"; exit $code; }}; }}; }}'
)
"""Says nothing, and so sends no mail, after 0 and 4."""


def files(plan: Plan) -> dict[str, str]:
    """Path -> content."""
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
        "Exit codes of segray: after 0 and 4 (nothing to do) cron has nothing to mail. After 1 and 130 it",
        "mails what was said (to MAILTO), and the next start goes on where this one stopped. After 2",
        "(settings, or the last run is still at work: that is 4 of retrain), 3 (too many rejects) and 5",
        "(refused) it mails, too, and a person must look. No flock is needed: the lease in the output lets",
        "one run write at a time.",
        *_zone(zone),
        "The environment, in lines NAME=value above the next one:",
    )
    set_zone = f"CRON_TZ={zone}\n" if zone else ""
    line = one_line(f"{plan.cron.vixie} {command}").replace("%", r"\%")  # a bare one ends the line
    return {settings: plan.order.settings, plan.path(".crontab", FOLDER): f"{head}{set_zone}{line}\n"}


def _zone(zone: str | None) -> list[str]:
    if zone is None:
        return ["The time is that of the machine."]
    return [
        "CRON_TZ is of cronie (Fedora, RHEL, SUSE, Arch), for all lines below it. Debian's and Ubuntu's cron",
        "and BusyBox do not know it and start at that time of the machine's zone: take systemd there.",
    ]
