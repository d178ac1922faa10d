"""The workers' process group, on one address: torch's own store listens on all of them, without a key."""

import importlib
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import ray
import torch
from ray.train.torch import TorchConfig
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from segray.log import say
from segray.ray_private import find

_TorchBackend: Any = find("backend") or object
_HANDLERS = "_rendezvous_handlers"
"""Torch's private table of rendezvous functions, by the scheme of the address."""


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_use_one_address)
        super().on_start(worker_group, backend_config)


class OneAddressConfig(TorchConfig):
    """Ray's configuration, but rank 0 listens on its node's address alone: loopback for a Ray of our own."""

    @property
    def backend_cls(self) -> Any:
        """Return the backend class that Ray expects."""
        if _TorchBackend is object or not hasattr(_rendezvous_module(), _HANDLERS):
            say(
                f"ray {ray.__version__}, torch {torch.__version__}: training listens on all addresses",
                "warning",
            )
            return super().backend_cls
        return _Backend


def _use_one_address() -> None:
    """Register the rendezvous in each worker, before the group is made: torch has no setting for it."""
    getattr(_rendezvous_module(), _HANDLERS)["env"] = _rendezvous


def _rendezvous_module() -> Any:
    return importlib.import_module("torch.distributed.rendezvous")  # its function has the same name


def _rendezvous(
    url: str, timeout: timedelta = timedelta(minutes=30), **_: Any
) -> Iterator[tuple[Store, int, int]]:
    """Yield (store, rank, world size), like torch's `env://` (torch/distributed/rendezvous.py)."""
    query = parse_qs(urlsplit(url).query)
    rank, world_size = (int(query[name][0]) for name in ("rank", "world_size"))
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listening = _listen(host, port) if rank == 0 else None
    yield (
        TCPStore(host, port, world_size, rank == 0, timeout, master_listen_fd=listening),
        rank,
        world_size,
    )
    raise RuntimeError("the group cannot be made again")


def _listen(host: str, port: int) -> int:
    """Return a listening socket's descriptor, which the store closes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError:  # an address behind NAT does not belong to this machine
        listening.bind(("", port))
    listening.listen(2048)
    return listening.detach()
