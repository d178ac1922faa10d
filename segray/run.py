"""The scaffold of every job: problems collected, Ray, output, device, identity, exit code."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from segray.cluster import RayStart, set_environment
from segray.errors import ExitCode, HeldError, SettingsError
from segray.interrupts import INTERRUPTS
from segray.log_redirect import noise_to_file
from segray.output.folder import Output
from segray.output.lease import Lease
from segray.settings import JobSettings

T = TypeVar("T")
O = TypeVar("O", bound=Output)  # noqa: E741 - as in `lease`


@contextmanager
def on_ray(settings: JobSettings, load: Callable[[], object]) -> Iterator[RayStart]:
    """Run a job: other libraries' output goes to a file, interrupts are reported, Ray is stopped.

    Ray starts when it is first needed; `load` imports meanwhile what the job needs of it.
    """
    set_environment()
    with (
        noise_to_file() as log,
        INTERRUPTS,
        RayStart(settings.ray, log, load, settings.metrics_port) as ray,
    ):
        yield ray


class Problems:
    """Collects errors in the settings, so that the user sees all of them at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __bool__(self) -> bool:
        """Return whether there are any problems."""
        return bool(self.lines)

    def attempt(self, step: Callable[[], T]) -> T | None:
        """Return `step()`; None where it raises SettingsError, whose lines are kept.

        Raises HeldError: a caller that waits for the other run, such as retrain, must recognise it.
        """
        try:
            return step()
        except HeldError:
            raise
        except SettingsError as error:
            self.lines.extend(error.lines)
            return None

    def error(self) -> SettingsError:
        """Return all problems as one error."""
        return SettingsError(*self.lines)


def open_output(store: O) -> Lease[O]:
    """Return the lease of an output, not acquired yet.

    Raises SettingsError where the output cannot be used, HeldError where another run is live.
    """
    store.check_usable()
    lease = Lease(store)
    lease.refuse_second_run(watches=False)  # another machine's: when it is acquired, after quick checks
    return lease


def device_of(device: str, ray: RayStart) -> str:
    """Return `device` with `auto` resolved, in the cluster where there is one, else on this machine.

    Raises SettingsError where there is no such device, or no such cluster.
    """
    if ray.in_cluster:
        gpus = ray.cluster().gpus
        return ("cuda" if gpus else "cpu") if device == "auto" else device
    from segray.models.device import resolve_device

    return resolve_device(device)


def check_same(
    there: Mapping[str, Any], here: Mapping[str, Any], names: Iterable[str], output: str, made: str
) -> None:
    """Raise SettingsError with a line for each setting of `names` that differs from the output's.

    made: the verb for the message, `made` or `begun`.
    """
    lines = [
        f"  {name}: {there.get(name)} there, {here.get(name)} now"
        for name in names
        if there.get(name) != here.get(name)
    ]
    if lines:
        raise SettingsError(
            f"output: {output} was {made} with other settings; use another --output, or the same settings:",
            *lines,
        )


def exit_code(rejected_share: float, max_rejects: float) -> ExitCode:
    """Return the exit code of a finished job: 0, or 3 where too much was rejected."""
    return ExitCode.REJECTED if rejected_share > max_rejects else ExitCode.DONE
