"""Ray's private names outside `own_ray`, each guarded: a release without one costs speed, never the job.

`pyproject.toml` bounds the tested releases; check this file and `own_ray` before you raise the bound.
"""

import importlib
from pathlib import Path
from typing import Any

NAMES = {
    "poll": "ray.data._internal.execution.streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S",
    "callback": "ray.data._internal.execution.execution_callback.ExecutionCallback",
    "datasets": "ray.train.v2._internal.callbacks.DatasetsCallback",
    "placement": "ray.train.v2._internal.callbacks.placement_group_callback.PlacementGroupCleanerCallback",
    "backend": "ray.train.torch.config._TorchBackend",
    "put": "ray.experimental.internal_kv._internal_kv_put",
    "get": "ray.experimental.internal_kv._internal_kv_get",
    "print": "ray._private.worker.print_to_stdstream",
}


def find(name: str) -> Any:
    """Return the object that one of NAMES refers to; None where this Ray does not have it."""
    module, _, attribute = NAMES[name].rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return None


def _replace(name: str, value: object) -> None:
    module, _, attribute = NAMES[name].rpartition(".")
    if find(name) is not None:
        setattr(importlib.import_module(module), attribute, value)


def poll_every(seconds: float) -> None:
    """Set the polling interval of Ray Data's scheduler for finished tasks, in this process, in seconds."""
    _replace("poll", seconds)


def print_with(function: Any) -> None:
    """Let `function(data, ignore_prefix)` print the output of Ray's workers, in this process."""
    _replace("print", function)


def idle_train_callbacks() -> tuple[type, ...]:
    """Return the types of Ray Train's callbacks that start an actor which segray does not use."""
    return tuple(filter(None, map(find, ("datasets", "placement"))))


def put(namespace: str, key: str, value: str) -> None:
    """Store a text in the key-value store of Ray's head, for all processes of this Ray."""
    if (write := find("put")) is not None:
        write(key, value, namespace=namespace)


def get(namespace: str, key: str) -> str | None:
    """Return what `put` stored; None where it stored nothing."""
    read = find("get")
    value = None if read is None else read(key, namespace=namespace)
    return None if value is None else value.decode()


def job_config() -> Any:
    """Return a job config whose workers import this package, but nothing from the working directory."""
    import ray.job_config

    import segray

    class _Fixed(list[str]):
        def extend(self, _: Any) -> None:
            """Ignore what Ray adds: the folder of the script and the working directory."""

    config = ray.job_config.JobConfig()
    config._py_driver_sys_path = _Fixed([str(Path(segray.__file__).parents[1])])
    return config
