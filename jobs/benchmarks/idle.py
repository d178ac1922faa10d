"""What a Ray costs that has nothing to do: CPU time and wake-ups, segray's own against `ray.init`'s.

Both have two CPUs and three actors that wait, and neither has a dashboard. Of the wake-ups of a worker
a hundred a second are fixed in Ray: its main thread looks for signals every 10 ms.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from jobs.benchmarks.commands import answered
from jobs.benchmarks.measure import Figure, Options, ratios, take_turns
from jobs.benchmarks.processes import tree

ACTORS, SETTLES_S = 3, 8.0


def figures(options: Options) -> Iterator[Figure]:
    """Own over `ray.init`."""
    seconds = 2 if options.quick else 20
    found = list[dict[str, Any]]()

    def arm(kind: str, name: str) -> float:
        found.append(answered("idle", kind, seconds))
        return float(found[-1][name])

    for name, words in (("cpu", "CPU of an idle own Ray"), ("wakes", "wake-ups of an idle own Ray")):
        found.clear()
        plain, own = take_turns([partial(arm, "plain", name), partial(arm, "own", name)], options.rounds(3))
        unit = "% of a core" if name == "cpu" else "a second"
        facts = [f"{min(own):.1f} against {min(plain):.1f} {unit}; last: {found[-1]['by_process']}"]
        yield Figure(
            f"{words} / of ray.init's", "<= 0.33" if name == "wakes" else "", ratios(own, plain), facts
        )


def main(kind: str, seconds: float) -> None:
    """Start a Ray, let it settle, count."""
    with ExitStack() as stack:
        if kind == "own":
            from segray.cluster import set_environment

            set_environment()
            from segray.own_ray import OwnRay

            log = Path(stack.enter_context(tempfile.TemporaryDirectory()), "ray.log")
            own = OwnRay(400, log, threading.Event(), cpus=2)
            own.start()
            stack.callback(own.stop, keep=False)
        import ray

        if kind == "plain":
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            stack.callback(ray.shutdown)
        waiting: Any = ray.remote(num_cpus=0.1)(Waiting)
        actors = [waiting.remote() for _ in range(ACTORS)]
        ray.get([actor.pid.remote() for actor in actors])
        time.sleep(SETTLES_S)
        before, begun = counted(), time.monotonic()
        time.sleep(seconds)
        after, passed = counted(), time.monotonic() - begun
    ticks = os.sysconf("SC_CLK_TCK")
    by_process = dict[str, float]()
    cpu = 0.0
    for pid, (name, time_used, wakes) in after.items():
        _, earlier, woken = before.get(pid, ("", time_used, wakes))
        by_process[name] = round(by_process.get(name, 0) + (wakes - woken) / passed, 1)
        cpu += (time_used - earlier) / ticks / passed * 100
    print(json.dumps({"cpu": cpu, "wakes": sum(by_process.values()), "by_process": by_process}))


class Waiting:
    """An actor."""

    def pid(self) -> int:
        """Return its process."""
        return os.getpid()


def counted() -> dict[int, tuple[str, int, int]]:
    """Name, ticks of CPU and voluntary switches of this process and all that it started."""
    found = dict[int, tuple[str, int, int]]()
    for pid in tree(os.getpid()):
        folder = Path(f"/proc/{pid}")
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            lines = [line for each in folder.glob("task/*/status") for line in each.read_text().splitlines()]
            wakes = sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))
            name = (folder / "comm").read_text().strip() if pid != os.getpid() else "driver"
            found[pid] = name, int(fields[11]) + int(fields[12]), wakes
    return found


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
