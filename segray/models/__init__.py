"""Models: one file per architecture, the model file's format, and the models that come with segray."""

from pathlib import Path

BUNDLED_FOLDER = Path(__file__).parent / "bundled"


def bundled_models() -> dict[str, Path]:
    """Return the name -> path of the model files in the package, in order."""
    return {path.stem: path for path in sorted(BUNDLED_FOLDER.glob("*.pt"))}
