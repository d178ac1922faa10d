"""`segray` whose first raylet is killed as soon as it runs."""

import os
import signal
from typing import Any

from tests import warm_segray


def main() -> int:
    """Its exit code."""
    from ray._private import node as module

    Node: Any = module.Node
    start = Node.start_ray_processes

    def start_and_kill(node: Any) -> None:
        start(node)
        Node.start_ray_processes = start
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    Node.start_ray_processes = start_and_kill
    return warm_segray.main()
