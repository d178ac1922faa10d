"""`segray train`, step by step: check, list, scan, split, train, report."""

import json
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import yaml

from segray.cluster import RayStart
from segray.data.dataset import Data, assign_splits, splits_csv
from segray.data.pair_table import pair_table
from segray.data.pairs import Pair, Pairs
from segray.data.scan import Scan
from segray.data.splits import SplitRule
from segray.errors import ExitCode, JobFailedError, SettingsError
from segray.interrupts import INTERRUPTS
from segray.log import LOG, say
from segray.machines import outcome_of
from segray.output.folder import Output
from segray.output.lease import Lease
from segray.output.names import CONFUSION, METRICS, MODEL, RUN
from segray.output.progress import Progress
from segray.prometheus import exported, labels
from segray.run import Problems, device_of, exit_code, on_ray, open_output
from segray.settings import printable
from segray.storage import shown
from segray.train.console import Watch, figure, metrics
from segray.train.identity import (
    CHECKPOINT,
    check_data,
    check_settings,
    holds,
    identity_of,
    write_plan,
)
from segray.train.reporting.events import SCORES
from segray.train.resources import Shares, multiply_bfloat16, share_out
from segray.train.settings import TrainSettings
from segray.train.tasks import TrainingTask, kind_of
from segray.train.warm_start import check_encoder, started
from segray.versions import versions

if TYPE_CHECKING:
    from segray.models.start_weights import Start
    from segray.train.trainer import Run

_CROWD = 8, 0.2
"""Look-alikes in one group that give a warning: more than this number, and more than this share of all."""


@dataclass(frozen=True)
class Prepared:
    """What is known before work begins."""

    settings: TrainSettings
    lock: Lease[Output]
    """Not acquired yet; its output's store is `store`."""
    listed: Pairs
    task: TrainingTask
    device: str
    precision: str
    identity: dict[str, Any]
    ray: RayStart

    @property
    def store(self) -> Output:
        """Return the output."""
        return self.lock.store

    def shares(self) -> Shares:
        """Start Ray and return the resources of each worker.

        Raises SettingsError when the workers do not fit.
        """
        settings = self.settings
        cluster, least = self.ray.cluster(), settings.min_workers
        return share_out(settings.workers, settings.loaders, self.device, cluster, least)


def train(settings: TrainSettings) -> ExitCode:
    """Train a model on `settings.data` into `settings.output`, continuing an earlier run.

    Raises as `trained` does.
    """
    code, _ = trained(settings)
    return code


def trained(settings: TrainSettings) -> tuple[ExitCode, dict[str, Any]]:
    """Train, and return the exit code with the contents of run.json; {} for a dry run.

    Raises SettingsError for errors found before work begins, JobFailedError for later failures.
    """
    with on_ray(settings, _load_ray_train) as ray:
        prepared = _prepare(settings, ray)
        if settings.dry_run:
            return ExitCode.DONE, {}
        with prepared.lock as lock:
            data, record = _run(prepared, lock)
    return exit_code(data.rejected_share, settings.max_rejects), record


def _load_ray_train() -> None:
    import segray.train.trainer  # noqa: F401 - its loggers can be redirected to the file once they exist


def _prepare(settings: TrainSettings, ray: RayStart) -> Prepared:
    """Check the output, list the data, sample the labels; raise SettingsError with all problems at once."""
    problems = Problems()
    attempt = problems.attempt
    lock = attempt(lambda: open_output(Output(settings.output, settings.storage)))
    begun = attempt(lambda: with_start(settings))
    settings, start = begun or (settings, None)
    kind = kind_of(settings)
    found = None if begun is None else attempt(lambda: kind.list_data(settings))
    attempt(lambda: check_encoder(settings))
    attempt(ray.check)
    if problems or lock is None or not found:
        if settings.device == "cuda":
            attempt(lambda: _where(settings, ray))  # needs torch
        raise problems.error()  # problems found without torch, before it is loaded
    task = attempt(lambda: kind.of(settings, found, start))
    where = attempt(lambda: _where(settings, ray))
    if problems or task is None or where is None:
        raise problems.error()
    device, precision = where
    if device == "cpu" and task.arch_settings.get("norm") == "sync":
        raise SettingsError("arch_settings: norm sync needs GPUs; on CPUs use group, or batch")
    identity = identity_of(settings, task.resolved() | {"precision": precision})
    check_settings(lock.store, identity, shown(settings.output))
    return Prepared(settings, lock, found, task, device, precision, identity, ray)


def with_start(settings: TrainSettings) -> "tuple[TrainSettings, Start | None]":
    """Return the settings completed from the start model, and that model.

    Raises SettingsError where they contradict it.
    """
    if settings.start_from is None:
        return settings, None
    from segray.models.imports import import_torchvision

    import_torchvision()
    from segray.models.start_weights import load_start

    start = load_start(settings.start_from, settings.storage)
    return started(settings, start), start


def _where(settings: TrainSettings, ray: RayStart) -> tuple[str, str]:
    """Return (device, precision): the cluster's where there is one, else this machine's."""
    from segray.models.device import resolve_precision

    device = device_of(settings.device, ray)
    if ray.in_cluster:
        share_out(settings.workers, settings.loaders, device, ray.cluster(), settings.min_workers)
    if settings.precision == "fp16" and device == "cpu":
        raise SettingsError("precision: fp16 needs a GPU; use fp32 or bf16 on a CPU")
    if settings.precision != "auto":
        return device, settings.precision
    if device == "cuda" and ray.in_cluster:
        return device, "bf16" if multiply_bfloat16(ray.cluster().accelerators) else "fp32"
    return device, resolve_precision("auto", device) if device == "cuda" else "fp32"


def _run(prepared: Prepared, lock: Lease[Output]) -> tuple[Data, dict[str, Any]]:
    """Do the remaining work, under the lease; return the training data, and the contents of run.json."""
    settings, store, output = prepared.settings, prepared.store, shown(prepared.settings.output)
    started, machines = time.monotonic(), prepared.ray.machines
    machines.inherit(lock.hours)
    lock.tell = machines.record
    begun = check_settings(store, prepared.identity, output)  # again: another run may have begun meanwhile
    data = _data(prepared, begun=begun)
    say(f"{data.summary()}; {len(data.rejected):,} of {data.listed:,} rejected")
    if data.ignored:
        say(_ignored(settings, data.ignored))
    if data.alike > max(_CROWD[0], _CROWD[1] * len(data.pairs)):
        say(
            f"{data.alike:,} of the images look alike and are kept in one split; if they are not copies "
            "(frames of a fixed camera), set --group-look-alikes off or add a column `group` to the data"
        )
    for address, why in data.rejected[:10]:
        say(f"rejected: {address}: {why}", "warning")
    if begun:
        check_data(store, data.summary(), output)
    record = store.read_json(RUN)
    if record is not None and record["epochs"] >= settings.epochs:
        _check_model(store, output)
        _tell(prepared, record, f"nothing to do, {record['epochs']} epochs were trained before")
        return data, record
    shares = prepared.shares()
    lock.tell = lambda: {"total": settings.epochs} | machines.record()
    store.retract(RUN)
    write_plan(store, prepared.identity, data.summary())
    store.write("splits.csv", splits_csv(data))
    for name, content in prepared.task.files(data).items():
        store.write(name, content)
    if not holds(store, CHECKPOINT):
        store.retract(METRICS)  # left by an earlier run: not to be mixed with this one's
    _train(prepared, data, shares, lock)
    record = _record(prepared, data, time.monotonic() - started) | machines.record()
    store.write_json(RUN, record)
    _tell(prepared, record, "done")
    return data, record


def _ignored(settings: TrainSettings, number: int) -> str:
    if settings.footprints is None:
        return f"{number:,} crowds are ignored: neither targets nor errors"
    from segray.data.footprint_pieces import VISIBLE  # rasterio and shapely, which images do not need

    return (
        f"{number:,} pieces of footprints are ignored: their windows hold less than {VISIBLE:.0%} of the "
        "footprint or of the window, whichever is smaller"
    )


def _check_model(store: Output, output: str) -> None:
    """Raise SettingsError where the model of a finished run was deleted."""
    if not holds(store, MODEL):
        raise SettingsError(f"output: {output} holds {RUN}, but its {MODEL} is gone; use another --output")


def _tell(prepared: Prepared, record: dict[str, Any], what: str) -> None:
    best, name, output = record["best"], prepared.task.best, shown(prepared.settings.output)
    found = f"{SCORES[name]} {figure(best[name])}"
    say(f"{what}: best {found} on val in epoch {best['epoch']}; {output}/model.pt")
    for line in prepared.ray.hours_lines(record):
        say(line)
    LOG.outcome = outcome_of(record, "epochs", "best")


def _data(prepared: Prepared, *, begun: bool) -> Data:
    """Scan the pairs that earlier runs have not, on Ray, and split all of them."""
    settings, listed = prepared.settings, prepared.listed
    scan = Scan(listed.pairs, prepared.task.rules, settings.max_pixels, prepared.store, begun=begun)
    if scan.missing:
        prepared.shares()  # no scan where the workers could not start
        scan_pairs(scan, listed.pairs, prepared.task.reading(), prepared.ray.cluster().cpus, settings)
    rule = None
    if settings.footprints is None:
        rule = SplitRule.of(listed.pairs, settings.split_seed, settings.val_share, settings.test_share)
    return assign_splits(listed, scan.rows(), rule, settings.oversample, settings.group_look_alikes)


def scan_pairs(scan: Scan, pairs: list[Pair], reading: Any, cpus: float, settings: TrainSettings) -> None:
    """Scan, on the running Ray, the pairs that the scan lacks; those already read are not read again."""
    import pyarrow as pa

    from segray.data.scan_stream import scan as scanned

    missing = scan.missing
    indices = pa.array(missing)
    table = pair_table([pairs[index] for index in missing])
    answers = scanned(table, reading, cpus, settings.ray.stall_timeout_s)
    try:
        with Progress("survey", len(missing), finds=False) as progress, closing(answers):
            for found in answers:
                number = found.schema.get_field_index("index")
                scan.add(found.set_column(number, "index", indices.take(found["index"])))
                progress.add(found.num_rows, rejected=found.num_rows - found["error"].null_count)
    finally:
        scan.save()


def _train(prepared: Prepared, data: Data, shares: Shares, lock: Lease[Output]) -> None:
    from segray.train.trainer import train, warning_of

    settings = prepared.settings
    run = replace(_run_of(prepared, data), generation=lock.generation)
    watched = labels("train", settings.output) if prepared.ray.exports else None
    watch = Watch(prepared.store, settings.epochs, lock, lambda: warning_of(run))
    with exported(watched, watch.exported), watch:
        try:
            workers = (settings.min_workers or settings.workers, settings.workers)
            train(run, data.table, workers, shares, settings.max_failures)
        except (KeyboardInterrupt, JobFailedError):
            if watch.error is not None:
                INTERRUPTS.forget()
                raise watch.error from None
            raise


def _run_of(prepared: Prepared, data: Data) -> "Run":
    """Return the arguments of every worker."""
    from segray.train.loader import Feed
    from segray.train.sampler import EpochSampler, shared
    from segray.train.trainer import Run

    settings, task, sizes = prepared.settings, prepared.task, data.sizes
    repeats = shared(task.repeats(data))
    sampler = EpochSampler(settings.batch_size, settings.seed, sizes["train"], sizes["val"], repeats)
    stall_timeout_s = settings.ray.stall_timeout_s
    return Run(
        task.recipe(data, prepared.precision),
        Feed(task.reading(), task.transform(data), sampler, settings.loaders, stall_timeout_s),
        prepared.device,
        settings.output,
        settings.storage,
        settings.checkpoint_every_s,
    )


def _record(prepared: Prepared, data: Data, seconds: float) -> dict[str, Any]:
    """Return the contents of run.json; `seconds` are those of the run that finished."""
    done, best = metrics(prepared.store), prepared.task.best
    last, wanted = done[-1]["epoch"] if done else 0, prepared.settings.epochs
    if last < wanted or not holds(prepared.store, MODEL):
        lacks = f"after {last} of {wanted} epochs" if last < wanted else f"without {MODEL}"
        raise JobFailedError(
            f"training ended {lacks} in {prepared.store.root}, and no worker reported why; "
            "run again to continue"
        )
    return {
        "verb": "train",
        "settings": yaml.safe_load(printable(prepared.settings)),
        "versions": versions(),
        "data": {
            "digest": data.digest,
            "listed": data.listed,
            "rejected": len(data.rejected),
            "empty": data.empty,
            "ignored": data.ignored,
            "rejects_by_reason": Counter(reason for _, reason in data.rejected),
            **data.sizes,
            prepared.task.counted: data.counts,
        },
        "epochs": done[-1]["epoch"],
        "best": max(done, key=lambda line: -1.0 if line[best] is None else float(line[best])),
        **json.loads(prepared.store.read(CONFUSION) or b"{}"),
        "seconds": round(seconds, 3),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
