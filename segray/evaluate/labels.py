"""Pairs of images and labels for scoring: which split, and by which rules their labels are read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from segray.data.label_sample import decide_from
from segray.data.labels import LabelRules, colour_rules
from segray.data.pairs import Pair, Pairs
from segray.errors import SettingsError
from segray.evaluate.compare_pairs import Problem
from segray.evaluate.settings import EvaluateSettings
from segray.sources.item import Source


@dataclass(frozen=True, slots=True)
class Chosen:
    """The pairs of a split, and problems of others that may be in it."""

    pairs: list[Pair]
    problems: list[Problem]


def label_rules(
    settings: EvaluateSettings, labels: Sequence[Source], names: Sequence[str] | None
) -> tuple[LabelRules, tuple[str, ...], str]:
    """Return (how labels are read, names of the classes, why).

    Raises SettingsError for indices without `names` and for rules that contradict each other.
    """
    if settings.colours:
        known = tuple(names or ("background", "foreground"))
        rules = colour_rules(settings.colours, known, settings.values, settings.void)
        return rules, known, f"labels are {len(settings.colours)} colours, as the settings say"
    if settings.volumes:
        values = "indices" if settings.values == "auto" else settings.values
        known = tuple(names or ("background", "foreground"))
        return LabelRules(len(known), values, tuple(settings.void)), known, f"label volumes hold {values}"
    if settings.values == "auto":
        decision = decide_from(labels, settings.max_pixels, settings.storage, tuple(settings.void))
        values, reason = decision.values, decision.reason
    else:
        values, reason = settings.values, "as the settings say"
    if values == "indices" and not names:
        raise SettingsError(f"classes: set the names of the labels' classes, from 0 up ({reason})")
    known = tuple(names) if names else ("background", "foreground")
    rules = LabelRules(len(known), values, tuple(settings.void))
    return rules, known, f"labels are {values}: {reason}"


def choose(listed: Pairs, split: str) -> Chosen:
    """Return the pairs that the data put into `split`; `all`: all of them.

    Rejected ones of an unknown split may be in it: they are problems, too. A pair that is listed twice is
    one.
    """
    rejected = [one for one in listed.rejected if one.reason != "listed_twice"]
    problems = [Problem(one.uri, one.error) for one in rejected if split in ("all", one.split or split)]
    return Chosen([pair for pair in listed.pairs if split in ("all", pair.split)], problems)


def split_sizes(listed: Pairs) -> str:
    """Return text such as `120 train, 20 test, 7 of no split`."""
    sizes = Counter(pair.split or "of no split" for pair in listed.pairs)
    return ", ".join(f"{number:,} {split}" for split, number in sorted(sizes.items()))
