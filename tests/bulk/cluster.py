"""A Ray cluster of several nodes on this machine, in a process of its own.

Apart from the tests' own Ray, whose globals `ray.cluster_utils.Cluster` would overwrite. The process prints
the cluster's address; `lose` and a number on its standard input kills one of the worker nodes that hold a
part of the job, with all that runs on it; `add` adds a node. It ends with its standard input.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import warm_workers
from tests.bulk.runs import descendants, kill_tree

AUTH = {"RAY_AUTH_MODE": "disabled"}
"""Everything is on loopback; the driver must be told the same."""
_ROOT = Path(__file__).parents[2]


@contextmanager
def cluster(nodes: int, *, replaced: bool = True) -> Iterator[tuple[str, Callable[[int], bool]]]:
    """(address, function that loses a worker node) of a cluster of `nodes`; another takes its place.

    The function is given which of those that work for the job; False where none did, and none was lost.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bulk.cluster", str(nodes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=_ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | AUTH,
    )
    assert process.stdin is not None

    def said(word: str) -> str:
        for line in process.stdout or ():
            if line.startswith(word):
                return line.split()[1]
        raise AssertionError(f"the cluster ended with {process.wait()} before it said {word}")

    def lose(number: int) -> bool:
        assert process.stdin is not None
        print("lose", number, file=process.stdin, flush=True)
        lost = said("lost") != "nothing"
        if lost and replaced:
            print("add", file=process.stdin, flush=True)
        return lost

    try:
        yield said("address"), lose
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            kill_tree(process.pid)
            process.wait()


def raylet_of(node: Any) -> int:
    """Process number of the node's raylet: all that runs on the node runs below it."""
    return int(node.all_processes["raylet"][0].process.pid)


def _works(raylet: int) -> bool:
    names = "MapBatches", "ray::Read", "RayTrainWorker"
    return any(name in command for command in descendants(raylet).values() for name in names)


def main() -> None:
    from ray.cluster_utils import Cluster

    with warm_workers.used():
        serve(Cluster)


def serve(make: Any) -> None:
    """A cluster that `make` makes, until the standard input ends."""
    running = make(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    workers = [running.add_node(num_cpus=1) for _ in range(int(sys.argv[1]) - 1)]
    print("address", running.address, flush=True)
    for line in sys.stdin:
        if line.startswith("add"):
            workers.append(running.add_node(num_cpus=1))
            continue
        busy = [node for node in workers if _works(raylet_of(node))]
        if not busy:
            print("lost nothing", flush=True)
            continue
        lost = busy[int(line.split()[1]) % len(busy)]
        workers.remove(lost)
        kill_tree(raylet_of(lost))
        running.remove_node(lost, allow_graceful=False)
        print("lost", lost.unique_id, flush=True)
    running.shutdown()


if __name__ == "__main__":
    main()
