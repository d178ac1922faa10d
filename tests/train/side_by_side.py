"""Processes side by side, forked from one that has imported torch: each new Python takes 5 to 8 seconds."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing.spawn import start_processes

_FILES = ("test_losses", "test_ranks", "test_instances")
"""Which start some; `scheduling` hands them to one process of pytest, so there is one server."""


def run_side_by_side(work: Callable[..., None], arguments: tuple[Any, ...], number: int) -> None:
    """`work(rank, *arguments)` in so many processes, to their end. Raises what one of them raised."""
    multiprocessing.set_forkserver_preload([f"tests.train.{name}" for name in _FILES])
    start_processes(work, arguments, nprocs=number, start_method="forkserver")  # type: ignore[no-untyped-call]
