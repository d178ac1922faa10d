"""Kills, lost nodes, failing storage, full disks, little memory: always the rows of an undisturbed run.

Sizes by option, e.g. `pytest tests/bulk/test_faults.py --kills 100 --node-losses 20 --storage-runs 10`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segray.storage import open_filesystem
from tests.bulk.cluster import AUTH, cluster
from tests.bulk.harness import KINDS, Trial, items_in, trial
from tests.bulk.runs import MODELS, TILING, annotate, by_base_name, tables, tiles
from tests.faults import Proxy, flaky
from tests.servers import Server, env_of
from tests.tally import TALLY

LOSSES_A_TRIAL = 4
SHARE = 0.1
"""Of the requests that the storage fails."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a seed; `--kills` and `--node-losses` are shared out among the trials."""
    first = int(metafunc.config.getoption("--fault-seed"))
    for name, option, most in (
        ("kills", "--kills", len(KINDS)),
        ("losses", "--node-losses", LOSSES_A_TRIAL),
        ("storage_seed", "--storage-runs", 1),
    ):
        if name in metafunc.fixturenames:
            total = int(metafunc.config.getoption(option))
            sizes = [min(most, total - done) for done in range(0, total, most)]
            trials = [(first + number, size) for number, size in enumerate(sizes)]
            metafunc.parametrize(name, trials, ids=[f"seed{seed}" for seed, _ in trials])


def repeat(test: str, option: str, size: int, seed: int) -> str:
    """The command that makes one trial again."""
    return f"pytest tests/bulk/test_faults.py -k {test} {option} {size} --fault-seed {seed}"


def check(output: str, expected: Path, safe: int) -> None:
    """The same rows under the same ids, no file too many, and what was safe was not done again."""
    images, instances = tables(output)
    assert (images, instances) == tables(expected)
    assert tiles(output) == tiles(expected)
    left = {path.name for path in Path(output).rglob("*") if path.is_file() and path.suffix != ".parquet"}
    assert left - {".lease.json.guard"} == {"lease.json", "plan.json", "run.json"}
    assert json.loads(Path(output, "_segray/lease.json").read_bytes())["released"]
    assert not list(Path(output).glob("_segray/*/*"))
    record = json.loads(Path(output, "run.json").read_text())
    assert record["rates"]["items"] == len(images) - safe


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Callable[[int], None]]:
    """A file system of `kib` KiB in memory at `folder`; gives a function that changes its size."""

    def mount(*options: str) -> None:
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"a small disk needs root, or `unshare -rm pytest …`: {done.stderr}")

    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs")
    try:
        yield lambda kib: mount("-o", f"remount,size={kib}k")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kib", [36, 60])  # in the middle of the work, in the merge at its end
def test_a_full_disk_is_named_and_the_same_command_goes_on_when_there_is_room(
    kib: int, mixed: Path, expected_mixed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "disk/out"
    run = (mixed, "--output", output, "--weights", MODELS + "seeded", "--commit-every-s", "0", *TILING)
    with small_disk(tmp_path / "disk", kib) as resize:
        assert annotate(*run) == 1
        *_, told = capfd.readouterr().err.strip().splitlines()
        assert told.startswith(f"segray: cannot write {output}/")
        assert "No space left on device" in told
        assert "free disk space" in told
        assert "run again" in told
        assert not list(output.rglob("*.tmp"))
        assert not (output / "run.json").exists()
        resize(8192)
        safe = items_in(str(output))
        assert annotate(*run) == 0
        check(str(output), expected_mixed, safe)


def test_a_full_scratch_disk_is_named(tmp_path: Path) -> None:
    """The plan outgrows its memory, and the folder for temporary files has no room for it."""
    deep = "/none" + 14 * ("/" + 200 * "x")
    names = [f"{deep}/{number}.png" for number in range(15_000)]  # 84 MB of addresses
    pq.write_table(pa.table({"uri": names}), tmp_path / "many.parquet")
    with small_disk(tmp_path / "disk", 1024):
        run = (tmp_path / "many.parquet", "--output", tmp_path / "out", "--weights", MODELS + "seeded")
        command = (sys.executable, "-m", "segray.cli", "annotate", *map(str, run), "--dry-run")
        environment = os.environ | {"TMPDIR": str(tmp_path / "disk")}  # read by SQLite as it is loaded
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        told = done.stderr
    assert done.returncode == 1, told
    assert "full: the folder for temporary files" in told
    assert str(tmp_path / "disk") in told
    assert "Traceback" not in told


def test_kills(
    kills: tuple[int, int], mixed: Path, expected_mixed: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed, number = kills
    with trial("kills", seed, repeat("test_kills", "--kills", number, seed)):
        chain = Trial(seed, mixed, tmp_path, lambda output: check(output, expected_mixed, chain.safe))
        chain.kill(chain.chance.sample(KINDS, number))


def test_node_losses(losses: tuple[int, int], mixed: Path, expected_mixed: Path, tmp_path: Path) -> None:
    """Two or three nodes; the driver on the head, with one CPU beside the workers' one each."""
    seed, number = losses
    with (
        trial("node losses", seed, repeat("test_node", "--node-losses", number, seed)),
        cluster(3 - seed % 2) as (address, lose),
    ):
        options = ("--ray.address", address)
        chain = Trial(
            seed,
            mixed,
            tmp_path,
            lambda output: check(output, expected_mixed, chain.safe),
            options,
            AUTH,
            lose_node=lose,
        )
        chain.kill(["node"] * number + ["driver"] * (number > 1))


def test_storage_that_fails(
    storage_seed: tuple[int, int], s3_server: Server, mixed: Path, expected_mixed: Path
) -> None:
    """Sources and output behind a server that fails one request in ten; every other driver is killed once."""
    seed, _ = storage_seed
    for file in mixed.iterdir():
        s3_server.put(f"faults/{seed}/in/{file.name}", file.read_bytes())
    with (
        trial("storage", seed, repeat("test_storage", "--storage-runs", 1, seed)),
        flaky(s3_server, SHARE, seed) as proxy,
    ):
        chain = Trial(
            seed,
            s3_server.url(f"faults/{seed}/in"),
            s3_server.url(f"faults/{seed}/out"),
            lambda output: check_bucket(output, s3_server, expected_mixed),
            env=env_of(s3_server.storage_at(proxy.endpoint)),
            look=lambda output, folder: puts(proxy, folder),
        )
        try:
            chain.kill(["driver"] * (seed % 2))
        finally:
            TALLY["requests"] += len(proxy.seen)
            TALLY.update({f"answer {fault}": count for fault, count in proxy.failed.items()})
        assert proxy.failed.total() > 5


def puts(proxy: Proxy, folder: str) -> int:
    """Requests so far that write into a folder of the output."""
    return sum(request.startswith("PUT ") and f"/{folder}/" in request for request in proxy.seen)


def check_bucket(output: str, server: Server, expected: Path) -> None:
    """As `check`; ids differ, because they hold the storage's versions."""
    filesystem, root = open_filesystem(output, server.storage)
    images, instances = tables(root, filesystem)
    assert by_base_name(root, filesystem) == by_base_name(expected)
    assert len({row["instance_id"] for row in instances}) == len(instances)
    assert {row["image_id"] for row in instances} <= {row["image_id"] for row in images}
    names = server.names(root.partition("/")[2] + "/")
    assert [name for name in names if not name.endswith(".parquet")] == [
        f"{root.partition('/')[2]}/{name}" for name in ("_segray/lease.json", "_segray/plan.json", "run.json")
    ]
    assert not [name for name in names if "/_segray/" in name and name.endswith(".parquet")]


def test_pixels_that_exceed_the_object_store(images: Path, tmp_path: Path) -> None:
    """16 images of 11 MB and one of 150 MB in a store of 128 MiB: some lie on the disk instead."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, path in enumerate(sorted(images.iterdir())[:17]):
        side = 112 if number == 12 else 30
        large = np.tile(np.asarray(Image.open(path)), (side, side, 1))
        assert (large.nbytes > 128 * 2**20) == (number == 12)
        Image.fromarray(large).save(folder / f"{number}.png", compress_level=1)
    expected = tmp_path / "expected"
    whole = ("--tile-above", "60000000")  # no windows
    assert annotate(folder, "--output", expected, "--weights", MODELS + "seeded", *whole) == 0
    with TemporaryDirectory(prefix="s-", dir="/tmp") as scratch:  # short, for the names of Ray's sockets
        chain = Trial(
            1,
            folder,
            tmp_path / "small",
            lambda output: check(output, expected, chain.safe),
            ("--ray.object-store-mib", "128", *whole),
            {"RAY_TMPDIR": scratch},
        )
        chain.kill(["everything"])
    shutil.rmtree(folder)
