"""The Ray side of `train`: a survey of the pairs, streams of batches, DDP workers; the only Ray file here.

    survey   one pass of Ray Data over all pairs: what can be read, digests, pixels of each class
    stream   each worker's own Ray Data pipeline: its part of every global batch, read, decoded, augmented
    train    Ray Train: workers in one process group, a checkpoint after each epoch, started again when lost

The global batches are a function of the seed and the epoch alone, so the number of workers changes neither
them nor the number of steps; a run that goes on shows what it would have shown.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray
import ray.data
import ray.train
import torch
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from segray.atomic import put_atomically
from segray.columns import packed, unpacked
from segray.errors import ItemError, JobFailedError
from segray.models.semanticfile import semantic_bytes
from segray.sources.labels import LabelRules
from segray.storage import StorageSettings, open_filesystem
from segray.train.examples import Framing, Reader, Surveyed, order_of, share_of, surveyed
from segray.train.pairs import Pair
from segray.train.semantic import Batch, SemanticTraining, Task

CHECKPOINTS, STATE = "checkpoints", "state.pt"
LOADER_CPUS = 0.1
"""Ray's tally, not a limit: training needs the cores more than decoding does."""
SURVEYED_AT_ONCE = 16
SCORING = -1
"""Stands in the place of an epoch where nothing is drawn."""
_BATCHES = pa.schema(
    [("epoch", pa.int32()), ("name", pa.string()), ("height", pa.int32()), ("width", pa.int32()),
     ("pixels", pa.large_binary()), ("classes", pa.large_binary())]
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How pairs are read, in any process."""

    rules: LabelRules
    max_pixels: int
    storage: StorageSettings

    def reader(self) -> Reader:
        """One for this process."""
        return Reader(self.rules, self.max_pixels, self.storage)


@dataclass(frozen=True)
class Run:
    """What every worker is given."""

    task: Task
    reading: Reading
    framing: Framing
    batch_size: int
    loaders: int
    device: str
    output: str


def survey(pairs: Sequence[Pair], reading: Reading, loaders: int) -> list[Surveyed | ItemError]:
    """What one pass says of each pair, in their order."""
    rows = pa.table({"place": pa.array(range(len(pairs)), pa.int64())})
    _configure()
    answers = ray.data.from_arrow(rows).map_batches(
        _Survey,
        fn_constructor_args=(ray.put(list(pairs)), reading),
        batch_size=SURVEYED_AT_ONCE,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=1, max_size=loaders),
        num_cpus=LOADER_CPUS,
    )
    found: dict[int, Surveyed | ItemError] = {}
    table: pa.Table
    for table in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
        for place, told in zip(table["place"].to_pylist(), table["told"].to_pylist(), strict=True):
            values = json.loads(told)
            found[place] = ItemError(*values) if isinstance(values, list) else Surveyed(**values)
    return [found[place] for place in range(len(pairs))]


class _Survey:
    def __init__(self, pairs: list[Pair], reading: Reading) -> None:
        self._pairs = ray.get(pairs) if isinstance(pairs, ray.ObjectRef) else pairs
        self._reader, self._classes = reading.reader(), reading.rules.classes

    def __call__(self, table: pa.Table) -> pa.Table:
        places = table["place"].to_pylist()
        examples = self._reader.read([self._pairs[place] for place in places])
        told = [
            json.dumps(
                [example.error_type, example.reason]
                if isinstance(example, ItemError)
                else asdict(surveyed(example, self._classes))
            )
            for example in examples
        ]
        return pa.table({"place": pa.array(places, pa.int64()), "told": pa.array(told, pa.string())})


class _Places(Datasource):
    """Which pairs come when: read tasks that give a table a batch, in order."""

    def __init__(self, tasks: Sequence[Callable[[], Iterator[pa.Table]]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks = tasks

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        nothing = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(task, nothing) for task in self._tasks]


def _epoch(epoch: int, items: int, seed: int, batch_size: int, rank: int, workers: int) -> Iterator[pa.Table]:
    """A worker's part of each global batch; drawn where it is read, so that no process holds all epochs."""
    for batch in share_of(order_of(items, seed, epoch), batch_size, rank, workers):
        yield _places(epoch, batch.tolist())


def _each_alone(places: Sequence[int]) -> Iterator[pa.Table]:
    """For scoring, where pictures have any size."""
    for place in places:
        yield _places(SCORING, [place])


def _places(epoch: int, places: Sequence[int]) -> pa.Table:
    columns = {"epoch": pa.array([epoch] * len(places), pa.int32()), "place": pa.array(places, pa.int64())}
    return packed(pa.table(columns))


class _Load:
    """Places -> pixels and classes."""

    def __init__(self, pairs: Any, reading: Reading, framing: Framing) -> None:
        torch.set_num_threads(1)
        self._pairs: list[Pair] = ray.get(pairs) if isinstance(pairs, ray.ObjectRef) else pairs
        self._reader, self._framing = reading.reader(), framing

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for table in unpacked(block):
            yield packed(self._loaded(table))

    def _loaded(self, table: pa.Table) -> pa.Table:
        rows = []
        pairs = [self._pairs[place] for place in table["place"].to_pylist()]
        for pair, epoch, example in zip(
            pairs, table["epoch"].to_pylist(), self._reader.read(pairs), strict=True
        ):
            if isinstance(example, ItemError):  # it could be read when the data were surveyed
                raise JobFailedError(f"{pair.name}: {example.reason}; the data changed, run again")
            if epoch == SCORING:
                pixels, classes = self._framing.scoring(example)
            else:
                pixels, classes = self._framing.training(example, epoch, pair.item)
            rows.append(
                (epoch, pair.name, *classes.shape, pixels.numpy().tobytes(), classes.numpy().tobytes())
            )
        columns = list(zip(*rows, strict=True)) or [()] * len(_BATCHES)
        return pa.table(
            [pa.array(column, field.type) for column, field in zip(columns, _BATCHES, strict=True)],
            schema=_BATCHES,
        )


def _stream(pairs: Any, tasks: Sequence[Callable[[], Iterator[pa.Table]]], run: Run) -> Iterator[Batch]:
    """Batches in order; one without a row is a picture that is void all over, so that all workers step."""
    _configure()
    batches = ray.data.read_datasource(
        _Places(tasks), num_cpus=0.1, override_num_blocks=max(1, len(tasks))
    ).map_batches(
        _Load,
        fn_constructor_args=(pairs, run.reading, run.framing),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=1, max_size=run.loaders),
        num_cpus=LOADER_CPUS,
    )
    for block in batches.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        for table in unpacked(block):
            yield _batch(table, run)


def _batch(table: pa.Table, run: Run) -> Batch:
    if not table.num_rows:
        side = run.framing.size
        return Batch(
            torch.zeros(1, 3, side, side, dtype=torch.uint8),
            torch.full((1, side, side), 255, dtype=torch.uint8),
            [],
        )
    height, width = table["height"][0].as_py(), table["width"][0].as_py()
    pixels, classes = (
        np.stack([np.frombuffer(value.as_buffer(), np.uint8) for value in table[name]])
        for name in ("pixels", "classes")
    )
    return Batch(
        torch.from_numpy(pixels).view(-1, 3, height, width),
        torch.from_numpy(classes).view(-1, height, width),
        table["name"].to_pylist(),
    )


def _configure() -> None:
    context = DataContext.get_current()
    context.target_max_block_size = 1  # a table is a batch: neither gathered nor cut
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True


def train(
    run: Run, pairs: dict[str, list[Pair]], storage: StorageSettings, workers: int, failures: int
) -> None:
    """Train to the last epoch from where the output stands. Raises JobFailedError."""
    filesystem, path = open_filesystem(run.output, storage)
    lists = {name: ray.put(pairs[name]) for name in ("train", "val")}
    numbers = {name: len(pairs[name]) for name in lists}
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"run": run, "lists": lists, "numbers": numbers},
        torch_config=TorchConfig(backend="nccl" if run.device == "cuda" else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=run.device == "cuda", resources_per_worker=_resources(run, workers)
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)),
            failure_config=FailureConfig(max_failures=failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise JobFailedError(f"training broke: {(lines or [type(error).__name__])[-1]}") from error


def _resources(run: Run, workers: int) -> dict[str, float]:
    """A worker's; CPUs are left for reading and decoding, or Ray would wait without a word."""
    cpus = ray.cluster_resources().get("CPU", 1.0)  # type: ignore[no-untyped-call]
    loading = workers * 2 * (run.loaders * LOADER_CPUS + 0.1)  # one stream trains, one scores
    share = min(1.0, (cpus - loading) / workers)
    if share < 0.1:
        raise JobFailedError(
            f"workers: {workers} with {run.loaders} loaders each do not fit into {cpus:g} CPUs; ask for fewer"
        )
    return {"CPU": share} | ({"GPU": 1.0} if run.device == "cuda" else {})


def _worker(config: dict[str, Any]) -> None:
    """What each worker does, in step with the others."""
    run, lists, numbers = config["run"], config["lists"], config["numbers"]
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    training = SemanticTraining(run.task, ray.train.torch.get_device())
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            training.load_state_dict(torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True))
    left = range(training.epoch, run.task.epochs)
    share = (numbers["train"], run.task.seed, run.batch_size, rank, workers)
    batches = _stream(lists["train"], [partial(_epoch, epoch, *share) for epoch in left], run)
    own = range(rank, numbers["val"], workers)
    for _ in left:
        started, losses = time.monotonic(), []
        for _ in range(run.task.steps_per_epoch):
            losses.append(training.train_step(next(batches)))
        seconds = time.monotonic() - started
        val_loss, scores = training.score(
            _stream(lists["val"], [partial(_each_alone, own)], run) if own else ()
        )
        training.epoch += 1
        figures = scores.compute()
        training.schedule.observe(figures["miou"])
        line = {
            "epoch": training.epoch,
            "step": training.step,
            "train_loss": sum(losses) / len(losses),
            "val_loss": val_loss,
            "miou": figures["miou"],
            "dice": figures["dice"],
            "pixel_accuracy": figures["pixel_accuracy"],
            "iou": figures["per_class"]["iou"],
            "lr": training.optimizer.param_groups[0]["lr"],
            "images_per_s": numbers["train"] / seconds,
        }
        _report(training, line, run, rank)


def _report(training: SemanticTraining, line: dict[str, Any], run: Run, rank: int) -> None:
    """The best network and the metrics into the output, then the checkpoint to Ray Train."""
    best = max((each["miou"] for each in training.history), default=-1.0)
    training.history.append(line)
    if rank != 0:
        ray.train.report(line)
        return
    filesystem, path = open_filesystem(run.output, run.reading.storage)
    if not line["miou"] <= best:
        data = semantic_bytes(run.task.card, training.scored.state_dict())
        put_atomically(filesystem, f"{path}/model.pt", data)
    lines = "".join(json.dumps(each) + "\n" for each in training.history)
    put_atomically(filesystem, f"{path}/metrics.jsonl", lines.encode())
    with tempfile.TemporaryDirectory() as folder:
        torch.save(training.state_dict(), Path(folder) / STATE)
        ray.train.report(line, checkpoint=Checkpoint.from_directory(folder))
