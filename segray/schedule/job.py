"""`segray schedule`, step by step: separate its options from the verb's, check both, print or write files."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segray.command_line import load_settings, settings_of
from segray.errors import ExitCode, SettingsError
from segray.log import say
from segray.run import Problems
from segray.schedule import airflow, crontab, k8s, kuberay, slurm, systemd
from segray.schedule.cron import cron
from segray.schedule.plan import Plan
from segray.schedule.settings import USED, ScheduleOptions, Scheduler, ScheduleSettings
from segray.settings import ENV_PREFIX, CommonSettings, JobSettings, printable
from segray.submit.job import check_words
from segray.submit.job import split as split_at_verb
from segray.submit.job_package import order_of
from segray.submit.settings import ClusterJobSettings, SubmitSettings
from segray.verbs import ON_DATA

FILES: dict[Scheduler, Callable[[Plan], dict[str, str]]] = {
    "crontab": crontab.files,
    "systemd": systemd.files,
    "k8s": k8s.files,
    "kuberay": kuberay.files,
    "raycronjob": kuberay.own_files,
    "airflow": airflow.files,
    "slurm": slurm.files,
}
_HERE = ("crontab", "systemd")
"""Schedulers that run on this machine and see its paths."""
_KUBERNETES = ("k8s", "kuberay", "raycronjob")


def split(arguments: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Return (schedule's arguments, verb, the verb's arguments); the verb is empty where none is named.

    After the verb, options with the name of a schedule option are schedule's; `--config`, `--print-config`
    and `--storage…`, which all verbs have, are the verb's there.
    """
    own, verb, words = split_at_verb(arguments, ScheduleSettings)
    flags = {
        f"--{name.replace('_', '-')}": field.annotation is bool
        for name, field in ScheduleSettings.model_fields.items()
        if name not in CommonSettings.model_fields
    }
    rest, left = list[str](), list(words)
    while left:
        word = left.pop(0)
        flag, equals, _ = word.partition("=")
        is_switch = flags.get(flag.replace("--no-", "--", 1), False)
        is_own = flag in flags or is_switch
        to = own if is_own else rest
        to.append(word)
        if is_own and not equals and not is_switch and left:
            to.append(left.pop(0))
    check_words(own, verb)
    return own, verb, rest


def run(arguments: Sequence[str]) -> int:
    """Return the exit code of `segray schedule` with these arguments. Raises as `schedule`."""
    own, verb, rest = split(arguments)
    problems = Problems()
    settings: ScheduleOptions | None = problems.attempt(
        lambda: load_settings(ScheduleSettings, own, "segray schedule")
    )
    if settings is not None and settings.print_config:
        print(printable(settings), end="")
        return ExitCode.DONE
    job = problems.attempt(lambda: _job(verb, rest))
    if settings is None or job is None:
        raise problems.error()
    if job.print_config:
        print(printable(job), end="")
        return ExitCode.DONE
    return schedule(settings, verb, job)


def _job(verb: str, arguments: Sequence[str]) -> JobSettings:
    """Return the settings of what is scheduled. Raises SettingsError."""
    if not verb:
        raise SettingsError(f"say what is to be run: one of {', '.join(ON_DATA)}, and its settings")
    settings: JobSettings = settings_of(verb, arguments, "segray schedule ...")
    return settings


def schedule(settings: ScheduleOptions, verb: str, job: JobSettings) -> int:
    """Print or write the files with which the scheduler runs `segray VERB` with these settings.

    Raises SettingsError for options that the scheduler does not support, for invalid settings of the job, and
    where the files cannot be written.
    """
    problems = [f"{name}: not supported by --as {settings.scheduler}" for name in _unsupported(settings)]
    if job.dry_run:
        problems.append("dry_run: a dry run is not scheduled; leave it out")
    submit = _submit(settings, verb)
    try:
        plan = Plan(settings, cron(settings.cron), order_of(verb, job, submit), submit)
        files = FILES[settings.scheduler](plan)
    except ValueError as error:
        problems.append(f"cron: {error}")
    except SettingsError as error:
        problems += error.lines
    if problems:
        raise SettingsError(*problems)
    if settings.into is None:
        _print(files)
    else:
        _write(files)
    return ExitCode.DONE


def _unsupported(settings: ScheduleOptions) -> list[str]:
    """Return the options set by flag or file (not by environment, which serves all) without support there."""
    given = [name for name in settings.model_fields_set if f"{ENV_PREFIX}{name.upper()}" not in os.environ]
    return sorted(set(given) - USED[settings.scheduler])


def _submit(settings: ScheduleOptions, verb: str) -> SubmitSettings:
    """Return the settings of `segray submit` to that scheduler; the environment was read before."""
    shared: dict[str, Any] = {name: getattr(settings, name) for name in ClusterJobSettings.model_fields}
    shared |= {"name": settings.name or verb, "dry_run": True}
    if settings.scheduler in _HERE:
        shared["shared_filesystem"] = True
    if settings.scheduler == "kuberay" and settings.namespace is None:
        shared["namespace"] = "default"  # a RoleBinding must name one
    shared["kuberay" if settings.scheduler in _KUBERNETES else "slurm"] = True
    return SubmitSettings.model_construct(**shared)


def _print(files: dict[str, str]) -> None:
    """Print the files to stdout; several files each after a comment with their name."""
    for path, text in files.items():
        if len(files) > 1:
            print(f"# file: {path}")
        print(text, end="" if len(files) == 1 else "\n")


def _write(files: dict[str, str]) -> None:
    for path, text in files.items():
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"into: cannot write {path}: {error.strerror}") from error
        say(f"schedule: wrote {path}")
