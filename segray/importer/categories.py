"""Classes of the file -> those of the run: by name, else new ones."""

from collections.abc import Iterable, Mapping

from segray.errors import ItemError


class Categories:
    """Class ids and names; names are compared with blanks and line breaks joined, as some formats do."""

    def __init__(self, known: Mapping[int, str], *, may_lack: bool = False) -> None:
        """may_lack: an annotation without a class is of the only class of the run, or that is declared."""
        self._names = dict(known)
        self._ids = {_plain(name): number for number, name in known.items()}
        self._known = frozenset(known)
        self._declared, self._may_lack = set(known), may_lack
        self.used = set[int]()

    def declare(self, entries: Iterable[tuple[int | None, str]]) -> None:
        """Take the classes of the file: id (None: it has none) and name."""
        for number, name in entries:
            if _plain(name) not in self._ids:
                self._add(number, name)
            self._declared.add(self._ids[_plain(name)])

    def of(self, name: str | None, number: int | None) -> tuple[int, str]:
        """Return id and name of an annotation's class. Raises ItemError where it has none."""
        if name is not None and name.strip():
            if _plain(name) not in self._ids:
                self._add(number, name)
            found = self._ids[_plain(name)]
            if number in self._known and number != found:
                other = self._names[number]
                raise ItemError("unsupported", f"category_id {number} is {other}, not {name}: change both")
        elif number is not None and number in self._names:
            found = number
        elif number is None and self._may_lack and len(self._declared) == 1:
            (found,) = self._declared
        else:
            what = "it has no class" if number is None else f"class {number} has no name"
            raise ItemError("unsupported", what)
        self.used.add(found)
        return found, self._names[found]

    def new(self) -> dict[int, str]:
        """Return the classes that occur and the run does not have."""
        return {number: self._names[number] for number in sorted(self.used - self._known)}

    def _add(self, number: int | None, name: str) -> None:
        if number is None or number in self._names:
            number = max(self._names, default=0) + 1
        self._names[number] = name
        self._ids[_plain(name)] = number


def _plain(name: str) -> str:
    return " ".join(name.split())
