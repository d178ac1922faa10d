"""Tell why nothing is done yet: other jobs of this Ray may hold what the model needs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from segray.bulk.resources import Resources
from segray.log import say

LOOK_EVERY_S = 60.0
_ANSWER_S = 10.0


@contextmanager
def waiting_told(attempts: Any, resources: Resources) -> Iterator[None]:
    """Print a warning, once, where no model actor has started and few CPUs or GPUs are free.

    attempts: the actor of `Attempts`, which each of them calls first.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY_S):
            with suppress(ray.exceptions.RayError):  # the job itself notices
                if ray.get(attempts.was_asked.remote(), timeout=_ANSWER_S):
                    return
                if lines := _lacking(resources):
                    say(f"the model has not started: {', '.join(lines)}; other jobs may hold them", "warning")
                    return

    thread = threading.Thread(target=watch, name="segray-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _lacking(resources: Resources) -> list[str]:
    state: Any = ray
    free, total = state.available_resources(), state.cluster_resources()
    needed = {"CPU": resources.actor_cpus, "GPU": resources.actor_gpus}
    return [
        f"it needs {number:g} {kind}s, {free.get(kind, 0):.3g} of this Ray's {total.get(kind, 0):g} are free"
        for kind, number in needed.items()
        if free.get(kind, 0) < number
    ]
