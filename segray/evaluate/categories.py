"""Map the category of a prediction to that of the labels, by name or by number."""

from collections import Counter

from segray.errors import SettingsError


class CategoryMap:
    """Maps the category of a prediction to that of the labels.

    `name`: to the one of the same name, ignoring case and number. `id`: to the one of the same number,
    ignoring names.
    """

    def __init__(self, truth: dict[int, str], by: str) -> None:
        """Raise SettingsError where two categories of the labels have the same name and names decide."""
        self.by, self.known = by, 0
        self.unknown: Counter[str] = Counter()
        """Number of predicted instances by category that the labels lack."""
        self._truth = truth
        self._ids = {plain_name(name): number for number, name in truth.items()}
        if by == "name" and len(self._ids) < len(truth):
            raise SettingsError("labels: two categories have the same name; set categories to id")

    def of(self, number: int, name: str | None) -> int | None:
        """Return the label category of a prediction; None for one that the labels lack."""
        found = self._ids.get(plain_name(name or "")) if self.by == "name" else number
        if found not in self._truth:
            self.unknown[name or str(number)] += 1
            return None
        self.known += 1
        return found

    def check(self) -> None:
        """Raise SettingsError where predictions have categories of which the labels have none."""
        if self.unknown and not self.known:
            names = [name if self.by == "name" else str(number) for number, name in self._truth.items()]
            both = f"predictions hold {_some(list(self.unknown))}, labels {_some(names)}"
            advice = "; set categories to id to compare their numbers" if self.by == "name" else ""
            raise SettingsError(f"categories: {both}: no {self.by} in common{advice}")


def plain_name(name: str) -> str:
    """Return a name as names are compared: without case and surplus spaces."""
    return " ".join(name.split()).casefold()


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
