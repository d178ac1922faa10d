"""A Ray of our own: it starts where it is hard to start, nobody else gets in, and nothing stays behind."""

import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest

from segray import dev_shm, own_ray
from segray.cpus import cpu_quota
from segray.errors import SettingsError
from tests.bulk.runs import REAL, descendants, kill_tree, processes, running, wait_for
from tests.train.squares import arguments as training
from tests.train.squares import write_squares

SEGRAY = str(Path(sys.executable).parent / "segray")
"""As it is installed: `python -m` would put the working folder on the path."""
START_S = 600.0
LOOPBACK = re.compile(r"0100007F:|0{16}FFFF00000100007F:|0{24}01000000:")
"""127.0.0.1, the same as an IPv6 address, and ::1, in the kernel's own order of bytes."""
DEPENDENCIES = (
    "simplejpeg", "PIL", "rasterio", "numpy", "torch", "torchvision", "ray", "segray", "sitecustomize",
    "usercustomize", "json", "pyarrow", "pandas", "shapely", "pyproj", "fsspec", "cv2", "psutil", "aiohttp",
    "tenacity", "pydantic", "yaml", "rich", "grpc", "opentelemetry", "segmentation_models_pytorch", "timm",
)  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real images that everybody may read."""
    folder = tmp_path_factory.mktemp("pictures")
    for path in REAL[:2]:
        shutil.copy(path, folder)
    for above in (folder, *list(folder.parents)[:3]):
        above.chmod(0o755)
    return folder


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for temporary files with a short name, for the names of sockets."""
    with TemporaryDirectory(prefix="s-", dir="/tmp") as folder:
        yield Path(folder)


@contextmanager
def started(
    command: Sequence[object], cwd: Path, env: Mapping[str, str], program: Sequence[str] = (SEGRAY,)
) -> Iterator[subprocess.Popen[str]]:
    """segray as installed, with a Ray of its own; all of it is killed at the end."""
    process = subprocess.Popen(
        [*program, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
        | dict(env),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.communicate()


def items(output: Path) -> int:
    """How many images are annotated."""
    return sum(
        pq.read_table(path)["status"].to_pylist().count("annotated")
        for path in output.glob("images/*.parquet")
    )


def listening(pid: int) -> dict[str, str]:
    """Address (hexadecimal) -> command line of what listens for TCP, of a process and all below it."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, address, _, state, *rest = line.split()
            if state == "0A":
                sockets[f"socket:[{rest[5]}]"] = address
    found = dict[str, str]()
    for one, command in {pid: "driver", **descendants(pid)}.items():
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{one}/fd").iterdir()]  # noqa: PTH115
        except OSError:
            continue
        found |= {sockets[link]: command for link in links if link in sockets}
    return found


def environment_of(pid: int) -> dict[str, str]:
    """Of a process, as it was started; empty once it has ended, also while nobody has waited for it."""
    try:
        parts = Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return {}
    return dict(part.split("=", 1) for part in parts if "=" in part)


def test_nobody_gets_in_and_code_among_the_images_is_not_run(
    pictures: Path, tmp_path: Path, short: Path
) -> None:
    """Looked at again and again while it runs: everything is on loopback, and its folder is private.

    Whatever the user has set for clusters.
    """
    for path in pictures.iterdir():
        shutil.copy(path, tmp_path)
    trap = f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__ + '\\n'); raise ImportError"
    for name in DEPENDENCIES:
        (tmp_path / f"{name}.py").write_text(trap)
    command = ("annotate", ".", "--weights", "nuclei-small", "--output", "out")
    seen = dict[str, str]()
    started_ones = set[int]()
    modes = Counter[str]()
    tokens = set[tuple[str | None, str | None]]()
    unguarded = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "of a cluster"}
    with started(command, tmp_path, {"TMPDIR": str(short), **unguarded}) as driver:
        while driver.poll() is None:
            seen |= listening(driver.pid)
            started_ones |= descendants(driver.pid).keys()
            tokens |= {
                (variables.get("RAY_AUTH_MODE"), variables.get("RAY_AUTH_TOKEN"))
                for pid, line in descendants(driver.pid).items()
                if "/raylet/raylet " in line
                if (variables := environment_of(pid))
            }
            for path in (*short.glob("segray-*/"), *short.glob("segray-*/token")):
                with suppress(FileNotFoundError):
                    modes["folder" if path.is_dir() else "file"] |= stat.S_IMODE(path.stat().st_mode)
            time.sleep(0.6)
        _, told = driver.communicate()
        assert driver.returncode == 0, told
        wait_for(lambda: not started_ones & processes().keys(), 10, "its processes to end")
    assert items(tmp_path / "out") == 2
    assert not (tmp_path / "ran").exists()
    assert modes == {"folder": 0o700, "file": 0o600}
    assert tokens == {("token", None)}
    for part in ("raylet/raylet", "gcs_server", "ray::", "Agent", "driver"):
        assert any(part in command for command in seen.values()), (part, seen)
    assert {address: command for address, command in seen.items() if not LOOPBACK.match(address)} == {}
    assert not list(short.glob("segray*"))


def test_training_listens_on_loopback_alone(tmp_path: Path, short: Path) -> None:
    """Two workers: their process group has a store and sockets of its own. Their start is not looked at."""
    data = write_squares(tmp_path / "data")
    command = training(data, tmp_path / "out", "--epochs", 1, "--workers", 2)
    seen = dict[str, str]()
    with running(*command, verb="train", env={"TMPDIR": str(short)}) as driver:
        while driver.poll() is None:
            seen |= listening(driver.pid)
            time.sleep(0.6)
        _, told = driver.communicate()
        assert driver.returncode == 0, told
    assert any("RayTrainWorker" in command for command in seen.values()), seen
    assert {address: command for address, command in seen.items() if not LOOPBACK.match(address)} == {}
    assert not list(short.glob("segray*"))


def test_a_user_without_a_home_and_a_long_name_for_temporary_files(pictures: Path, tmp_path: Path) -> None:
    """As a container platform starts it (any uid, HOME=/), and a batch system (a folder for each job)."""
    with TemporaryDirectory(prefix="uid-", dir="/tmp") as name:
        folder = Path(name)
        long = folder / ("job-" + 110 * "x")
        long.mkdir()
        for path in (folder, long):
            os.chown(path, *((12345, 12345) if os.geteuid() == 0 else (-1, -1)))
        # as root: the right to read everything, since Python may lie in root's home; not the right to write
        other = (
            *("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"),
            *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
            *("env", "-u", "USER", "-u", "LOGNAME", "HOME=/"),
        )
        command = ("annotate", pictures, "--weights", "nuclei-small", "--output", "out")
        program = (*other, SEGRAY) if os.geteuid() == 0 else ("env", "HOME=/", SEGRAY)
        with started(command, folder, {"TMPDIR": str(long)}, program) as driver:
            _, told = driver.communicate(timeout=START_S)
            assert driver.returncode == 0, told
        assert items(folder / "out") == 2
        assert (folder / "out").stat().st_uid == (os.geteuid() or 12345)
        assert list(long.iterdir()) == []


def test_no_room_for_sockets_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / (120 * "x")
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    monkeypatch.setattr(own_ray, "_SHORT_FOLDERS", ())
    with pytest.raises(SettingsError, match=r"too long for Ray's sockets \(\d+ bytes, at most \d+\)"):
        own_ray._folders()
    assert list(long.iterdir()) == []


WORKER = re.compile(r"ray::(?!\w*Agent)")
"""The title of one that has registered."""


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Others work on this machine."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def test_it_starts_on_a_busy_machine(pictures: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """`--starts N` of them, each under four busy loops until Ray has registered a worker."""
    for number in range(int(request.config.getoption("--starts"))):
        output = tmp_path / str(number)
        command = ("annotate", pictures, "--weights", "nuclei-small", "--output", output)
        with started(command, tmp_path, {}) as driver:
            with busy(4):
                seen = list[str]()
                while not any(map(WORKER.match, seen)) and driver.poll() is None:
                    seen = [*descendants(driver.pid).values()]
                    time.sleep(0.5)
            _, told = driver.communicate(timeout=START_S)
            assert driver.returncode == 0, told
        assert items(output) == 2


def test_a_raylet_that_dies_while_it_starts_is_started_again(
    pictures: Path, tmp_path: Path, short: Path
) -> None:
    """And what a killed run has left is removed, what a live one needs is not."""
    for name in ("segray-killed", "segray-alive"):
        (short / name / "r").mkdir(parents=True)
        (short / name / "alive").touch()
    command = (pictures, "--weights", "nuclei-small", "--output", tmp_path / "out")
    with (
        (short / "segray-alive/alive").open("r+b") as held,
        running(*command, program="tests.first_raylet_dies", env={"TMPDIR": str(short)}) as driver,
    ):
        fcntl.flock(held, fcntl.LOCK_EX)
        _, told = driver.communicate(timeout=START_S)
        assert driver.returncode == 0, told
    assert "Ray did not start here: its raylet ended with status -9" in told
    assert "trying again (2 of 4)" in told
    logs = re.search(r"its messages: (\S+);", told)
    assert logs is not None
    assert len(list(Path(logs[1]).glob("session_*/gcs_server.out"))) == 1
    assert stat.S_IMODE(Path(logs[1]).stat().st_mode) == 0o700
    assert (short / "segray-alive/r").exists()
    assert not (short / "segray-killed").exists()
    assert items(tmp_path / "out") == 2


def test_a_folder_for_temporary_files_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {*Path("/tmp").glob("segray-*"), *Path("/dev/shm").glob("segray-*")}
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match=r"RAY_TMPDIR: cannot write into .*nowhere: No such file"):
        own_ray._folders()
    assert {*Path("/tmp").glob("segray-*/"), *Path("/dev/shm").glob("segray-*/")} <= before


STOPPED_WHILE_IT_LOADS = """
import os, signal, sys, time
from pathlib import Path
from segray.cluster import RayStart, set_environment
from segray.interrupts import INTERRUPTS
from segray.settings import RaySettings
set_environment()
try:
    with INTERRUPTS, RayStart(RaySettings(object_store_mib=128), Path(sys.argv[1])) as ray:
        ray.begin()
        while not ray._begun.done():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_a_stop_between_the_start_of_ray_and_the_work(tmp_path: Path, short: Path) -> None:
    """Ray has put a handler of its own in the place of ours, in another thread; a model may be loading."""
    program = (sys.executable, "-c", STOPPED_WHILE_IT_LOADS)
    with started([tmp_path / "log"], tmp_path, {"TMPDIR": str(short)}, program) as driver:
        _, told = driver.communicate(timeout=START_S)
        assert driver.returncode == 130, told
    assert not list(short.glob("segray-*/r"))


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "50000 100000"}, 0.5),  # a container with a namespace of its own
        ("0::/\n", {"cpu.max": "max 100000"}, float("inf")),
        ("0::/jobs/7\n", {"jobs/cpu.max": "300000 100000", "jobs/7/cpu.max": "max 100000"}, 3.0),
        ("0::/a.slice/b\n", {"a.slice/cpu.max": "800000 100000", "a.slice/b/cpu.max": "150000 100000"}, 1.5),
        (
            "4:cpu,cpuacct:/docker/1\n0::/\n",
            {"cpu/docker/1/cpu.cfs_quota_us": "200000", "cpu/docker/1/cpu.cfs_period_us": "100000"},
            2.0,
        ),
        (
            "1:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            float("inf"),
        ),
        ("1:cpu:/gone\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ("", {}, float("inf")),
        ("0::/\n", {"cpu.max": "nonsense"}, float("inf")),
    ],
)
def test_the_quota_of_a_container_counts(
    own: str, files: Mapping[str, str], cpus: float, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own)
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "own") == cpus
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "none") == float("inf")


def test_a_small_shared_memory_is_said() -> None:
    free = shutil.disk_usage("/dev/shm").free >> 20
    assert dev_shm.advice(free // 2) is None
    told = dev_shm.advice(2 * free + 1000) or ""
    assert re.match(r"/dev/shm has [\d,]+ MiB free, less than the object store of [\d,]+ MiB", told)
    assert "--ray.object-store-mib" in told
    assert "--shm-size" in told
