"""Shards of images, matched by tasks on Ray; what each needs travels with it, so machines share no disk."""

from collections.abc import Iterable, Iterator
from typing import Any

import ray

from segray.errors import JobFailedError
from segray.evaluate.score_shard import Shard, ShardScores, score_shard
from segray.evaluate.settings import EvaluateSettings
from segray.run import on_ray

_RETRIES = 3
"""Times that a shard is matched again when its process or machine died."""


def score_shards(jobs: Iterable[tuple[bytes, Shard]], settings: EvaluateSettings) -> Iterator[ShardScores]:
    """Yield the scores of all shards as they come; two for each CPU are under way.

    Raises JobFailedError where a process keeps dying, SettingsError where there is no such cluster.
    """
    with on_ray(settings, lambda: None) as ray_start:
        most = 2 * max(1, int(ray_start.cluster().cpus))
        task: Any = ray.remote(num_cpus=1, max_retries=_RETRIES)(score_shard)
        running: list[Any] = []
        for job in jobs:
            if len(running) >= most:
                yield from _finished(running)
            running.append(task.remote(*job))
        while running:
            yield from _finished(running)


def _finished(running: list[Any]) -> Iterator[ShardScores]:
    """Wait for one task, and yield its scores."""
    (done,), running[:] = ray.wait(running, num_returns=1)
    try:
        yield ray.get(done)
    except ray.exceptions.RayError as error:
        raise JobFailedError(f"a process that matches images died: {error}; run the command again") from error
