"""Processes side by side, forked from one that has imported torch: each new Python takes 5 to 8 seconds."""

from collections.abc import Callable
from typing import Any

from torch.multiprocessing.spawn import start_processes

from tests import warm_workers


def run_side_by_side(work: Callable[..., None], arguments: tuple[Any, ...], number: int) -> None:
    """`work(rank, *arguments)` in so many processes, to their end. Raises what one of them raised."""
    with warm_workers.preloaded():
        start_processes(work, arguments, nprocs=number, start_method="forkserver")  # type: ignore[no-untyped-call]
