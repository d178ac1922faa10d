"""An output's identity: the settings that its results depend on. It accepts one identity only."""

from typing import Any

from segray.bulk.task import BulkTask, Model
from segray.errors import SettingsError
from segray.run import check_same


def identity_of(task: BulkTask, model: Model, precision: str) -> dict[str, Any]:
    """Return the settings that results depend on; never workers, batch size or reject limit.

    Raises SettingsError for settings that do not fit the model.
    """
    settings = task.settings
    return {
        "format": 2,
        "model": model.name,
        "model_digest": model.digest,
        "precision": precision,
        **task.identity(model, precision),
        "max_pixels": settings.max_pixels,
        "tile": settings.tile,
        "overlap": settings.overlap,
        "tile_above": settings.tile_above,
        "bands": settings.bands,
        "resolution": settings.resolution,
        "scaling": settings.scaling,
        "crs": settings.crs,
        "include": settings.include or None,  # finished archives are not read again
        "exclude": settings.exclude or None,
        "asset": settings.asset,
        "keep_columns": settings.keep_columns or None,
        "location": None if settings.location else False,  # as in outputs of earlier versions
    }


def check_identity(there: Any, here: dict[str, Any], output: str) -> None:
    """Raise SettingsError with every difference when the output was made with other settings."""
    if not isinstance(there, dict):
        raise SettingsError(f"output: {output} holds items, but its _segray/plan.json is gone or damaged")
    names = [name for name in here if name not in ("model", "model_digest")]
    if there.get("model_digest") != here.get("model_digest"):
        there, here = ({**each, "weights": _model(each)} for each in (there, here))
        names = ["weights", *names]
    check_same(there, here, names, output, "made")


def _model(identity: dict[str, Any]) -> str:
    return f"{identity.get('model')} (sha256 {str(identity.get('model_digest'))[:12]})"
