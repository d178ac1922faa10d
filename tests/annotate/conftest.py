"""One Ray for all tests that do not kill it."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray that `segray annotate`, called in this process, finds running."""
    from segray.annotate.job import RAY_ENVIRONMENT

    os.environ.update(RAY_ENVIRONMENT)
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=400 << 20)
    yield
    ray.shutdown()
