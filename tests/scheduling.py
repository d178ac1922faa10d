"""Two processes of pytest for the whole suite, which waits as much as it computes.

Each has its own session fixtures and so its own Ray. The tests of a file share what they made, so they stay
together; each part that `LONGEST` names is handed out by itself, before the others: none is left at the end.
"""

import pytest
from xdist.scheduler import LoadScopeScheduling

WORKERS = 2
"""A Ray with a training or a model takes up to 6 GB of memory, and two of them fill two cores."""

LONGEST: tuple[str, ...] = ()
"""Beginnings of test names, longest first."""


def workers(config: pytest.Config) -> int:
    """How many processes `-n auto` gives: none for files, names and failed tests, which start at once so."""
    option = config.option
    chosen = option.keyword or option.markexpr or option.lf or option.collectonly or option.capture == "no"
    whole = all((config.invocation_params.dir / each).is_dir() for each in config.args)
    return WORKERS if whole and not chosen else 0


def part(name: str) -> str:
    """What a test is handed out with: its part of `LONGEST`, else its file."""
    return next((begin for begin in LONGEST if name.startswith(begin)), name.partition("::")[0])


def longest_first(items: list[pytest.Item]) -> None:
    """Sort in place; what is not in `LONGEST` keeps its order, at the end."""
    items.sort(key=lambda item: _rank(part(item.nodeid)))


def _rank(name: str) -> int:
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]
    """One part after the other, to the process that is free."""

    def _split_scope(self, nodeid: str) -> str:
        return part(nodeid)
