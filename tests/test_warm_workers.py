"""The tests' own workers are different ones, as Ray's are."""

import os
from typing import Any

import ray


def test_each_has_random_numbers_of_its_own(ray_session: None) -> None:
    def drawn() -> tuple[int, str, bytes]:
        return os.getpid(), ray.ObjectRef.from_random().hex(), os.urandom(8)

    class Drawing:
        def drawn(self) -> tuple[int, str, bytes]:
            return drawn()

    made: Any = ray.remote(num_cpus=0)(Drawing)
    actors = [made.remote() for _ in range(3)]
    found = ray.get([actor.drawn.remote() for actor in actors])
    assert [len(set(column)) for column in zip(*found, strict=True)] == [3, 3, 3]
