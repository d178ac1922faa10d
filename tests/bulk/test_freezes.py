"""Two attempts of one job, the first stopped by SIGSTOP at a random moment until the second has finished.

`pytest tests/bulk/test_freezes.py --freezes 50` makes as many trials on a disk, and on S3.
"""

import json
import random
import signal
import subprocess
import time
from calendar import timegm
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from segray.output.lease import NAME
from tests.bulk.fencing import visible
from tests.bulk.harness import SKEW, START_S, trial
from tests.bulk.runs import MODELS, annotate, make_images, running, wait_for
from tests.servers import Server
from tests.tally import TALLY

IMAGES = 40
LEASE = ("--storage.lease.renew-s", "0.4", "--storage.lease.expires-s", "1.5")
QUICK = ("--weights", MODELS + "slow", "--commit-every-s", "0.1", "--ray.object-store-mib", "256", *LEASE)
OFF_S = -120.0, 120.0
"""The first attempt's clock."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a trial."""
    if "seed" in metafunc.fixturenames:
        first, number = (int(metafunc.config.getoption(name)) for name in ("--fault-seed", "--freezes"))
        metafunc.parametrize("seed", range(first, first + number))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return make_images(tmp_path_factory.mktemp("pictures") / "all", IMAGES)


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The output of a run that nothing happened to; not to be changed."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    assert annotate(pictures, "--output", output, *QUICK) == 0
    return output


@dataclass
class Overlap:
    """Two attempts that write to `url`."""

    seed: int
    pictures: Path
    url: str
    files: Callable[[], dict[str, bytes]]
    """Name in the output -> contents."""
    env: dict[str, str]

    def happens(self) -> tuple[int, str]:
        """(Exit code, last words) of the first attempt; the second must succeed."""
        chance = random.Random(self.seed)
        skew_s = chance.choice(OFF_S)
        run = (self.pictures, "--output", self.url, *QUICK)
        env = self.env | {SKEW: str(skew_s)}
        with running(*run, program="tests.bulk.elsewhere", env=env) as first:
            self._wait_for_a_moment(first, chance)
            assert NAME in self.files(), first.communicate()
            first.send_signal(signal.SIGSTOP)
            self._check_clock(skew_s)
            TALLY["frozen at work"] += first.poll() is None and "run.json" not in self.files()
            assert annotate(*run) == 0
            finished = self.files()
            first.send_signal(signal.SIGCONT)
            _, told = first.communicate(timeout=START_S)
        after = self.files()
        assert _settled(after) == _settled(finished)
        assert after["run.json"] == finished["run.json"]
        return first.returncode, told

    def _wait_for_a_moment(self, first: subprocess.Popen[str], chance: random.Random) -> None:
        """From when it has the lease, or its first commit, until about its end."""
        wanted = chance.choice([NAME, "_segray/staging/", "images/"])

        def begun() -> bool:
            return first.poll() is not None or any(name.startswith(wanted) for name in self.files())

        wait_for(begun, START_S, "the first attempt")
        time.sleep(chance.uniform(0.0, 1.5))

    def _check_clock(self, skew_s: float) -> None:
        lease = json.loads(self.files()[NAME])
        told = timegm(time.strptime(lease["renewed_at"], "%Y-%m-%dT%H:%M:%SZ"))
        assert abs(told - skew_s - time.time()) < 60


def _settled(names: Iterable[str]) -> set[str]:
    """Without what a frozen attempt is about to write: under names that nobody reads, and its lease's."""
    return {name for name in names if "/unpublished/" not in name and not name.endswith(".tmp")}


def check(overlap: Overlap) -> None:
    """The first stops without a word that asks for repair, and a third run has nothing to do."""
    code, told = overlap.happens()
    assert code in (0, 1), told
    assert "Traceback" not in told
    assert code == 0 or "this one stops" in told, told
    TALLY[f"first attempt ended with {code}"] += 1
    run = overlap.files()["run.json"]
    assert annotate(overlap.pictures, "--output", overlap.url, *QUICK) == 0
    assert overlap.files()["run.json"] == run
    assert not [name for name in overlap.files() if "/unpublished/" in name]


def repeat(seed: int) -> str:
    """The command that makes one trial again."""
    return f"pytest tests/bulk/test_freezes.py --freezes 1 --fault-seed {seed}"


def test_on_a_disk(seed: int, pictures: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    def files() -> dict[str, bytes]:
        found = {}
        for path in output.rglob("*"):
            try:
                found[str(path.relative_to(output))] = b"" if path.suffix == ".parquet" else path.read_bytes()
            except OSError:  # a folder, or gone
                continue
        return found

    with trial("freezes on a disk", seed, repeat(seed)):
        check(Overlap(seed, pictures, str(output), files, {}))
        assert visible(str(output)) == visible(str(undisturbed))


def test_on_s3(
    seed: int,
    pictures: Path,
    undisturbed: Path,
    s3_server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    prefix = f"freezes/{seed}/"

    def files() -> dict[str, bytes]:
        names = s3_server.names(prefix)
        return {
            name.removeprefix(prefix): s3_server.get(name) if name.endswith(".json") else b""
            for name in names
        }

    with trial("freezes on S3", seed, repeat(seed)):
        check(Overlap(seed, pictures, s3_server.url(prefix.rstrip("/")), files, s3_server.env))
        found = visible(s3_server.url(prefix.rstrip("/")), s3_server.storage)
        assert found == visible(str(undisturbed))
