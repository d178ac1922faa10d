"""Models: one file an architecture, the file format that stores them, and the ones that come with segray."""

from pathlib import Path

BUNDLED_FOLDER = Path(__file__).parent / "bundled"


def bundled_models() -> dict[str, Path]:
    """Return the names of the model files in the package, in order, and where they lie."""
    return {path.stem: path for path in sorted(BUNDLED_FOLDER.glob("*.pt"))}
