"""The steps of a bulk job, streamed by Ray Data: read -> decode -> predict -> commit.

    read     tasks; one a stretch of files or an archive; tables of encoded bytes
    decode   actors; tables of uint8 pixels, cut so that no block is large
    predict  actors that load the weights once; one row an item with its results inside
    commit   the process of the job, the only writer (see `committer`)

Ray re-runs what a lost worker or node had in hand; every step gives the same tables for the same input, so a
re-run changes nothing. Ray's own retries never end for an item that kills its worker: `attempts` ends them.
"""

import os
import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segray.arrow_rows import packed, unpacked
from segray.bulk.committer import Committer, commit
from segray.bulk.crash_counts import Attempts
from segray.bulk.ledger_db import Archive, LedgerDb
from segray.bulk.resources import READ_CPUS, Resources
from segray.bulk.settings import BulkSettings
from segray.bulk.streaming import cause, configure, stream
from segray.bulk.task import BulkTask, Model
from segray.bulk.waiting import waiting_told
from segray.errors import JobFailedError
from segray.output.progress import Progress
from segray.prometheus import Labels, model_clock
from segray.scenes.scene import Tiling
from segray.sources.archives import read_archive
from segray.sources.decode_step import Decoder
from segray.sources.item import Source
from segray.sources.name_filter import Choice
from segray.sources.read_step import read_files, scene_id
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings

QUEUED = 4
"""Tables that are queued at a model actor; with Ray's two, a fast one waited between two polls."""

FILES_A_TASK = 1024
"""Maximum files per read task; fewer where that would leave CPUs without a task."""

if TYPE_CHECKING:  # workers that read or decode must not load torch
    from segray.models.device import Precision


@dataclass(frozen=True, slots=True)
class Work:
    """The inputs of the steps: ledger, task, model, resources."""

    task: BulkTask
    ledger: LedgerDb
    model: Model
    precision: "Precision"
    resources: Resources
    watched: Labels | None = None
    """Labels of the metrics, see `prometheus.labels`."""

    @property
    def tiling(self) -> Tiling:
        """Return how scenes are cut, with the model's bands and sizes."""
        settings = self.task.settings
        tiling = replace(settings.tiling, ranges=self.model.band_ranges)
        if self.model.resized_to is None:
            return tiling
        return replace(tiling, picture_pixels=settings.max_pixels)  # objects in a window have another scale


def process(
    work: Work, committer: Committer, progress: Progress, known_total: Callable[[], int | None]
) -> None:
    """Run one round: all that the ledger lacks now, in no particular order.

    Raises JobFailedError when a step breaks; what was committed before stays.
    """
    settings, tiling, resources = work.task.settings, work.tiling, work.resources
    with attempts_of_all() as attempts, waiting_told(attempts, resources):
        encoded = read(work.ledger, settings, tiling, resources)
        pixels = decode(encoded, settings, tiling, resources)
        results = predict(pixels, work, attempts)
        commit(stream(results), committer, progress, known_total)


def read(ledger: LedgerDb, settings: BulkSettings, tiling: Tiling, resources: Resources) -> ray.data.Dataset:
    """Return the work as packed tables of schema FETCHED: encoded bytes, for scenes the numbers of tiles."""
    configure(settings.ray)
    source = _Reads(ledger, settings, tiling, resources.cpus)
    encoded: ray.data.Dataset = ray.data.read_datasource(
        source,
        num_cpus=READ_CPUS,
        concurrency=resources.readers,
        override_num_blocks=len(source.get_read_tasks()),
    )
    return encoded


def decode(
    encoded: ray.data.Dataset, settings: BulkSettings, tiling: Tiling, resources: Resources
) -> ray.data.Dataset:
    """Turn FETCHED into packed tables of schema DECODED: uint8 pixels of whole images, or of tiles."""
    return encoded.map_batches(
        _Decode,
        fn_constructor_args=(settings, tiling, resources.table_rows),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=1, max_size=resources.decoders),
        num_cpus=resources.decoder_cpus,
    )


def predict(pixels: ray.data.Dataset, work: Work, attempts: Any) -> ray.data.Dataset:
    """Turn DECODED into packed tables of schema ANNOTATED. attempts: the actor of `attempts_of_all`."""
    resources = work.resources
    return pixels.map_batches(
        _Predict,
        fn_constructor_args=(
            *(work.task, ray.put(work.model), attempts, resources, work.precision, work.watched),
        ),
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


@contextmanager
def attempts_of_all() -> Iterator[Any]:
    """Start an actor on this node that holds `Attempts`, and outlives the processes of the model."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts)
    attempts = actor.options(scheduling_strategy=here).remote()
    try:
        yield attempts
    finally:
        with suppress(ray.exceptions.RayError):
            ray.kill(attempts)


def merged_in_workers(task: BulkTask) -> Callable[[Sequence[pa.Table]], Sequence[pa.Table]]:
    """Return a function that calls `BulkTask.merge_tiles` for several items, each in a Ray task.

    It raises JobFailedError where a task fails. Tables have the schema ANNOTATED.
    """

    def merge(tiles: pa.Table) -> pa.Table:
        return task.merge_tiles(tiles)

    # no CPUs: the pipeline holds them all, and its results wait for this
    in_worker: Any = ray.remote(num_cpus=0, max_retries=3)(merge)

    def all_of(items: Sequence[pa.Table]) -> Sequence[pa.Table]:
        try:
            return list(ray.get([in_worker.remote(tiles) for tiles in items]))
        except ray.exceptions.RayError as error:
            raise JobFailedError(f"a scene's tiles cannot be merged: {cause(error)}") from error

    return all_of


# --- in the workers ----------------------------------------------------------------------------------


class _Reads(Datasource):
    """The work as read tasks: their sources are in Ray's object store, not in the driver's memory."""

    def __init__(self, ledger: LedgerDb, settings: BulkSettings, tiling: Tiling, cpus: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks = [
            partial(
                _read_archive, _put(archive), settings.storage, settings.max_file_mib << 20, settings.choice
            )
            for archive in ledger.todo_archives()
        ]
        done = ledger.done_tiles()
        self._tasks += [
            partial(_fetch, _put((files, _of(files, done))), settings, tiling)
            for files in _stretches(ledger.todo_files(), cpus)
        ]

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        nothing = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(task, nothing) for task in self._tasks]


def _put(work: Any) -> Any:
    """Put into the object store, packed: a million addresses take 33 MB there instead of 132."""
    return ray.put(zlib.compress(pickle.dumps(work), 1))


def _get(work: Any) -> Any:
    return pickle.loads(zlib.decompress(ray.get(work)))


def _stretches(files: Iterable[Source], cpus: float) -> Iterator[list[Source]]:
    """Yield runs of files: short at first, so that work starts at once and small jobs spread, then long."""
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
    """Return the entries of `done` for these files."""
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
            DecodeSandbox(timeout_s=settings.decode_timeout_s, location=settings.location),
            settings.max_pixels,
            tiling,
            settings.storage,
            table_rows=most_rows,
        )

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Yield DECODED, a row per item or tile, in order; several tables, so that no block is large."""
        for table in unpacked(block):
            yield from map(packed, self._decoder.tables(table))


class _Predict:
    """DECODED -> ANNOTATED; see `model_step`."""

    def __init__(
        self,
        task: BulkTask,
        model: Any,
        attempts: Any,
        resources: Resources,
        precision: "Precision",
        watched: Labels | None,
    ) -> None:
        # A thread of torch's that waits for another one should keep its core for a few milliseconds, not
        # sleep (R50-FPN in bf16 takes 1.2 times as long), nor spin for libgomp's own 300,000 rounds, where
        # decoders share the cores. Read when torch is loaded.
        if "OMP_WAIT_POLICY" not in os.environ:  # a user's setting, which the count would override
            os.environ.setdefault("GOMP_SPINCOUNT", "100000")
        from segray.models.imports import import_torchvision

        import_torchvision()
        from segray.bulk.model_step import ModelStep, Predictor

        def make_predictor() -> Predictor:
            return task.predictor(
                ray.get(model), resources.device, precision, resources.batch_size, resources.threads
            )

        clock = model_clock(watched)
        self._step = ModelStep(make_predictor, _RemoteAttempts(attempts), resources.actors, clock)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for table in unpacked(block):
            yield packed(self._step(table))
