"""Mirror versions and aliases in MLflow's model registry, where MLFLOW_TRACKING_URI is set."""

import os
from typing import Any

from segray.errors import SettingsError
from segray.log import say
from segray.output.names import SCORES
from segray.registry.address import ALIASES
from segray.registry.aliases import Aliases
from segray.registry.registry import Registry
from segray.sources.concurrent_requests import describe
from segray.storage import shown

VARIABLE = "MLFLOW_TRACKING_URI"
_TAG = "segray.version"


def check_mirror() -> None:
    """Raise SettingsError, before work begins, where the variable is set and mlflow is not installed."""
    if not os.environ.get(VARIABLE):
        return
    try:
        from mlflow import MlflowClient  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"{VARIABLE} is set, but mlflow is not installed: uv sync --extra mlflow, or unset it"
        ) from error


def mirror(registry: Registry, model: str, version: str, aliases: Aliases) -> None:
    """Register a version in MLflow and set its aliases; do nothing where the variable is not set.

    segray's own registry is authoritative: an error of MLflow only causes a warning.
    """
    if not os.environ.get(VARIABLE):
        return
    try:
        from mlflow import MlflowClient

        _mirror(MlflowClient(), registry, model, version, aliases)
    except Exception as error:  # noqa: BLE001 - MLflow and its stores raise many types
        say(f"{model}@{version} is not registered in MLflow: {describe(error)}", "warning")


def _mirror(client: Any, registry: Registry, model: str, version: str, aliases: Aliases) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    there = {each.tags.get(_TAG): each.version for each in client.search_model_versions(f"name='{model}'")}
    if version not in there:
        metrics = registry.read_json(model, version, SCORES) or {}
        found = metrics.get("figures") or metrics.get("val") or {}
        tags = {_TAG: version} | {
            f"segray.{name}": f"{value:.6f}" for name, value in found.items() if isinstance(value, float)
        }
        made = client.create_model_version(model, shown(registry.url_of(model, version)), tags=tags)
        there[version] = made.version
    known = client.get_registered_model(model).aliases
    for alias in ALIASES:
        meant = aliases.of(alias)
        if meant in there:
            client.set_registered_model_alias(model, alias, there[meant])
        elif alias in known:
            client.delete_registered_model_alias(model, alias)
