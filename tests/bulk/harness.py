"""Trials: a run that is killed at seeded moments and started again until it is done.

A kill strikes while the job starts, works, writes a commit or merges commits. Kills that Ray heals come
several in one run; after one that ends the run, the same command goes on with the same output. Where the
run is done and kills are left, they go to the next output.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from tests.bulk.runs import MODELS, TILING, descendants, processes, running, wait_for
from tests.tally import TALLY

TITLES = {  # kind -> part of the command line of its processes
    "raylet": "/raylet/raylet ",
    "gcs_server": "/gcs_server ",
    "reader": "ray::Read",
    "decode actor": "MapBatches(_Decode)",
    "decoder": "segray.sources.decoder_process",
    "model actor": "MapBatches(_Predict)",
    "attempts actor": "ray::Attempts",
}
EARLY = ("reader", "decode actor", "decoder")
"""Their work is done soon: they are killed as soon as they are seen, first of all."""
ENDS_RUN = ("everything", "driver", "interrupt", "stop", "raylet", "gcs_server")
KINDS = ("everything", "driver", "interrupt", "stop", *TITLES)
"""`everything`: the driver with all its processes. `driver`: alone, the others must notice. `interrupt`: a
SIGTERM or SIGINT once work has begun, as `ray job stop` and Ctrl-C send it. `stop`: a SIGTERM or SIGHUP to
the driver and all its processes, as a service manager stops a unit."""
SIGNALS = {"interrupt": (signal.SIGTERM, signal.SIGINT), "stop": (signal.SIGTERM, signal.SIGHUP)}

START_S = 300.0
"""A loaded machine takes long to start Ray."""
SKEW = "CLOCK_SKEW_S"
"""In the environment of `elsewhere`."""
QUICK = ("--weights", MODELS + "slow", "--commit-every-s", "0.2", "--ray.object-store-mib", "256", *TILING)
PATIENCE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
"""Seconds that Ray waits for a gcs_server that died (60 by default)."""
AGAIN = "again to continue"
NO_START = "Ray did not start here"
"""Ray's raylet gives up when its agents take 15 s to start, as on a busy machine; users start again, too."""


@contextmanager
def trial(kind: str, seed: int, command: str) -> Iterator[None]:
    """Counts a trial, and says of a failed one how to repeat it."""
    TALLY[kind] += 1
    try:
        yield
    except BaseException as error:
        TALLY["failed trials"] += 1
        error.add_note(f"trial {kind!r}, seed {seed}; repeat it with: {command}")
        raise


def files_in(output: str, folder: str) -> object:
    """Changes with every file that is begun, written or deleted there."""
    try:
        return sorted(os.listdir(f"{output}/{folder}"))  # noqa: PTH208 - asked a thousand times a second
    except FileNotFoundError:
        return []


def items_in(output: str) -> int:
    """How many items are committed in a folder."""
    ids = set[str | None]()
    for folder in ("_segray/staging", "images"):
        for path in Path(output, folder).glob("*.parquet"):
            ids.update(pq.read_table(path, columns=["image_id"])["image_id"].to_pylist())
    return len(ids - {None})


@dataclass
class Trial:
    """One seed's kills of `segray annotate SOURCE --output OUTPUTS/1` (2, 3 …)."""

    seed: int
    source: object
    outputs: object
    check: Callable[[str], None]
    """Called with each output that is done; raises AssertionError."""
    options: Sequence[object] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    look: Callable[[str, str], object] = files_in
    """(output, folder) -> something that changes when a file there does."""
    lose_node: Callable[[int], bool] | None = None
    """(which) -> whether a node was lost: only one that works for the job is."""
    chance: random.Random = field(init=False)
    remains: dict[int, str] = field(default_factory=dict)
    """pid -> command line of what ran when a run was killed; the next one starts beside it."""
    no_starts: int = 2
    """So often may Ray not start."""
    safe: int = 0
    """Items that were committed when the run was last started that did the rest."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def kill(self, kinds: Sequence[str]) -> None:
        """All of `kinds`, in a seeded order (`EARLY` first), and checks at every end."""
        left = self.chance.sample(kinds, len(kinds))
        left.sort(key=lambda kind: EARLY.index(kind) if kind in EARLY else len(EARLY))
        for number in range(1, len(kinds) + 10):
            output = f"{self.outputs}/{number}"
            while self._ends_early(output, left):
                pass
            self.check(output)
            if not left:
                wait_for(lambda: not _alive(self.remains), 120, f"the end of {_alive(self.remains)}")
                return
        raise AssertionError(f"the runs were over before they could be killed: {left}")

    def _ends_early(self, output: str, left: list[str]) -> bool:
        """Start a run and strike; False when it came to its end."""
        command = (self.source, "--output", output, *QUICK, *self.options)
        if "run.json" not in str(self.look(output, "")):
            self.safe = items_in(output)
        started = time.monotonic()
        with running(*command, program="tests.bulk.merging_often", env=PATIENCE | dict(self.env)) as driver:
            fresh = True
            while left:
                kind = left[0]
                victims = self._at_some_moment(driver, output, kind, started if fresh else None)
                if not victims:
                    break
                fresh = False
                if not self._strike(kind, victims):
                    continue
                left.pop(0)
                TALLY[f"kill of {kind}"] += 1
                if kind in ENDS_RUN:
                    self._check_end(driver, kind, victims)
                    return True
            _, told = driver.communicate(timeout=START_S)
            if NO_START in told and self.no_starts:
                self.no_starts -= 1
                return True
            assert driver.returncode == 0, f"exit {driver.returncode}: {told}"
        return False

    def _at_some_moment(
        self, driver: subprocess.Popen[str], output: str, kind: str, started: float | None
    ) -> dict[int, str]:
        """pid -> command line of the driver and all below it, at the moment; empty when it came too late."""
        places = ["commit", "tiles", "merge", "work"] if kind in ENDS_RUN else ["work"]
        early = kind in ENDS_RUN and kind not in ("interrupt", "stop") and started
        place = self.chance.choice([*places, *(["start"] if early else [])])
        place = "title" if kind in EARLY else place
        below = descendants(driver.pid)  # looking for them takes longer than a commit
        if place == "start":
            self._sleep(driver, (started or 0.0) + self.chance.uniform(0, 8) - time.monotonic())
        elif place != "title":
            folder = {"merge": "instances", "tiles": "_segray/tiles"}.get(place, "_segray/staging")
            self._wait_for_change(driver, output, folder)
            self._sleep(driver, self.chance.uniform(0, 0.5) if place == "work" else 0)
        if place in ("start", "work", "title") or not below:
            below = descendants(driver.pid)
        deadline = time.monotonic() + START_S
        while driver.poll() is None and not self._victims(kind, below):
            assert time.monotonic() < deadline, f"no {kind} in {START_S:.0f} s"
            time.sleep(0.05)
            below = descendants(driver.pid)
        return {driver.pid: "", **below} if driver.poll() is None else {}

    def _wait_for_change(self, driver: subprocess.Popen[str], output: str, folder: str) -> None:
        before, deadline = self.look(output, folder), time.monotonic() + START_S
        while driver.poll() is None and self.look(output, folder) == before:
            assert time.monotonic() < deadline, f"nothing happened in {folder} for {START_S:.0f} s"
            time.sleep(0.001)

    def _sleep(self, driver: subprocess.Popen[str], seconds: float) -> None:
        if seconds > 0:
            try:
                driver.wait(seconds)
            except subprocess.TimeoutExpired:
                return

    def _victims(self, kind: str, below: Mapping[int, str]) -> list[int]:
        if kind in ("everything", "driver", "interrupt", "stop", "node"):
            return [0]
        return [pid for pid, command in below.items() if TITLES[kind] in command]

    def _strike(self, kind: str, running: Mapping[int, str]) -> bool:
        """`running`: the driver first, then what it started. Whether there was something to strike."""
        if kind == "node":
            assert self.lose_node is not None
            return self.lose_node(self.chance.randrange(100))
        pids = list(running)
        found = {"everything": pids, "stop": pids, "driver": pids[:1], "interrupt": pids[:1]}.get(kind)
        by = self.chance.choice(SIGNALS.get(kind, (signal.SIGKILL,)))
        hit = False
        for pid in found or [self.chance.choice(self._victims(kind, running))]:
            try:
                os.kill(pid, by)
                hit = True
            except ProcessLookupError:
                continue
        return hit

    def _check_end(self, driver: subprocess.Popen[str], kind: str, running: Mapping[int, str]) -> None:
        """The exit code and the last line; that nothing is left behind that runs is checked at the end."""
        _, told = driver.communicate(timeout=START_S)
        if kind in ("everything", "driver"):
            assert driver.returncode == -signal.SIGKILL
        elif kind in SIGNALS:  # a run that writes its last word already finishes it
            assert driver.returncode in (0, 130), f"exit {driver.returncode}: {told}"
        else:  # a run that had all its answers needs Ray no more
            assert driver.returncode in (0, 1), f"exit {driver.returncode}: {told}"
        spoken_for = any("died without an error message" in command for command in running.values())
        if kind != "everything" and driver.returncode and spoken_for:  # else it was still importing
            assert AGAIN in told, f"no last word: {told}"
            assert "Traceback" not in told, told
        self.remains.update(running)


def _alive(running: Mapping[int, str]) -> dict[int, str]:
    """Those that still run; one that is dead and not yet buried has no command line."""
    now = processes()
    return {pid: now[pid][1] for pid in running if now.get(pid, (0, ""))[1]}
