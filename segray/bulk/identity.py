"""Which settings make an output what it is: another identity may not write into it."""

from typing import TYPE_CHECKING, Any

from segray.errors import SettingsError
from segray.settings import AnnotateSettings

if TYPE_CHECKING:
    from segray.models.weights import LoadedModel


def identity_of(settings: AnnotateSettings, model: "LoadedModel", precision: str) -> dict[str, Any]:
    """What results depend on; never workers, batch size or reject limit.

    Raises SettingsError for `proposals` with a model that is no Mask R-CNN of torchvision's.
    """
    if settings.proposals is not None:
        from segray.annotate.detector import is_plain_maskrcnn

        if not is_plain_maskrcnn(model.module):
            raise SettingsError(f"proposals: {model.name} is no Mask R-CNN of torchvision's: leave it out")
    return {
        "format": 2,
        "model": model.name,
        "model_digest": model.digest,
        "score_threshold": settings.score_threshold,
        "precision": precision,
        "proposals": settings.proposals,
        "max_pixels": settings.max_pixels,
        "tile": settings.tile,
        "overlap": settings.overlap,
        "tile_above": settings.tile_above,
        "bands": settings.bands,
        "resolution": settings.resolution,
        "scaling": settings.scaling,
        "crs": settings.crs,
    }


def check_identity(there: Any, here: dict[str, Any], output: str) -> None:
    """Raise SettingsError naming every difference when the output was made with other settings."""
    if not isinstance(there, dict):
        raise SettingsError(f"output: {output} holds items, but its _segray/plan.json is gone or damaged")
    names = [name for name in here if name != "model" and there.get(name) != here[name]]
    if not names:
        return
    told = []
    for name in names:
        if name == "model_digest":
            told.append(f"  weights: {_model(there)} there, {_model(here)} now")
        else:
            told.append(f"  {name}: {there.get(name)} there, {here[name]} now")
    raise SettingsError(
        f"output: {output} was made with other settings; use another --output, or the same settings:",
        *told,
    )


def _model(identity: dict[str, Any]) -> str:
    return f"{identity.get('model')} (sha256 {str(identity.get('model_digest'))[:12]})"
