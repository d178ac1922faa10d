"""Compare two versions: scores, settings, and the labels on which they were trained."""

import io
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from segray.output.names import RUN, SCORES
from segray.registry.registry import SNAPSHOT, Registry


def difference(registry: Registry, one: tuple[str, str], other: tuple[str, str]) -> dict[str, Any]:
    """Return the differences of two versions, each (model, version): `metrics`, `settings`, `labels`.

    Raises JobFailedError where a record is damaged.
    """
    metrics = [_plain(registry.read_json(*each, SCORES) or {}) for each in (one, other)]
    settings = [_plain((registry.read_json(*each, RUN) or {}).get("settings") or {}) for each in (one, other)]
    return {
        "versions": ["@".join(one), "@".join(other)],
        "metrics": _differing(*metrics),
        "settings": _differing(*settings),
        "labels": _labels(registry, one, other),
    }


def difference_lines(record: Mapping[str, Any]) -> list[str]:
    """Return the differences as lines of text."""
    lines = [" against ".join(record["versions"])]
    for what in ("metrics", "settings"):
        lines += [f"{what}:", *(f"  {name}: {a} | {b}" for name, (a, b) in record[what].items())]
    labels = record["labels"]
    if labels is None:
        return [*lines, "labels: one of the two versions has no snapshot"]
    return [*lines, "labels: " + ", ".join(f"{number:,} {what}" for what, number in labels.items())]


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = dict.fromkeys([*one, *other])
    return {name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)}


def _plain(found: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return a nested record as dotted names -> values."""
    plain: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            plain |= _plain(value, f"{before}{name}.")
        elif not isinstance(value, list):
            plain[before + name] = value
    return plain


def _labels(registry: Registry, one: tuple[str, str], other: tuple[str, str]) -> dict[str, int] | None:
    rows = []
    for each in (one, other):
        if (data := registry.read(*each, SNAPSHOT)) is None:
            return None
        table = pq.read_table(io.BytesIO(data), columns=["address", "label_digest"])
        rows.append(dict(zip(table["address"].to_pylist(), table["label_digest"].to_pylist(), strict=True)))
    first, second = rows
    shared = first.keys() & second.keys()
    return {
        "added": len(second.keys() - first.keys()),
        "removed": len(first.keys() - second.keys()),
        "changed": sum(first[address] != second[address] for address in shared),
    }
