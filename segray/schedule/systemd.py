"""systemd: a oneshot service and the timer that starts it."""

import getpass
import os
import sysconfig
from pathlib import Path

from segray.errors import SettingsError
from segray.schedule.plan import Plan, one_line

FOLDER, UNITS = "/etc/segray", "/etc/systemd/system"
SERVICE = """\
[Unit]
Description=segray {verb} ({name})
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec={interval}
StartLimitBurst={burst}

[Service]
Type=oneshot
User={user}
WorkingDirectory={folder}
EnvironmentFile=-{environment}
ExecStart={segray} {verb} --config {settings}
SuccessExitStatus=4
Restart={restart}
RestartSec=30
RestartPreventExitStatus=2 3 5
"""
TIMER = """\
[Unit]
Description=starts {name}.service

[Timer]
{calendar}
Persistent=true

[Install]
WantedBy=timers.target
"""


def files(plan: Plan) -> dict[str, str]:
    """Return path -> content of the service, the timer and the settings.

    Raises SettingsError where systemd cannot run the program's path.
    """
    settings, environment = plan.path(".yaml", FOLDER), plan.path(".env", FOLDER)
    retries = plan.settings.retries
    service = SERVICE.format(
        verb=plan.order.verb,
        name=plan.name,
        interval=max(plan.cron.shortest_s // 2, 1),
        burst=retries + 1,
        user=_user(),
        folder=_plain(str(Path.cwd())),
        environment=_plain(environment),
        segray=_program(str(Path(sysconfig.get_path("scripts"), "segray"))),
        settings=_quoted(settings),
        restart="on-failure" if retries else "no",
    )
    zone = plan.settings.time_zone
    calendar = "\n".join(f"OnCalendar={each}{f' {zone}' if zone else ''}" for each in plan.cron.on_calendar)
    head = plan.comment(
        f"Made by `segray schedule --as systemd`; then: systemctl enable --now {plan.name}.timer.",
        f"Exit codes of segray: 1, 130 and signals start it again after 30 s, up to {retries} times within",
        "half the interval between two starts; 2 (settings, or another run is active), 3 (too many rejects)",
        "and 5 (refused) need a person: see `systemctl --failed`; 4 (nothing to do) is success. While a run",
        "is active the timer starts no second one.",
        f"The environment is read from {environment}, lines NAME=value, if it exists; chmod 600.",
    )
    about = (
        f"# Made by `segray schedule --as systemd` from --cron {plan.cron.typed!r}, in the time zone of "
        f"{zone or 'the machine'}.\n# A start missed while the machine was off is made up for.\n"
    )
    return {
        settings: plan.order.settings,
        plan.path(".service", UNITS): head + service,
        plan.path(".timer", UNITS): about + TIMER.format(name=plan.name, calendar=calendar),
    }


def _user() -> str:
    """Return the current user: outputs written by root could not be continued by anybody else."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user without a name
        return str(os.getuid())


def _plain(path: str) -> str:
    """Escape a path for a setting of one path; `%` begins a specifier (systemd.unit(5))."""
    return one_line(path).replace("%", "%%")


def _program(path: str) -> str:
    """Escape the first word of a command line; systemd supports no quotes and backslashes in it."""
    if any(each in path for each in "\"'\\"):
        raise SettingsError(f"systemd: cannot start a program with quotes or backslashes in its path: {path}")
    return _words(_plain(path))


def _quoted(word: str) -> str:
    """Escape a further word (systemd.service(5)), in which variables would be expanded."""
    return _words(_plain(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$"))


def _words(word: str) -> str:
    """Quote a word, where it would not be a single one otherwise."""
    return f'"{word}"' if any(each in word for each in " \t'\"\\;") else word
