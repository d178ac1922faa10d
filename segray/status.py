"""`segray status`: what became of a run, or becomes of it now, from what lies in its output."""

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

LOOKS = 5
AGAIN = "run the same command again to continue"

T = TypeVar("T")

_FINISHED, _RUNNING, _HELD, _KILLED, _STOPPED = "finished", "running", "held", "killed", "stopped"


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a run."""

    run: str
    """Address, without credentials."""
    verb: str
    state: str
    """`finished`; `running`: its process lives on this machine; `held`: by a process of another machine,
    which nobody can ask; `killed`: its process is gone; `stopped`: it ended before it was done."""
    attempts: int = 0
    """How often it was started and got the output."""
    holder: dict[str, Any] | None = None
    """Host, process, and when the lease was renewed by that host's clock; of a run that has one."""
    counts: dict[str, Any] = field(default_factory=dict)
    """`done`, `total` and `left` (null: not known yet), `rejected`, `instances`; for training, epochs,
    for retraining, rounds."""
    rate: float | None = None
    """Images a second."""
    machine_hours: dict[str, float] = field(default_factory=dict)
    """Kind of machine -> hours, of all attempts."""
    cost: dict[str, float | None] | None = None
    """Kind -> money and `total`, where the run was given prices."""


def show(settings: StatusSettings, as_json: bool) -> ExitCode:
    """Print it. Raises NothingToDoError where no run is, JobFailedError where the storage refuses."""
    found = status_of(settings.run[0], settings.storage)
    answer([json.dumps(asdict(found), indent=2)] if as_json else lines(found))
    return ExitCode.DONE


def status_of(run: str, storage: StorageSettings) -> Status:
    """Read it. Raises as `show`."""
    store = Store(run, storage)
    plan, record, scores = (store.read_json(name) for name in (PLAN, RUN, SCORES))
    if not any(isinstance(each, dict) for each in (plan, record, scores)):
        raise NothingToDoError(f"{shown(run)}: no run of segray is there")
    if plan is None and record is None:
        return Status(shown(run), "evaluate", _FINISHED, counts={"metrics": scores.get("metrics")})
    try:
        return _read(store, shown(run), plan, record)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise JobFailedError(
            f"{shown(run)}: {RUN}, {METRICS} or {LEASE} is not as segray wrote it ({type(error).__name__}: "
            f"{error}); the tables can be read nevertheless, and the same command, run again, writes it anew"
        ) from error


def _read(store: Store, run: str, plan: Any, record: Any) -> Status:
    there = store.read_versioned(LEASE)
    lease = Holder() if there is None else Holder.of(there.data)
    told = {} if there is None else told_in(there.data)
    verb = _verb(plan, record)
    holder = None if there is None or lease.released else _holder(lease, there.data)
    look = {"train": _epochs, "retrain": _rounds}.get(verb, _items)
    counts, rate = look(store, record, told)
    is_over = not counts["left"] if verb == "retrain" else isinstance(record, dict)
    state = _state(is_over, there is not None, lease)
    worked = record if isinstance(record, dict) and HOURS in record else told
    hours, cost = hours_in(worked), cost_in(worked)
    return Status(run, verb, state, lease.generation, holder, counts, rate, hours, cost)


def lines(found: Status) -> Sequence[str]:
    """For people."""
    worked = {HOURS: found.machine_hours, COST: found.cost}
    return [*_told(found), *([f"  {hours_line(worked)}"] if found.machine_hours else [])]


def _told(found: Status) -> Sequence[str]:
    counts, holder = found.counts, found.holder
    attempts = f"; started {found.attempts} times" if found.attempts > 1 else ""
    who = host = at = ""
    if holder is not None:
        who, host, at = f"process {holder['pid']}", holder["host"], holder["renewed_at"]
    where = {
        _FINISHED: "finished",
        _RUNNING: f"running: {who} on this machine",
        _HELD: f"held by {who} on {host}, which renewed it at {at} by its clock",
        _KILLED: f"killed: {who} of this machine is gone; {AGAIN}",
        _STOPPED: f"stopped before it was done; {AGAIN}",
    }[found.state]
    said = [f"{found.run}: {found.verb}, {where}{attempts}"]
    if found.verb == "evaluate":
        return said + [f"  {name} {value}" for name, value in (counts["metrics"] or {}).items()]
    if found.verb == "train":
        of = "" if counts["total"] is None else f" of {counts['total']:,}"
        best = f"; best: epoch {counts['best']}" if counts.get("best") else ""
        return [*said, f"  {counts['done']:,}{of} epochs{best}{_pace(found.rate)}"]
    if found.verb == "retrain":
        last = "promoted" if counts["promoted"] else "refused"
        ended = f"; the last one: {last} {counts['model']}@{counts['version']}" if counts["version"] else ""
        return [*said, f"  {counts['done']:,} of {counts['total']:,} rounds over{ended}"]
    of = "" if counts["total"] is None else f" of {counts['total']:,}"
    parts = [f"{counts['done']:,}{of} items", f"{counts['rejected']:,} rejected"]
    parts += [f"{counts['instances']:,} instances"] if found.verb == "annotate" else []
    left = counts["left"]
    ends = f", {clock(left / found.rate)} left" if found.rate and left and holder else ""
    return [*said, f"  {', '.join(parts)}{_pace(found.rate)}{ends}"]


def _pace(rate: float | None) -> str:
    return f"; {pace(rate)}" if rate else ""


def _verb(plan: Any, record: Any) -> str:
    """Also of runs of versions that did not write it down."""
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


def _items(store: Store, record: Any, told: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """(counts, images a second) of a bulk run: of run.json, or of what is committed and the lease tells."""
    if isinstance(record, dict) and isinstance(record.get("counts"), dict):
        known = record["counts"]
        done = {"done": known["items"], "total": known["items"], "left": 0}
        more = {name: known[name] for name in ("rejected", "instances", "vanished")}
        return done | more, record["rates"]["images_per_s"]
    items, rejected, instances = _looked_again(lambda: _committed(store))
    total = told.get("total")
    left = None if total is None else max(0, total - items)
    counts = {"done": items, "total": total, "left": left, "rejected": rejected, "instances": instances}
    return counts, told.get("images_per_s")


def _looked_again(look: Callable[[], T]) -> T:
    """A live run merges its commits meanwhile: what was listed may be gone."""
    for _ in range(LOOKS):
        try:
            return look()
        except JobFailedError as error:
            if " is gone" not in str(error):
                raise
    return look()


def _committed(store: Store) -> tuple[int, int, int]:
    """(items, rejected ones, instances) of all commits; an item that was done again counts once."""
    ids, rejected, instances = [np.empty(0, "S32")], [np.empty(0, bool)], [np.empty(0, np.int64)]
    for part in store.parts():  # 41 bytes an item: a dictionary of ten million would take gigabytes
        for batch in store.ledger(part, ["status", "instances"]):
            ids.append(np.array(batch["image_id"].to_pylist(), "S32"))
            rejected.append(np.array([status == "rejected" for status in batch["status"].to_pylist()], bool))
            instances.append(np.array([number or 0 for number in batch["instances"].to_pylist()], np.int64))
    _, newest = np.unique(np.concatenate(ids)[::-1], return_index=True)
    bad, found = (np.concatenate(each)[::-1][newest] for each in (rejected, instances))
    return len(newest), int(bad.sum()), int(found.sum())


def _rounds(store: Store, record: Any, told: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """The same of a retraining: rounds that are over and begun, and how the last one that is over ended."""
    from segray.retrain.rounds import rounds

    there = rounds(store, store.root)
    over, begun = sum(each.is_over for each in there), sum(each.is_begun for each in there)
    last = record if isinstance(record, dict) else {}
    ended = {name: last.get(name) for name in ("model", "version", "promoted")}
    return {"done": over, "total": begun, "left": begun - over, **ended}, None


def _epochs(store: Store, record: Any, told: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """The same of a training."""
    rows = [json.loads(line) for line in (store.read(METRICS) or b"").splitlines()]
    done = rows[-1]["epoch"] if rows else 0
    total = record["epochs"] if isinstance(record, dict) else told.get("total")
    best = record["best"]["epoch"] if isinstance(record, dict) else None
    left = None if total is None else max(0, total - done)
    rate = rows[-1].get("images_per_s") if rows else None
    return {"done": done, "total": total, "left": left, "best": best}, rate
