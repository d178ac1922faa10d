"""What does not grow with the number of items: memory, files, the wait before work begins."""

import io
import re
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.benchmarks.processes import SAMPLE_S, held_bytes, started, tree
from segray import schema
from segray.bulk import background_listing as background_listing_module
from segray.bulk.background_listing import BackgroundListing
from segray.bulk.committer import Committer
from segray.bulk.ledger_db import LedgerDb
from segray.errors import JobFailedError
from segray.output.folder import IMAGES, INSTANCES
from segray.output.lease import Lease
from segray.output.store import MERGE_BYTES, Store
from segray.sources.item import Source, image_id
from segray.storage import StorageSettings
from tests.bulk.runs import MODELS, REAL, committed, running, tables, wait_for
from tests.bulk.tables import VERB, answer, table
from tests.many_keys import BUCKET, many_keys

BYTES_AT_MOST = 224 << 20
"""SQLite's cache of 64 MiB, one ledger part, one page of the listing, and Arrow's and malloc's slack."""
START_S = 180.0
"""In which work begins, whatever the size of the listing or of the ledger; a quiet machine takes 30."""
FLAT = 1.2
"""Most that eight times the items take in memory, over once."""
SLACK_BYTES = 200 << 20
"""Less than the tar: the allocator, a table of 48 MiB that is packed while the next one is read."""
A_PIECE = 5_000


def memory_bytes() -> int:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture
def ledger() -> Iterator[LedgerDb]:
    with LedgerDb() as ledger:
        yield ledger


def test_a_large_bucket_is_listed_in_flat_memory(ledger: LedgerDb, request: pytest.FixtureRequest) -> None:
    keys = request.config.getoption("--keys")
    with many_keys(keys, REAL[0]) as storage:
        ledger.add_sources([])
        before = memory_bytes()
        with BackgroundListing([f"s3://{BUCKET}/photos"], storage, ledger) as background:
            begun = time.monotonic()
            assert background.next_round()
            assert time.monotonic() - begun < START_S
            wait_for(lambda: background.ended, 600, "the listing")
        assert ledger.sources() == keys
        assert memory_bytes() - before < BYTES_AT_MOST


def test_the_first_answers_from_a_large_bucket_are_safe_early(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The whole job, until its first commit."""
    with many_keys(request.config.getoption("--keys"), REAL[0]) as storage:
        assert storage.s3.endpoint_url is not None
        env = {
            "AWS_ENDPOINT_URL": storage.s3.endpoint_url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        source, output = f"s3://{BUCKET}/photos", tmp_path / "out"
        begun = time.monotonic()
        with running(source, "--output", output, "--weights", MODELS + "seeded", env=env) as job:
            wait_for(lambda: committed(output) > 0 or job.poll() is not None, START_S, "the first commit")
            assert job.poll() is None, job.communicate()[1]
            assert time.monotonic() - begun < START_S


def test_a_large_tar_and_many_tars_are_done_in_flat_memory(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Pictures of 3 MB in the large one, which one worker reads; all decode them."""
    large, tars = request.config.getoption("--tar-mib") // 3, request.config.getoption("--tars")
    once, more = annotate_tars(tmp_path / "once", large // 8, tars), annotate_tars(tmp_path, large, tars)
    for kind in ("driver", "raylet", "MapWorker(MapBatches(_Decode))", "MapWorker(MapBatches(_Predict))"):
        assert kind in once.keys() & more.keys()
    for kind in once.keys() & more.keys():
        told = f"{kind}: {more[kind] / 2**20:,.0f} MiB against {once[kind] / 2**20:,.0f}"
        assert more[kind] < FLAT * once[kind] + SLACK_BYTES, told


def annotate_tars(scratch: Path, large: int, tars: int) -> dict[str, int]:
    """Peak memory in bytes of a job over one tar of `large` pictures and `tars` small ones.

    Kind of process -> of the largest of it. In all would count how many wait for work, which is chance.
    """
    folder, output = scratch / "in", scratch / "out"
    folder.mkdir(parents=True)
    piece = np.asarray(Image.open(REAL[0]).convert("RGB"))
    picture = io.BytesIO()
    Image.fromarray(np.tile(piece, (4, 4, 1))[:1000, :1000]).save(picture, "BMP")
    with tarfile.open(folder / "large.tar", "w") as tar:
        for number in range(large):
            add_member(tar, f"{number:06d}.bmp", picture.getvalue())
    for number in range(tars):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as tar:
            for path in REAL:
                add_member(tar, path.name, path.read_bytes())
    arguments = ("annotate", folder, "--output", output, "--ray.object-store-mib", 128)
    with started("-m", "tests.warm_segray", *arguments, "--weights", MODELS + "seeded") as job:
        most = Counter[str]()
        while job.poll() is None:
            for pid in tree(job.pid):
                most |= {kind_of(pid, job.pid): held_bytes({pid})}
            time.sleep(2 * SAMPLE_S)
    assert job.returncode == 0
    images, _ = tables(output)
    assert len(images) == large + tars * len(REAL)
    assert {row["status"] for row in images} == {"annotated"}
    return most


def kind_of(pid: int, driver: int) -> str:
    """What it is for, by its command line: an actor of Ray Data by its class, other workers alike."""
    if pid == driver:
        return "driver"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return "ended"
    if actor := re.match(r"ray::(MapWorker\(.*\))", command):
        return actor[1]
    return "worker" if command.startswith("ray::") else Path(command.partition("\0")[0]).name


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_work_begins_before_the_listing_ends_and_nothing_is_done_twice(
    ledger: LedgerDb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_listing_module, "FIRST_ROUND_S", 0.5)
    done: list[int] = []
    with many_keys(6_000, REAL[0], seconds=0.5) as storage:
        store = Store(str(tmp_path), storage)
        committer = Committer(store, ledger, Lease(store), [], every_s=0, task=VERB)
        with BackgroundListing([f"s3://{BUCKET}/photos"], storage, ledger) as background:
            began_early = False
            while background.next_round():
                began_early = began_early or not background.ended
                files = list(ledger.todo_files())
                done.append(len(files))
                committer.add(table(*(answer(file.uri, file.version, instances=1) for file in files)))
                committer.commit()
    assert began_early
    assert len(done) >= 2
    assert sum(done) == ledger.units()[0] == 6_000
    committer.finish()


def test_an_item_without_an_answer_does_not_keep_the_rounds_going(ledger: LedgerDb, images: Path) -> None:
    with BackgroundListing([str(images)], StorageSettings(), ledger) as background:
        assert background.next_round()
        assert ledger.has_work()
        assert not background.next_round()


def test_a_listing_that_breaks_off_after_work_began_fails_the_job(
    ledger: LedgerDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_listing_module, "FIRST_ROUND_S", 0.1)
    with many_keys(3_000, REAL[0], seconds=1.0) as storage:
        impatient = storage.model_copy(update={"attempts": 1, "timeout_s": 0.3})
        with BackgroundListing([f"s3://{BUCKET}/photos"], impatient, ledger) as background:
            ledger.add_sources([Source("a", "a", "file", "1", 1)])
            assert background.next_round()
            wait_for(lambda: background.ended, 60, "the listing to break off")
            with pytest.raises(JobFailedError, match="run again to continue"):
                background.next_round()


def test_a_source_that_is_listed_while_its_old_row_is_merged_leaves_one_row(
    ledger: LedgerDb, tmp_path: Path
) -> None:
    class Overtaken(Store):
        def merge(self, *arguments: object) -> object:  # type: ignore[override]
            merged = super().merge(*arguments)  # type: ignore[arg-type]
            ledger.add_sources([Source("a", "a", "file", "2", 1)])
            return merged

    store = Overtaken(str(tmp_path), StorageSettings())
    parts = [store.commit(table(answer("a"), answer("b")))]
    ledger.add_ledger(store, parts[0])
    ledger.add_sources([Source("b", "b", "file", "1", 1)])
    committer = Committer(store, ledger, Lease(store), parts, every_s=0, task=VERB)
    committer._merge_staged()
    assert [file.version for file in ledger.todo_files()] == ["2"]
    committer.add(table(answer("a", "2")))
    committer.finish()
    rows = [
        row
        for part in store.recover()
        for batch in store.ledger(part, ["version"])
        for row in batch["version"]
    ]
    assert sorted(map(str, rows)) == ["1", "2"]


def many_answers(first: int, number: int) -> pa.Table:
    """Files with three instances each, schema ANNOTATED."""
    uris = [f"s3://{BUCKET}/photos/{index:09d}.png" for index in range(first, first + number)]
    ids = [image_id(uri, None, 0, "1") for uri in uris]
    draw = np.random.default_rng(first)
    instances = 3 * number
    of_instances = {
        "instance_id": pa.array([f"{each}-{rank:07d}" for each in ids for rank in range(3)]),
        "category": pa.array(["nucleus"] * instances),
        "score": pa.array(draw.random(instances, dtype=np.float32)),
        "bbox": _fixed(draw.random(4 * instances, dtype=np.float32), schema.BOX),
        "box": _fixed(draw.random(4 * instances, dtype=np.float32), schema.BOX),
        "segmentation": pa.StructArray.from_arrays(
            [
                _fixed(np.full(2 * instances, 512, np.int32), schema.RLE.field("size").type),
                pa.array([str(value) for value in draw.integers(0, 1 << 62, instances)]),
            ],
            fields=list(schema.RLE),
        ),
    }
    nested = pa.StructArray.from_arrays(
        [of_instances.get(each.name, pa.nulls(instances, each.type)) for each in schema.NESTED_INSTANCE],
        fields=list(schema.NESTED_INSTANCE),
    )
    offsets = pa.array(np.arange(0, instances + 1, 3, dtype=np.int32))
    columns = {
        "image_id": pa.array(ids),
        "uri": pa.array(uris),
        "version": pa.array(["1"] * number),
        "status": pa.array(["annotated"] * number),
        "instances": pa.array(np.full(number, 3, np.int32)),
        "vanished": pa.array(np.zeros(number, bool)),
        "found": pa.ListArray.from_arrays(offsets, nested, type=schema.ANNOTATED.field("found").type),
    }
    arrays = [columns.get(each.name, pa.nulls(number, each.type)) for each in schema.ANNOTATED]
    return pa.table(arrays, schema=schema.ANNOTATED)


def _fixed(values: np.ndarray, kind: pa.DataType) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values), type=kind)


def test_a_large_output_has_few_files_and_is_resumed_in_flat_memory(
    ledger: LedgerDb, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rows = request.config.getoption("--ledger-rows")
    store = Store(str(tmp_path), StorageSettings())
    with LedgerDb() as first, Lease(store) as lock:
        committer = Committer(store, first, lock, [], every_s=0, task=VERB)
        for start in range(0, rows, A_PIECE):
            piece = many_answers(start, min(A_PIECE, rows - start))
            first.add_sources(_source(uri) for uri in piece["uri"].to_pylist())
            committer.add(piece)
        committer.finish()
    sizes = list(store.files(INSTANCES).values())
    assert len(sizes) == len(store.files(IMAGES)) <= 1 + sum(sizes) // (MERGE_BYTES // 2)
    before, begun = memory_bytes(), time.monotonic()
    for part in store.recover():
        ledger.add_ledger(store, part)
    ledger.add_sources(_source(f"s3://{BUCKET}/photos/{index:09d}.png") for index in range(rows + 10))
    assert ledger.has_work()
    assert time.monotonic() - begun < START_S
    assert [file.uri[-13:-4] for file in ledger.todo_files()] == [
        f"{rows + index:09d}" for index in range(10)
    ]
    assert ledger.units()[0] == rows
    assert memory_bytes() - before < BYTES_AT_MOST


def _source(uri: str) -> Source:
    return Source(uri, uri, "file", "1", 1)
