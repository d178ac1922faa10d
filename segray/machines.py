"""Machine-hours of a job by kind of machine, and their cost where prices are given."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

HOURS, COST, TOTAL = "machine_hours", "cost", "total"
KIND_LABELS = ("ray.io/node-group", "ray.io/instance-type")
"""Ray node labels with which an autoscaler names the kind of a node."""
_ACCELERATOR = "accelerator_type:"
_HOUR_S = 3600.0


class Machines:
    """Count the live machines from construction on; safe to read from any thread."""

    def __init__(self, prices: Mapping[str, float]) -> None:
        """Start counting at these prices (kind -> money an hour)."""
        self._prices = prices
        self._seconds = dict[str, float]()
        self._alive = Counter[str]()
        """Kind -> machines alive at the last poll."""
        self._polled: float | None = None
        self._since = time.monotonic()
        self._lock = threading.Lock()

    def inherit(self, earlier: Mapping[str, float]) -> None:
        """Add the hours (kind -> hours) of earlier attempts."""
        with self._lock:
            for kind, hours in earlier.items():
                self._seconds[kind] = self._seconds.get(kind, 0.0) + hours * _HOUR_S

    def see(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Record a poll of `ray.nodes()`: live nodes count until the next one; the first, from the start."""
        alive = Counter(kind_of(node) for node in nodes if node["Alive"])
        with self._lock:
            if self._polled is None:
                self._polled, self._alive = self._since, alive
            self._seconds = self._until_now()
            self._polled, self._alive = time.monotonic(), alive

    def hours(self) -> dict[str, float]:
        """Return kind -> hours, until now."""
        with self._lock:
            return {kind: seconds / _HOUR_S for kind, seconds in self._until_now().items()}

    def record(self) -> dict[str, Any]:
        """Return the fields for run.json and, during the run, for the lease."""
        hours = {kind: round(each, 6) for kind, each in self.hours().items()}
        return {HOURS: hours} | ({COST: cost_of(hours, self._prices)} if self._prices else {})

    def _until_now(self) -> dict[str, float]:
        passed = 0.0 if self._polled is None else time.monotonic() - self._polled
        kinds = self._seconds | dict.fromkeys(self._alive, 0.0)
        return {kind: self._seconds.get(kind, 0.0) + passed * self._alive[kind] for kind in kinds}


def kind_of(node: Mapping[str, Any]) -> str:
    """Return the autoscaler's name for the node (`m5.4xlarge`), else its resources: `8 CPU + 1 A100`."""
    labels, resources = node.get("Labels") or {}, node["Resources"]
    for label in KIND_LABELS:
        if labels.get(label):
            return str(labels[label])
    parts = [f"{resources.get('CPU', 0):g} CPU"]
    if gpus := resources.get("GPU", 0):
        named = (name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR))
        parts.append(f"{gpus:g} {next(named, 'GPU')}")
    return " + ".join(parts)


def cost_of(hours: Mapping[str, float], prices: Mapping[str, float]) -> dict[str, float | None]:
    """Return kind -> money, and the total; None where a price is not known."""
    cost = {kind: round(each * prices[kind], 6) if kind in prices else None for kind, each in hours.items()}
    known = [money for money in cost.values() if money is not None]
    return cost | {TOTAL: round(sum(known), 6) if len(known) == len(cost) else None}


def hours_in(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the machine-hours in a lease or run record; empty where they are missing or malformed."""
    hours = record.get(HOURS)
    if not isinstance(hours, dict):
        return {}
    return {kind: float(each) for kind, each in hours.items() if isinstance(each, int | float) and each >= 0}


def cost_in(record: Mapping[str, Any]) -> dict[str, float | None] | None:
    """Return the cost in a lease or run record; None where it is missing or malformed."""
    cost = record.get(COST)
    return cost if isinstance(cost, dict) and TOTAL in cost else None


def outcome_of(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the fields of a record that the last object of a JSON log repeats."""
    return {name: record[name] for name in (*names, HOURS, COST) if name in record}


def hours_line(record: Mapping[str, Any]) -> str:
    """Return a line like `machine-hours: 1.250 of 16 CPU, 0.050 of 8 CPU + 1 A100; cost 0.31`."""
    named = ", ".join(f"{each:,.3f} of {kind}" for kind, each in record[HOURS].items())
    cost = record.get(COST)
    return f"machine-hours: {named}" + ("" if cost is None else f"; {_money(cost)}")


def _money(cost: Mapping[str, float | None]) -> str:
    if cost[TOTAL] is not None:
        return f"cost {cost[TOTAL]:,.2f}"
    unknown = [kind for kind, money in cost.items() if money is None and kind != TOTAL]
    return f"cost not known: ray.prices has no {', '.join(unknown)}"
