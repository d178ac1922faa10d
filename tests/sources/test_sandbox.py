"""Crashes, hangs and memory bombs in the decoder cost one item; pixels come through unchanged."""

import gc
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from PIL import Image

from segray.data.labels import LabelRules, read_label
from segray.errors import ItemError, JobFailedError
from segray.schema import DECODED
from segray.sources.decode_step import Decoder
from segray.sources.item import Source
from segray.sources.label_image import read_stored
from segray.sources.rows import FetchedRows
from segray.sources.sandbox import DecodeSandbox
from tests.sources.pictures import jpeg, pillow_rgb

ROOT = Path(__file__).parents[2]
HOSTILE = "tests.sources.hostile_decoder"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DecodeSandbox]:
    """A sandbox that runs the hostile decoder, patiently: a busy machine is slow, too."""
    yield from hostile(30)


@pytest.fixture
def impatient() -> Iterator[DecodeSandbox]:
    """Another, which gives a file two seconds."""
    yield from hostile(2)


def hostile(timeout_s: float) -> Iterator[DecodeSandbox]:
    """One that gives each file so many seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with DecodeSandbox(timeout_s=timeout_s, program=HOSTILE) as sandbox:
            yield sandbox


def refusal(sandbox: DecodeSandbox, data: bytes, max_pixels: int = 1000) -> ItemError:
    """The error that `data` ends with."""
    with pytest.raises(ItemError) as caught:
        sandbox.decode(data, max_pixels)
    return caught.value


def works(sandbox: DecodeSandbox) -> bool:
    """Whether the next file decodes as if nothing had been."""
    return np.array_equal(sandbox.decode(jpeg(), 1000).pixels, pillow_rgb(jpeg()))


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV"])
def test_crash(sandbox: DecodeSandbox, name: str) -> None:
    error = refusal(sandbox, b"die %d" % getattr(signal, name))
    assert error.error_type == "crashed"
    assert name in error.reason
    assert works(sandbox)


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (np.arange(6, dtype=np.uint8).reshape(2, 3), "PNG"),
        (np.arange(0, 60_000, 10_000, dtype=np.uint16).reshape(3, 2), "PNG"),
        (np.arange(0, 600_000, 100_000, dtype=np.int32).reshape(1, 6), "TIFF"),
    ],
)
def test_numbers_of_labels_come_through(sandbox: DecodeSandbox, values: npt.NDArray[Any], form: str) -> None:
    file = BytesIO()
    Image.fromarray(values).save(file, form)
    found, expected = sandbox.stored(file.getvalue(), 1000), read_stored(file.getvalue(), 1000)
    assert np.array_equal(found.values, values)
    assert found.values.dtype == expected.values.dtype
    assert (found.white, found.lossy, found.form) == (expected.white, expected.lossy, expected.form)


def test_colours_of_labels_come_through(sandbox: DecodeSandbox) -> None:
    found = sandbox.stored(jpeg(), 1000, coloured=True)
    assert np.array_equal(found.values, pillow_rgb(jpeg()))
    assert found.lossy


def test_a_label_that_kills_the_decoder_costs_itself(sandbox: DecodeSandbox) -> None:
    rules = LabelRules(2, "binary")
    with pytest.raises(ItemError, match="the decoder died of SIGSEGV on this file, twice"):
        read_label(b"die 11", rules, 1000, sandbox.stored)
    file = BytesIO()
    Image.new("1", (3, 2), 1).save(file, "PNG")
    assert np.array_equal(read_label(file.getvalue(), rules, 1000, sandbox.stored), np.ones((2, 3)))
    with pytest.raises(ItemError, match="not an image"):
        read_label(b"nothing", rules, 1000, sandbox.stored)


def test_crash_that_does_not_repeat(sandbox: DecodeSandbox, tmp_path: Path) -> None:
    assert sandbox.decode(b"die-once " + str(tmp_path / "mark").encode(), 1000).pixels.shape == (1, 1, 3)


def test_exit(sandbox: DecodeSandbox) -> None:
    error = refusal(sandbox, b"exit 3")
    assert error.error_type == "crashed"
    assert "3" in error.reason


def test_kill_by_the_system_is_memory(sandbox: DecodeSandbox) -> None:
    assert refusal(sandbox, b"die %d" % signal.SIGKILL).error_type == "memory"


def test_hang(impatient: DecodeSandbox) -> None:
    works(impatient)  # not the start's time
    start = time.monotonic()
    error = refusal(impatient, b"hang ")
    assert error.error_type == "timeout"
    assert "2 s" in error.reason
    assert 2 <= time.monotonic() - start < 4
    assert works(impatient)


def test_memory_grows_with_the_pixel_limit_only(sandbox: DecodeSandbox) -> None:
    order = b"allocate %d" % (600 << 20)
    assert refusal(sandbox, order).error_type == "memory"
    assert works(sandbox)
    assert sandbox.decode(order, 30_000_000).frames > 0


def test_what_one_file_left_in_memory_is_not_held_against_the_next(sandbox: DecodeSandbox) -> None:
    works(sandbox)
    first = sandbox.decode(b"hoard %d" % (180 << 20), 1000).frames
    assert sandbox.decode(b"allocate %d" % (180 << 20), 1000).frames not in (0, first)
    assert works(sandbox)


def test_child_that_stops_talking_is_ended(sandbox: DecodeSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segray.sources.sandbox._END_S", 0.2)
    start = time.monotonic()
    assert refusal(sandbox, b"mute ").error_type == "crashed"
    assert time.monotonic() - start < 10
    assert works(sandbox)


def test_one_child_for_many_files(sandbox: DecodeSandbox) -> None:
    first, second = (sandbox.decode(b"pid ", 1000).frames for _ in range(2))
    assert first == second != os.getpid()
    refusal(sandbox, b"not a picture")
    assert sandbox.decode(b"pid ", 1000).frames == first


def test_a_crash_leaves_no_core_file(sandbox: DecodeSandbox) -> None:
    sandbox.close()
    ours = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (ours[1], ours[1]))
    try:
        child = sandbox.decode(b"pid ", 1000).frames
        assert resource.prlimit(child, resource.RLIMIT_CORE)[0] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, ours)


def test_child_ends_with_its_parent() -> None:
    """The parent is killed without a chance to tidy up."""
    program = (
        "from segray.sources.sandbox import DecodeSandbox\n"
        "sandbox = DecodeSandbox(program='tests.sources.hostile_decoder')\n"
        "print(sandbox.decode(b'pid ', 10).frames, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_decoder_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SEGRAY_TEST_BROKEN_START", "1")
    sandbox = DecodeSandbox(program=HOSTILE)
    with pytest.raises(JobFailedError, match="a library is missing"):
        sandbox.decode(jpeg(), 1000)


def fetched() -> pa.Table:
    """Three pictures with a broken one, a missing one and a control row among them."""
    rows = FetchedRows()
    sources = [Source(f"file:///{n}.jpg", f"/{n}.jpg", "file", "1-1", 1) for n in range(5)]
    for seed, source in enumerate(sources[:3]):
        rows.add_file(source, jpeg(seed))
    rows.add_file(sources[3], b"junk")
    rows.add_file(sources[4], ItemError("missing", "the file is not there"))
    rows.add_end(sources[0], 5, 7, broken=False)
    return rows.take()


@pytest.mark.parametrize("target_bytes", [1, 2 * 40 * 24 * 3, 1 << 20])
def test_decode_table(target_bytes: int, sandbox: DecodeSandbox) -> None:
    tables = list(Decoder(sandbox, 1000, table_bytes=target_bytes).tables(fetched()))
    assert [table.num_rows for table in tables] == {1: [1, 1, 4], 1 << 20: [6]}.get(target_bytes, [2, 4])
    joined = pa.concat_tables(tables)
    assert joined.schema == DECODED
    assert joined["image_id"].to_pylist() == fetched()["image_id"].to_pylist()
    for seed, pixels in enumerate(joined["pixels"].to_pylist()[:3]):
        assert pixels == pillow_rgb(jpeg(seed)).tobytes()
    assert joined["height"].to_pylist() == [24, 24, 24, None, None, None]
    assert joined["error_type"].to_pylist() == [None, None, None, "corrupt", "missing", None]
    assert joined["end"].to_pylist()[-1] == {"items": 5, "ignored": 7, "broken": False}


def pictures(number: int) -> pa.Table:
    rows = FetchedRows()
    for seed in range(number):
        rows.add_file(Source(f"file:///{seed}.jpg", f"/{seed}.jpg", "file", "1-1", 1), jpeg(seed))
    return rows.take()


def test_tables_that_are_kept_stay_as_they_were(sandbox: DecodeSandbox) -> None:
    tables = list(Decoder(sandbox, 1000, table_bytes=1).tables(pictures(6)))
    list(Decoder(sandbox, 1000).tables(pictures(2)))
    for seed, table in enumerate(tables):
        assert table["pixels"].to_pylist() == [pillow_rgb(jpeg(seed)).tobytes()]


def shared_memories() -> int:
    """How many of them this process holds open; other files come and go with what ran before."""
    gc.collect()
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, by another thread
            found += "memfd:segray" in str(file.readlink())
    return found


def test_memory_of_tables_that_are_gone_is_used_again(sandbox: DecodeSandbox) -> None:
    works(sandbox)
    memories = shared_memories()
    child = sandbox.decode(b"pid ", 1000).frames
    for table in Decoder(sandbox, 1000, table_bytes=1).tables(pictures(12)):
        assert table.num_rows == 1
    assert sandbox.decode(b"pid ", 1000).frames == child
    assert shared_memories() == memories > 0


def test_empty_table(sandbox: DecodeSandbox) -> None:
    assert list(Decoder(sandbox, 1000).tables(fetched().slice(0, 0))) == []


@pytest.mark.parametrize("kills", [2, 3])
def test_a_child_that_is_killed_while_it_starts(
    kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "starts").touch()
    monkeypatch.setenv("SEGRAY_TEST_KILLED_STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("SEGRAY_TEST_KILLS", str(kills))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with DecodeSandbox(timeout_s=30, program=HOSTILE) as sandbox:
        if kills == 2:
            assert works(sandbox)
        else:
            with pytest.raises(JobFailedError, match="killed while it starts"):
                works(sandbox)
