"""`segray submit`, step by step: check settings, build the request, print or send it, follow the job."""

import difflib
import json
from collections.abc import Callable, Sequence

from segray.command_line import load_settings, settings_of
from segray.errors import ExitCode, SettingsError
from segray.settings import CommonSettings, JobSettings, printable
from segray.submit import kuberay, sky, slurm
from segray.submit.job_package import Order, order_of
from segray.submit.settings import SubmitSettings
from segray.submit.shell import say
from segray.verbs import ON_DATA


def split(
    arguments: Sequence[str], cls: type[CommonSettings] = SubmitSettings
) -> tuple[list[str], str, list[str]]:
    """Return (arguments of `cls`, verb, the verb's arguments); the verb is empty where none is named."""
    switches = {
        f"--{name.replace('_', '-')}" for name, field in cls.model_fields.items() if field.annotation is bool
    }
    for at, word in enumerate(arguments):
        before = arguments[at - 1] if at else ""
        is_switch = before.replace("--no-", "--", 1) in switches
        is_value = before.startswith("-") and "=" not in before and not is_switch
        if word in ON_DATA and not is_value:
            return list(arguments[:at]), word, list(arguments[at + 1 :])
    return list(arguments), "", []


def check_words(own: Sequence[str], verb: str) -> None:
    """Raise SettingsError where the verb is misspelt, or one of its options stands before it."""
    likely = [close[0] for word in own if (close := difflib.get_close_matches(word, ON_DATA, 1, 0.7))]
    if likely and not verb:
        raise SettingsError(f"no verb given; did you mean {likely[0]}?")
    for word in own:
        if verb and word.startswith("--storage."):
            raise SettingsError(f"{word.partition('=')[0]}: an option of {verb}; put it after {verb}")


def run(arguments: Sequence[str]) -> int:
    """Return the exit code of `segray submit` with these arguments. Raises as `submit`."""
    own, verb, rest = split(arguments)
    check_words(own, verb)
    settings = load_settings(SubmitSettings, own, "segray submit")
    if settings.print_config:
        print(printable(settings), end="")
        return ExitCode.DONE
    if not verb:
        raise SettingsError(
            f"say what to do there: one of {', '.join(ON_DATA)}, and its settings",
            f"usage: segray submit {SubmitSettings.usage}",
        )
    job: JobSettings = settings_of(verb, rest, "segray submit ...")
    if job.print_config:
        print(printable(job), end="")
        return ExitCode.DONE
    return submit(settings, verb, job)


def submit(settings: SubmitSettings, verb: str, job: JobSettings) -> int:
    """Submit `segray VERB` with these settings; return its exit code.

    Raises SettingsError for problems found before it is sent, JobFailedError for later ones.
    """
    order = order_of(verb, job, settings)
    if order.kept_back:
        say(
            f"not sent, because secret: {', '.join(order.kept_back)}; the nodes need credentials of their own"
        )
    if settings.dry_run:
        from segray.submit.estimate import estimate

        text, lines = _text(settings, order), list(estimate(settings, job))
        print(text, end="")
        for line in lines:
            say(line)
        return ExitCode.DONE
    senders: dict[str, Callable[[SubmitSettings, Order], int]] = {
        "address": _to_ray, "slurm": slurm.send, "kuberay": kuberay.send, "sky": sky.send,
    }  # fmt: skip
    return senders[settings.where](settings, order)


def _text(settings: SubmitSettings, order: Order) -> str:
    """Return the request or file that would be sent, for `--dry-run`."""
    if settings.where == "slurm":
        return slurm.script(settings, order)
    if settings.where == "kuberay":
        return kuberay.manifest(settings, order)
    if settings.where == "sky":
        return sky.task(settings, order)
    from segray.submit.ray_cluster import described

    return f"{json.dumps(described(order, settings), indent=2)}\n---\n{order.settings}"


def _to_ray(settings: SubmitSettings, order: Order) -> int:
    from segray.submit.ray_cluster import RayCluster

    cluster = RayCluster(settings)
    submission_id, line = cluster.send(order)
    try:
        say(line)
        if settings.detach:
            cluster.print_commands(submission_id)
            return ExitCode.DONE
        return cluster.follow(submission_id)
    except KeyboardInterrupt:
        cluster.print_commands(submission_id)
        return ExitCode.INTERRUPTED
