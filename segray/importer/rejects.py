"""What an import leaves out, each named with its reason: in a CSV file, the first ones on the screen."""

import csv
from pathlib import Path

COLUMNS = ("image", "annotation", "reason")
_SHOWN = 10


class Rejects:
    """Annotations that cannot be drawn, and images that are not placed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rejects.csv"
        self._file = self.path.open("w", newline="", encoding="utf-8")
        self._out = csv.writer(self._file)
        self._out.writerow(COLUMNS)
        self.lines: list[str] = []
        """The first ones, for the screen."""
        self.of_annotations = self.of_images = 0
        self.not_looked_at = 0
        """Tasks without an annotation, which are no rejects."""
        self.without_outline = 0
        """Images of the run of which a vector file has none; likewise."""

    def annotation(self, image: str, where: str, reason: str) -> None:
        """Note an annotation that is left out."""
        self.of_annotations += 1
        self._note(image, where, reason)

    def annotations(self, number: int, image: str, what: str) -> None:
        """Note several that have no names."""
        self.of_annotations += number
        self._note(image, f"{number:,}", what)

    def image(self, name: str, reason: str) -> None:
        """Note an image that is not placed, and so all in it."""
        self.of_images += 1
        self._note(name, "", reason)

    def _note(self, image: str, where: str, reason: str) -> None:
        self._out.writerow((image, where, reason))
        if len(self.lines) < _SHOWN:
            self.lines.append(f"{image}{': ' * bool(where)}{where}: {reason}")

    @property
    def total(self) -> int:
        """How many there are."""
        return self.of_annotations + self.of_images

    def close(self) -> None:
        """Write all of them to the file."""
        self._file.close()
