"""What every job does around its own work: problems collected, Ray, output, device, identity, exit code."""

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
    """Run a job: library noise goes to a file, an interrupt ends it in words, Ray is stopped at the end.

    Ray starts when it is first asked for; `load` imports meanwhile what the job needs of it.
    """
    set_environment()
    with (
        noise_to_file() as log,
        INTERRUPTS,
        RayStart(settings.ray, log, load, settings.metrics_port) as ray,
    ):
        yield ray


class Problems:
    """What is wrong with the settings, so that a person learns all of it at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self.lines)

    def attempt(self, step: Callable[[], T]) -> T | None:
        """Return what `step` returns; None where it raises SettingsError, whose lines are kept.

        Raises HeldError: who waits for the other run, as retrain does, must know it from bad settings.
        """
        try:
            return step()
        except HeldError:
            raise
        except SettingsError as error:
            self.lines.extend(error.lines)
            return None

    def error(self) -> SettingsError:
        """Return all of them as one error."""
        return SettingsError(*self.lines)


def open_output(store: O) -> Lease[O]:
    """Return the lease of an output, not entered yet.

    Raises SettingsError where the output cannot be used, HeldError where another run is live.
    """
    store.check_usable()
    lease = Lease(store)
    lease.refuse_second_run(watches=False)  # of another machine: when it is taken, after all that is quick
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

    made: what the run before did to the output, `made` or `begun`.
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
    """Return how a job ends that did everything: 0, or 3 where too much was rejected."""
    return ExitCode.REJECTED if rejected_share > max_rejects else ExitCode.DONE
