"""Machine-hours of a job by kind of machine, and what they cost where prices are given."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

HOURS, COST, TOTAL = "machine_hours", "cost", "total"
KIND_LABELS = ("ray.io/node-group", "ray.io/instance-type")
"""Of a node, by which an autoscaler names its kind."""
_ACCELERATOR = "accelerator_type:"
_HOUR_S = 3600.0


class Machines:
    """Counts, from when it is made, the machines that are there; any thread may ask it."""

    def __init__(self, prices: Mapping[str, float]) -> None:
        """prices: kind -> money an hour."""
        self._prices = prices
        self._seconds = dict[str, float]()
        self._there = Counter[str]()
        """Kind -> machines at the last look."""
        self._looked: float | None = None
        self._since = time.monotonic()
        self._lock = threading.Lock()

    def inherit(self, told: Mapping[str, float]) -> None:
        """Add the hours of earlier attempts."""
        with self._lock:
            for kind, hours in told.items():
                self._seconds[kind] = self._seconds.get(kind, 0.0) + hours * _HOUR_S

    def see(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """A look at `ray.nodes()`: who lives counts until the next one; of the first, from the start on."""
        there = Counter(kind_of(node) for node in nodes if node["Alive"])
        with self._lock:
            if self._looked is None:
                self._looked, self._there = self._since, there
            self._seconds = self._until_now()
            self._looked, self._there = time.monotonic(), there

    def hours(self) -> dict[str, float]:
        """Kind -> hours, until now."""
        with self._lock:
            return {kind: seconds / _HOUR_S for kind, seconds in self._until_now().items()}

    def record(self) -> dict[str, Any]:
        """What run.json has of them, and the lease while they work."""
        hours = {kind: round(each, 6) for kind, each in self.hours().items()}
        return {HOURS: hours} | ({COST: cost_of(hours, self._prices)} if self._prices else {})

    def _until_now(self) -> dict[str, float]:
        passed = 0.0 if self._looked is None else time.monotonic() - self._looked
        kinds = self._seconds | dict.fromkeys(self._there, 0.0)
        return {kind: self._seconds.get(kind, 0.0) + passed * self._there[kind] for kind in kinds}


def kind_of(node: Mapping[str, Any]) -> str:
    """`m5.4xlarge` or what else the autoscaler calls it, else by its resources: `8 CPU + 1 A100`."""
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
    """Kind -> money, and the total; None where a price is not known."""
    cost = {kind: round(each * prices[kind], 6) if kind in prices else None for kind, each in hours.items()}
    known = [money for money in cost.values() if money is not None]
    return cost | {TOTAL: round(sum(known), 6) if len(known) == len(cost) else None}


def hours_in(told: Mapping[str, Any]) -> dict[str, float]:
    """The hours in what a lease or a record tells; empty where it tells none, whatever else stands there."""
    hours = told.get(HOURS)
    if not isinstance(hours, dict):
        return {}
    return {kind: float(each) for kind, each in hours.items() if isinstance(each, int | float) and each >= 0}


def cost_in(told: Mapping[str, Any]) -> dict[str, float | None] | None:
    """What it tells of money, likewise."""
    cost = told.get(COST)
    return cost if isinstance(cost, dict) and TOTAL in cost else None


def outcome_of(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """What the last object of a log in JSON says of a record."""
    return {name: record[name] for name in (*names, HOURS, COST) if name in record}


def hours_line(record: Mapping[str, Any]) -> str:
    """`machine-hours: 1.250 of 16 CPU, 0.050 of 8 CPU + 1 A100; cost 0.31`."""
    named = ", ".join(f"{each:,.3f} of {kind}" for kind, each in record[HOURS].items())
    cost = record.get(COST)
    return f"machine-hours: {named}" + ("" if cost is None else f"; {_money(cost)}")


def _money(cost: Mapping[str, float | None]) -> str:
    if cost[TOTAL] is not None:
        return f"cost {cost[TOTAL]:,.2f}"
    unknown = [kind for kind, money in cost.items() if money is None and kind != TOTAL]
    return f"cost not known: ray.prices has no {', '.join(unknown)}"
