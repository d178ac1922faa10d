"""The Ray side of a bulk job: read -> decode -> model, streamed by Ray Data; the only Ray file here.

    read    tasks; one a stretch of files or an archive; tables of encoded bytes
    decode  actors; tables of uint8 pixels, cut so that no block is large
    model   actors that load the weights once; one row an item with its instances inside

The rows come back to the caller, which is the only writer (see `store`). Ray re-runs what a lost worker or
node had in hand; every stage gives the same tables for the same input, so a re-run changes nothing. Ray's
own retries never end for an item that kills its worker: `attempts` ends them.
"""

import math
import os
import pickle
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data._internal.execution import streaming_executor_state
from ray.data.block import BlockMetadata
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segray.bulk.attempts import Attempts
from segray.bulk.ledger_db import Archive, Plan
from segray.bulk.resources import READ_CPUS, Resources
from segray.bulk.settings import BulkSettings
from segray.bulk.task import Model, Verb
from segray.columns import packed, unpacked
from segray.errors import JobFailedError, SegrayError
from segray.scenes.scene import Tiling
from segray.settings import RaySettings
from segray.sources.archives import read_archive
from segray.sources.choice import Choice
from segray.sources.decode_step import Decoder
from segray.sources.item import Source
from segray.sources.read_step import read_files, scene_id
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings
from segray.watching import Labels, model_clock

TICKS_S = (0.02, 0.5)
"""Least and most seconds between two looks of Ray Data for blocks that are ready. It lets a worker be at most
two blocks ahead: at its own 0.1 s, decoders that fill two in less stood idle; and each look takes 3 ms of a
core, which a slow model on two cores misses. So it looks four times while a table is made, by the mean of
the last ones. A constant of Ray's, not an option: where a later Ray has another name, only speed is lost."""

QUEUED = 4
"""Tables that are with a model actor at a time; with Ray's two, a quick one waited between two looks."""

FILES_A_TASK = 1024
"""Most files one read task fetches; fewer where that would leave CPUs without a task."""

BLOCK_BYTES = 1
"""Ray hands a block on once it is larger than this, and cuts it between rows. Our tables are one row each
(see `packed`), so every block is one table as a stage made it: neither gathered nor cut, by Ray's bytes, to
hundreds of small pictures that the model answers all at once or not at all."""

if TYPE_CHECKING:  # workers that read or decode must not load torch
    from segray.models.device import Precision


class _Work(Datasource):
    """What is to do, as read tasks: their sources lie in Ray's object store, not in the driver's memory."""

    def __init__(self, plan: Plan, settings: BulkSettings, tiling: Tiling, cpus: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks = [
            partial(
                _read_archive, _put(archive), settings.storage, settings.max_file_mib << 20, settings.choice
            )
            for archive in plan.todo_archives()
        ]
        done = plan.done_tiles()
        self._tasks += [
            partial(_fetch, _put((files, _of(files, done))), settings, tiling)
            for files in _stretches(plan.todo_files(), cpus)
        ]

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        nothing = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(task, nothing) for task in self._tasks]


def _put(work: Any) -> Any:
    """Into the object store, packed: a million addresses take 33 MB there instead of 132."""
    return ray.put(zlib.compress(pickle.dumps(work), 1))


def _get(work: Any) -> Any:
    return pickle.loads(zlib.decompress(ray.get(work)))


def _stretches(files: Iterable[Source], cpus: float) -> Iterator[list[Source]]:
    """Runs of files: short at first, so that work starts at once and small jobs spread, then long."""
    size, stretch, made = 1, [], 0
    for file in files:
        stretch.append(file)
        if len(stretch) == size:
            yield stretch
            stretch, made = [], made + 1
            if made % max(4, int(cpus)) == 0:
                size = min(size * 2, FILES_A_TASK)
    if stretch:
        yield stretch


def _of(files: Sequence[Source], done: dict[str, list[int]]) -> dict[str, list[int]]:
    """Of `done`, what is said of these files."""
    if not done:
        return {}
    return {key: done[key] for key in map(scene_id, files) if key in done}


def _fetch(work: Any, settings: BulkSettings, tiling: Tiling) -> Iterator[pa.Table]:
    files, done = _get(work)
    most_bytes = settings.max_file_mib << 20
    with DecodeSandbox(timeout_s=settings.decode_timeout_s) as sandbox:
        tables = read_files(files, done, settings.storage, sandbox, tiling, most_bytes)
        yield from map(packed, tables)


def _read_archive(
    archive: Any, storage: StorageSettings, most_bytes: int, choice: Choice
) -> Iterator[pa.Table]:
    work: Archive = _get(archive)
    yield from map(packed, read_archive(work.source, work, storage, most_bytes, choice))


class _RemoteAttempts:
    """`Attempts` in an actor that outlives the model's process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, names: Sequence[str], most: int) -> bool:
        return bool(ray.get(self._actor.begin.remote(names, most)))

    def end(self, names: Sequence[str]) -> None:
        self._actor.end.remote(names)


class _Decode:
    """FETCHED -> DECODED, in a child process that a hostile file may kill."""

    def __init__(self, settings: BulkSettings, tiling: Tiling, most_rows: int) -> None:
        self._decoder = Decoder(
            DecodeSandbox(timeout_s=settings.decode_timeout_s),
            settings.max_pixels,
            tiling,
            settings.storage,
            table_rows=most_rows,
        )

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """One row an item or a tile, in order; several tables, so that no block is large."""
        for table in unpacked(block):
            yield from map(packed, self._decoder.tables(table))


class _Annotate:
    """DECODED -> ANNOTATED; see `model_step`."""

    def __init__(
        self,
        verb: Verb,
        model: Any,
        attempts: Any,
        resources: Resources,
        precision: "Precision",
        watched: Labels | None,
    ) -> None:
        # A thread of torch's that waits for another one should keep its core for a few milliseconds, not
        # go to sleep (R50-FPN in bf16 takes 1.2 times as long), nor stay awake for libgomp's own 300,000
        # turns, where decoders share the cores. Read when torch is loaded.
        if "OMP_WAIT_POLICY" not in os.environ:  # the user's own word, which the count would override
            os.environ.setdefault("GOMP_SPINCOUNT", "100000")
        from segray.models.imports import import_torchvision

        import_torchvision()
        from segray.bulk.model_step import ModelStep, Predictor

        def make_predictor() -> Predictor:
            return verb.predictor(
                ray.get(model), resources.device, precision, resources.batch_size, resources.threads
            )

        clock = model_clock(watched)
        self._step = ModelStep(make_predictor, _RemoteAttempts(attempts), resources.actors, clock)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for table in unpacked(block):
            yield packed(self._step(table))


def answered(
    verb: Verb,
    plan: Plan,
    model: Model,
    precision: "Precision",
    resources: Resources,
    watched: Labels | None = None,
) -> Iterator[pa.Table]:
    """Everything the plan has to do, as tables of schema ANNOTATED, in no particular order.

    watched: see `watching.labels`.
    Raises JobFailedError when the pipeline breaks; what was yielded before stays valid.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts)
    attempts = actor.options(scheduling_strategy=here).remote()
    tiling = replace(verb.settings.tiling, ranges=model.band_ranges)
    if model.resized_to is not None:  # a window of a picture shows it things in another size
        tiling = replace(tiling, picture_pixels=verb.settings.max_pixels)
    answers = decoded(plan, verb.settings, tiling, resources).map_batches(
        _Annotate,
        fn_constructor_args=(verb, ray.put(model), attempts, resources, precision, watched),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=resources.min_actors,
            max_size=resources.actors,
            max_tasks_in_flight_per_actor=QUEUED,
        ),
        num_cpus=resources.actor_cpus,
        num_gpus=resources.actor_gpus or None,
    )
    try:
        # a prefetched block is one that waits for the next before it can be made safe
        yield from tables_of(answers, prefetch=0)
    except SegrayError:
        raise
    except Exception as error:
        raise JobFailedError(f"the pipeline broke: {_cause(error)}") from error
    finally:
        with suppress(ray.exceptions.RayError):
            ray.kill(attempts)


def joined_in_workers(verb: Verb) -> Callable[[Sequence[pa.Table]], Sequence[pa.Table]]:
    """As `Verb.joined` for each of several items, each in a task."""

    def join(tiles: pa.Table) -> pa.Table:
        return verb.joined(tiles)

    # no CPUs: the pipeline holds them all, and what it made waits for this
    task: Any = ray.remote(num_cpus=0, max_retries=3)(join)

    def all_of(items: Sequence[pa.Table]) -> Sequence[pa.Table]:
        try:
            return list(ray.get([task.remote(tiles) for tiles in items]))
        except ray.exceptions.RayError as error:
            raise JobFailedError(f"a scene's tiles cannot be put together: {_cause(error)}") from error

    return all_of


def decoded(plan: Plan, settings: BulkSettings, tiling: Tiling, resources: Resources) -> ray.data.Dataset:
    """The first two stages, read and decode: tables of schema DECODED, packed."""
    _configure(settings.ray)
    work = _Work(plan, settings, tiling, resources.cpus)
    pictures: ray.data.Dataset = ray.data.read_datasource(
        work,
        num_cpus=READ_CPUS,
        concurrency=resources.readers,
        override_num_blocks=len(work.get_read_tasks()),
    ).map_batches(
        _Decode,
        fn_constructor_args=(settings, tiling, resources.table_rows),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=1, max_size=resources.decoders),
        num_cpus=resources.decoder_cpus,
    )
    return pictures


def tables_of(dataset: ray.data.Dataset, prefetch: int) -> Iterator[pa.Table]:
    """Its tables as they come; `prefetch` more are fetched beside the one that is given."""
    last, mean = math.inf, 0.0
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch):
        now = time.monotonic()
        mean, last = mean + (max(now - last, 0.0) - mean) / 8, now  # the first is no measure: Ray started
        _look_every(mean / 4)
        yield from unpacked(block)


def _look_every(seconds: float) -> None:
    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = min(max(seconds, TICKS_S[0]), TICKS_S[1])


def _configure(settings: RaySettings) -> None:
    context = DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Pools grow with the work: a start of one actor each is quickest. They do not shrink: Ray would, while
    # it holds work back for want of memory, and one decoder alone is slow.
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
    context.execution_no_progress_timeout_s = settings.stall_timeout_s
    _look_every(0)


def _cause(error: BaseException) -> str:
    """What broke, in one line: Ray gives the last frames and the user's error at the end of a long text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return last if ": " in last else f"{type(error).__name__}: {last}"
