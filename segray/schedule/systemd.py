"""systemd: a service that runs once, and the timer that starts it."""

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
    """Path -> content."""
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
        "half the time between two turns; 2 (settings, or another run is at work), 3 (too many rejects) and",
        "5 (refused) need a person: see `systemctl --failed`; 4 (nothing to do) is success. While a run is",
        "at work the timer starts no second one.",
        f"The environment is read from {environment}, lines NAME=value, if that is there; chmod 600.",
    )
    about = (
        f"# Made by `segray schedule --as systemd` from --cron {plan.cron.typed!r}, in the time zone of "
        f"{zone or 'the machine'}.\n# A start that was missed, since the machine was off, is made up for.\n"
    )
    return {
        settings: plan.order.settings,
        plan.path(".service", UNITS): head + service,
        plan.path(".timer", UNITS): about + TIMER.format(name=plan.name, calendar=calendar),
    }


def _user() -> str:
    """Whoever asks for it: root's outputs would be nobody else's to go on with."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _plain(path: str) -> str:
    """In a setting that holds one path; `%` begins a specifier (systemd.unit(5))."""
    return one_line(path).replace("%", "%%")


def _program(path: str) -> str:
    """The first word of a command line, in which systemd takes no quotes and backslashes."""
    if any(each in path for each in "\"'\\"):
        raise SettingsError(f"systemd: it starts no program with quotes or backslashes in its path: {path}")
    return _words(_plain(path))


def _quoted(word: str) -> str:
    """Another word (systemd.service(5)), in which variables would be put in."""
    return _words(_plain(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$"))


def _words(word: str) -> str:
    """In quotes, where it is not one word otherwise."""
    return f'"{word}"' if any(each in word for each in " \t'\"\\;") else word
