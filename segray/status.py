"""`segray status`: state of a run, live or finished, from the files in its output folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from segray.errors import ExitCode, JobFailedError, NothingToDoError
from segray.log import answer
from segray.machines import COST, HOURS, cost_in, hours_in, hours_line
from segray.output.lease import NAME as LEASE
from segray.output.lease import Holder, told_in
from segray.output.names import METRICS, PLAN, RUN, SCORES
from segray.output.progress import clock, pace
from segray.output.store import Store
from segray.settings import StatusSettings
from segray.storage import StorageSettings, shown

READS = 5
"""Attempts to list the commits of a live run, which merges them meanwhile."""
AGAIN = "run the same command again to continue"

T = TypeVar("T")

_FINISHED, _RUNNING, _HELD, _KILLED, _STOPPED = "finished", "running", "held", "killed", "stopped"


@dataclass(frozen=True, slots=True)
class Status:
    """State, progress, rate and cost of a run."""

    run: str
    """Address, without credentials."""
    verb: str
    state: str
    """`finished`; `running`: its process is alive on this machine; `held`: by a process of another machine,
    which cannot be checked from here; `killed`: its process is gone; `stopped`: it ended before the end."""
    attempts: int = 0
    """Number of starts that acquired the lease of the output."""
    holder: dict[str, Any] | None = None
    """Host, process, and time of the lease's last renewal by that host's clock; None without a lease."""
    counts: dict[str, Any] = field(default_factory=dict)
    """`done`, `total`, `left` (null: not known yet), `rejected`, `instances`; epochs, or rounds."""
    rate: float | None = None
    """Images a second."""
    machine_hours: dict[str, float] = field(default_factory=dict)
    """Kind of machine -> hours, over all attempts."""
    cost: dict[str, float | None] | None = None
    """Kind of machine -> money, and `total`; None where the run has no prices (`ray.prices`)."""


def show(settings: StatusSettings, as_json: bool) -> ExitCode:
    """Print the state of a run.

    Raises NothingToDoError where there is no run, JobFailedError where its files cannot be read.
    """
    found = status_of(settings.run[0], settings.storage)
    answer([json.dumps(asdict(found), indent=2)] if as_json else lines(found))
    return ExitCode.DONE


def status_of(run: str, storage: StorageSettings) -> Status:
    """Read the state of a run.

    Raises NothingToDoError where there is no run, JobFailedError where its files cannot be read.
    """
    store = Store(run, storage)
    plan, record, scores = (store.read_json(name) for name in (PLAN, RUN, SCORES))
    if not any(isinstance(each, dict) for each in (plan, record, scores)):
        raise NothingToDoError(f"{shown(run)}: no segray run found there")
    if plan is None and record is None:
        return Status(shown(run), "evaluate", _FINISHED, counts={"metrics": scores.get("metrics")})
    try:
        return _read(store, shown(run), plan, record)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise JobFailedError(
            f"{shown(run)}: {RUN}, {METRICS} or {LEASE} is damaged ({type(error).__name__}: "
            f"{error}); the tables are still readable, and running the same command again rewrites the file"
        ) from error


def _read(store: Store, run: str, plan: Any, record: Any) -> Status:
    found = store.read_versioned(LEASE)
    lease = Holder() if found is None else Holder.of(found.data)
    live = {} if found is None else told_in(found.data)
    verb = _verb(plan, record)
    holder = None if found is None or lease.released else _holder(lease, found.data)
    count = {"train": _epochs, "retrain": _rounds, "compare": _models}.get(verb, _items)
    counts, rate = count(store, record, live)
    is_over = not counts["left"] if verb == "retrain" else isinstance(record, dict)
    state = _state(is_over, found is not None, lease)
    worked = record if isinstance(record, dict) and HOURS in record else live
    hours, cost = hours_in(worked), cost_in(worked)
    return Status(run, verb, state, lease.generation, holder, counts, rate, hours, cost)


def lines(found: Status) -> Sequence[str]:
    """Return the state of a run as lines of text."""
    worked = {HOURS: found.machine_hours, COST: found.cost}
    return [*_progress(found), *([f"  {hours_line(worked)}"] if found.machine_hours else [])]


def _progress(found: Status) -> Sequence[str]:
    counts, holder = found.counts, found.holder
    attempts = f"; started {found.attempts} times" if found.attempts > 1 else ""
    who = host = at = ""
    if holder is not None:
        who, host, at = f"process {holder['pid']}", holder["host"], holder["renewed_at"]
    where = {
        _FINISHED: "finished",
        _RUNNING: f"running: {who} on this machine",
        _HELD: f"held by {who} on {host}, which renewed it at {at} by its clock",
        _KILLED: f"killed: {who} on this machine is gone; {AGAIN}",
        _STOPPED: f"stopped before it was done; {AGAIN}",
    }[found.state]
    head = [f"{found.run}: {found.verb}, {where}{attempts}"]
    if found.verb == "evaluate":
        return head + [f"  {name} {value}" for name, value in (counts["metrics"] or {}).items()]
    if found.verb == "train":
        of = "" if counts["total"] is None else f" of {counts['total']:,}"
        best = f"; best: epoch {counts['best']}" if counts.get("best") else ""
        return [*head, f"  {counts['done']:,}{of} epochs{best}{_pace(found.rate)}"]
    if found.verb == "retrain":
        last = "promoted" if counts["promoted"] else "refused"
        ended = f"; last round: {last} {counts['model']}@{counts['version']}" if counts["version"] else ""
        return [*head, f"  {counts['done']:,} of {counts['total']:,} rounds done{ended}"]
    of = "" if counts["total"] is None else f" of {counts['total']:,}"
    if found.verb == "compare":
        return [*head, f"  {counts['done']:,}{of} models scored"]
    parts = [f"{counts['done']:,}{of} items", f"{counts['rejected']:,} rejected"]
    parts += [f"{counts['instances']:,} instances"] if found.verb == "annotate" else []
    left = counts["left"]
    ends = f", {clock(left / found.rate)} left" if found.rate and left and holder else ""
    return [*head, f"  {', '.join(parts)}{_pace(found.rate)}{ends}"]


def _pace(rate: float | None) -> str:
    return f"; {pace(rate)}" if rate else ""


def _verb(plan: Any, record: Any) -> str:
    """Return the verb of a run; older versions did not record it, so derive it from the plan."""
    for each in (record, plan):
        if isinstance(each, dict) and isinstance(each.get("verb"), str):
            return str(each["verb"])
    return "train" if "data" in (plan if isinstance(plan, dict) else record) else "annotate"


def _state(is_over: bool, held: bool, lease: Holder) -> str:
    if not held or lease.released:
        return _FINISHED if is_over else _STOPPED
    if lease.is_of_this_machine:
        return _RUNNING if lease.is_running else _FINISHED if is_over else _KILLED
    return _HELD


def _holder(lease: Holder, data: bytes) -> dict[str, Any]:
    renewed_at = json.loads(data).get("renewed_at") if lease.run_id else None
    return {"host": lease.host, "pid": lease.pid, "run_id": lease.run_id, "renewed_at": renewed_at}


def _items(store: Store, record: Any, live: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """Return (counts, images a second) of a bulk run: from run.json, else from its commits and its lease."""
    if isinstance(record, dict) and isinstance(record.get("counts"), dict):
        known = record["counts"]
        done = {"done": known["items"], "total": known["items"], "left": 0}
        more = {name: known[name] for name in ("rejected", "instances", "vanished")}
        return done | more, record["rates"]["images_per_s"]
    items, rejected, instances = _read_again(lambda: _committed(store))
    total = live.get("total")
    left = None if total is None else max(0, total - items)
    counts = {"done": items, "total": total, "left": left, "rejected": rejected, "instances": instances}
    return counts, live.get("images_per_s")


def _read_again(read: Callable[[], T]) -> T:
    """Repeat a read while files vanish between listing and reading: a live run merges its commits."""
    for _ in range(READS):
        try:
            return read()
        except JobFailedError as error:
            if " is gone" not in str(error):
                raise
    return read()


def _committed(store: Store) -> tuple[int, int, int]:
    """Return (items, rejected items, instances) of all commits; an item that was done again counts once."""
    ids, rejected, instances = [np.empty(0, "S32")], [np.empty(0, bool)], [np.empty(0, np.int64)]
    for part in store.parts():  # 41 bytes an item: a dictionary of ten million would take gigabytes
        for batch in store.ledger(part, ["status", "instances"]):
            ids.append(np.array(batch["image_id"].to_pylist(), "S32"))
            rejected.append(np.array([status == "rejected" for status in batch["status"].to_pylist()], bool))
            instances.append(np.array([number or 0 for number in batch["instances"].to_pylist()], np.int64))
    _, newest = np.unique(np.concatenate(ids)[::-1], return_index=True)
    bad, found = (np.concatenate(each)[::-1][newest] for each in (rejected, instances))
    return len(newest), int(bad.sum()), int(found.sum())


def _rounds(store: Store, record: Any, live: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """Return (counts, None) of a retraining: rounds done and begun, and the result of the last one done."""
    from segray.retrain.rounds import rounds

    found = rounds(store, store.root)
    over, begun = sum(each.is_over for each in found), sum(each.is_begun for each in found)
    last = record if isinstance(record, dict) else {}
    ended = {name: last.get(name) for name in ("model", "version", "promoted")}
    return {"done": over, "total": begun, "left": begun - over, **ended}, None


def _models(store: Store, record: Any, live: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """Return (counts, None) of a comparison: models that are scored, and images in no score."""
    if isinstance(record, dict):
        known = record["counts"]
        return {
            "done": known["models"],
            "total": known["models"],
            "left": 0,
            "rejected": known["rejected"],
        }, None
    done, total = live.get("done", 0), live.get("total")
    return {"done": done, "total": total, "left": None if total is None else total - done}, None


def _epochs(store: Store, record: Any, live: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """Return (counts, images a second) of a training: epochs done, total and left, and the best one."""
    rows = [json.loads(line) for line in (store.read(METRICS) or b"").splitlines()]
    done = rows[-1]["epoch"] if rows else 0
    total = record["epochs"] if isinstance(record, dict) else live.get("total")
    best = record["best"]["epoch"] if isinstance(record, dict) else None
    left = None if total is None else max(0, total - done)
    rate = rows[-1].get("images_per_s") if rows else None
    return {"done": done, "total": total, "left": left, "best": best}, rate
