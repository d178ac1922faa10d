"""One live run an output: a lease that the holder renews, and that a killed run leaves behind.

One object with a generation that only grows. It is made, renewed, taken over and given back by conditional
writes on the version that was read, so of two runs that do so at once one wins. A lease whose process is
known to be dead (same machine) is taken over at once. Nobody compares clocks: a lease of another machine is
watched, and taken over once it stayed unchanged, on the watcher's own clock, for the time in which its holder
promised to renew it. A holder that could not renew for nearly so long, or whose lease changed, writes nothing
more.
"""

import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from segray.conditional import ChangedError, Versioned, stale_version
from segray.errors import HeldError, JobFailedError, SettingsError
from segray.log import say
from segray.machines import HOURS, hours_in
from segray.output.folder import Output
from segray.retries import is_transient

O_co = TypeVar("O_co", bound=Output, covariant=True)
NAME = "_segray/lease.json"
LOOKS = 5
"""A watched lease is read so many times in one renewal."""
SETTLE_S = 2.0
"""After a take-over on a folder that machines share, where not all of them share locks (see `conditional`),
and of an object store on which the run before was about to write."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Of the holder; Linux' goes on while the machine sleeps, as the watchers' clocks do."""


@dataclass(frozen=True, slots=True)
class Holder:
    """What the object says; of a damaged one, a holder that nobody knows."""

    run_id: str = ""
    generation: int = 0
    renewals: int = 0
    """Makes each version another one."""
    host: str = "an unknown machine"
    boot: str = ""
    pid: int = 0
    started: str = ""
    expires_s: float = 0.0
    """Within which the holder promises to renew it; 0: unknown."""
    released: bool = False
    """The holder ended; the object stays so that the generation goes on."""

    @classmethod
    def of(cls, data: bytes) -> "Holder":
        """Read a lease, those of earlier versions included."""
        try:
            found = json.loads(data)
        except ValueError:
            return cls()
        if not isinstance(found, dict):
            return cls()
        kinds = {name: type(getattr(cls(), name)) for name in cls.__slots__}
        if type(found.get("expires_s")) is int:  # JSON knows one kind of number
            found["expires_s"] = float(found["expires_s"])
        return cls(**{name: value for name, value in found.items() if type(value) is kinds.get(name)})

    @property
    def is_of_this_machine(self) -> bool:
        """Return whether its process can be looked up here."""
        known = self.pid > 0 and self.boot != ""
        return known and self.host == socket.gethostname() and self.boot == _boot_id()

    @property
    def is_running(self) -> bool:
        """Return whether its process, of this machine, is alive."""
        started = _process_start(self.pid)
        return started != "" and started == self.started


class Lease(Generic[O_co]):
    """Hold the output, as a context manager. Raises HeldError on entry while another run is live."""

    def __init__(self, store: O_co) -> None:
        self.store = store
        self.run_id = uuid.uuid4().hex
        self.tell: Callable[[], dict[str, Any]] = dict
        """What the lease says besides, for `segray status`."""
        self.hours = dict[str, float]()
        """Machine-hours of earlier attempts, as the lease that was taken over told them."""
        self._settings = store.storage.lease
        self._generation = 0
        self._renewals = 0
        self._expired: str | None = None  # version of a lease that was watched to its end
        self._renewed = math.inf
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._writing = threading.Lock()
        self._renewer = threading.Thread(target=self._renew, name="segray-lease", daemon=True)

    def refuse_second_run(self, *, watches: bool = True) -> None:
        """Raise HeldError while another run is live.

        Quick, but for a lease of another machine: that is watched, unless `watches` is False.
        """
        self._vacant(watches)

    @property
    def generation(self) -> int:
        """Return the generation of this holder's lease."""
        return self._generation

    def __enter__(self) -> "Lease[O_co]":
        tries = 0
        while not self._take():  # another run was faster: the next look says which
            tries += 1
            if tries == LOOKS:
                raise HeldError(f"output: other runs keep taking {self.store.root} over")
        stale = stale_version(self.store.filesystem)
        if self._settings.probe:
            self._refuse_unconditional()
        self._renewer.start()
        try:
            late = self.store.begin(self._generation, self.check)
            if late and stale is not None:  # a copy may have begun before its source went
                time.sleep(min(SETTLE_S, self._settings.renew_s))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._renewer.join()
        with suppress(OSError, JobFailedError):  # it expires by itself; what was done stays done
            self._release()
        self._renewed = math.inf

    def check(self) -> None:
        """Raise JobFailedError when another run has taken the output over, or may have."""
        if not self._lost.is_set() and self._age() > 2 * self._settings.renew_s:
            self._try_to_renew()  # this process slept, or the storage was away: ask before the next write
        if self._lost.is_set() or self._age() > self._settings.expires_s - self._settings.renew_s:
            raise JobFailedError(f"another run took {self.store.root} over, or may have; this one stops")

    # --- taking --------------------------------------------------------------------------------------

    def _take(self) -> bool:
        """Return whether the lease became ours; False where another run was faster."""
        vacant = self._vacant(watches=True)
        asked = _now()
        before = Holder() if vacant is None else Holder.of(vacant.data)
        self._generation = before.generation + 1
        self.hours = {} if vacant is None else hours_in(told_in(vacant.data))
        if not self._won(vacant):
            return False
        if vacant is not None and not before.released and not before.is_of_this_machine:
            self._settle()
        self._renewed = asked
        return True

    def _won(self, vacant: Versioned | None) -> bool:
        """Return whether our conditional write was the one that counts."""
        data = self._lease()
        try:
            self.store.replace(NAME, data, None if vacant is None else vacant.version)
        except FileExistsError:
            there = self.store.read_versioned(NAME)
            return there is not None and there.data == data  # the answer to our own request was lost
        except JobFailedError as error:
            if error.__cause__ is None or is_transient(error.__cause__):
                raise
            raise SettingsError(*(f"output: {line}" for line in error.lines)) from error
        return True

    def _settle(self) -> None:
        """Raise SettingsError where another machine's take-over of a shared folder came after ours."""
        if stale_version(self.store.filesystem) is None:
            time.sleep(min(SETTLE_S, self._settings.renew_s))
            if not self._is_ours(self.store.read_versioned(NAME)):
                raise HeldError(f"output: another run took {self.store.root} over at the same moment")

    def _refuse_unconditional(self) -> None:
        """Raise SettingsError when the storage takes what conditional writes must refuse."""
        if (condition := ignored_condition(self.store, NAME, self._lease)) is None:
            return
        self.store.delete(NAME)
        raise SettingsError(
            f"output: the storage of {self.store.root} ignores {condition}, without which two runs on one "
            "output cannot be told apart; choose another storage, or set storage.lease.probe=false and "
            "see to it that one run at a time writes there"
        )

    # --- looking -------------------------------------------------------------------------------------

    def _vacant(self, watches: bool) -> Versioned | None:
        """Return the lease that may be replaced; None where there is none. Raises HeldError."""
        found = self.store.read_versioned(NAME)
        if found is None:
            return None
        holder = Holder.of(found.data)
        if holder.released or found.version == self._expired:
            return found
        if holder.is_of_this_machine:
            if holder.is_running:
                raise self._refusal(holder, "wait for it")
            return found
        return self._watched(found, holder) if watches else found

    def _watched(self, found: Versioned, holder: Holder) -> Versioned | None:
        """Return the lease once it stayed unchanged for too long, or its holder ended."""
        patience = holder.expires_s if 0 < holder.expires_s < math.inf else self._settings.expires_s
        _say(
            f"{self.store.root} is held by another run on {holder.host}; watching whether it is alive, "
            f"up to {patience:g} s"
        )
        started = said = time.monotonic()
        while (waited := time.monotonic() - started) < patience:
            time.sleep(min(self._settings.renew_s / LOOKS, patience - waited))
            now = self.store.read_versioned(NAME)
            if now is None or now.version != found.version:
                if now is not None and not Holder.of(now.data).released:
                    raise self._refusal(Holder.of(now.data), "its lease was renewed just now; wait for it")
                return now
            if time.monotonic() - said >= self._settings.renew_s:
                said = time.monotonic()
                _say(f"the lease of {holder.host} is unchanged for {said - started:.0f} s of {patience:g} s")
        _say(f"the run on {holder.host} gave no sign of life for {patience:g} s; taking over")
        self._expired = found.version
        return found

    def _refusal(self, holder: Holder, advice: str) -> HeldError:
        return HeldError(
            f"output: {self.store.root} is being written by another run (process {holder.pid} on "
            f"{holder.host}); {advice}"
        )

    # --- keeping -------------------------------------------------------------------------------------

    def _lease(self, released: bool = False) -> bytes:
        self._renewals += 1
        lease = {
            "generation": self._generation,
            "run_id": self.run_id,
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
            "renewals": self._renewals,
            "expires_s": self._settings.expires_s,
            "released": released,
            "told": {HOURS: self.hours} | self.tell(),
            "renewed_at": time.strftime(
                "%Y-%m-%dT%H:%M:%SZ", time.gmtime()
            ),  # for people; nobody compares it
        }
        return json.dumps(lease, indent=2).encode() + b"\n"

    def _is_ours(self, there: Versioned | None) -> bool:
        return there is not None and Holder.of(there.data).run_id == self.run_id

    def _renew(self) -> None:
        while not self._stop.wait(self._settings.renew_s):
            self._try_to_renew()

    def _try_to_renew(self) -> None:
        with suppress(OSError, JobFailedError):  # `check` notices when it goes on for too long
            asked = _now()
            if self._rewrite():
                self._renewed = asked
            else:
                self._lost.set()

    def _rewrite(self, *, released: bool = False) -> bool:
        """Renew it; return whether it was still ours."""
        with self._writing:
            there = self.store.read_versioned(NAME)
            if there is None or not self._is_ours(there):
                return False
            try:
                self.store.replace(NAME, self._lease(released), there.version)
            except ChangedError:
                return False
            return True

    def _release(self) -> None:
        """Give the lease back; where there is no room to say so, as on a full disk, take it away."""
        try:
            self._rewrite(released=True)
        except (OSError, JobFailedError):
            there = self.store.read_versioned(NAME)
            if there is not None and self._is_ours(there):
                self.store.remove(NAME, there.version)

    def _age(self) -> float:
        """Return seconds since the last renewal that counted was begun."""
        return _now() - self._renewed


def ignored_condition(output: Output, name: str, data: Callable[[], bytes]) -> str | None:
    """Return what a storage ignores of the conditions of writes, tried on an object that is there.

    data: anew for each write. None: it keeps them, or has none of its own and compares here.
    """
    stale = stale_version(output.filesystem)
    if stale is None:
        return None
    is_google = "gs" in output.filesystem.protocol
    conditions = ("ifGenerationMatch=0", "ifGenerationMatch") if is_google else ("If-None-Match", "If-Match")
    for condition, version in zip(conditions, (None, stale), strict=True):
        with suppress(FileExistsError):
            output.replace(name, data(), version)
            return condition
    return None


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _say(line: str) -> None:
    say(f"output: {line}", "warning")


def told_in(data: bytes) -> dict[str, Any]:
    """Return what a holder wrote into its lease for `segray status`; empty for a damaged one."""
    with suppress(ValueError, AttributeError):
        told = json.loads(data).get("told")
        return told if isinstance(told, dict) else {}
    return {}


def newest_generation(store: Output) -> int:
    """Return the generation of the lease in an output, 0 without one: writers of older ones must stop."""
    there = store.read_versioned(NAME)
    return 0 if there is None else Holder.of(there.data).generation


def follow(store: Output, generation: int, every_s: float = 0.0) -> None:
    """Let a worker write for the run that holds the lease, whose driver may be gone and stop nobody.

    Before a write it looks at the lease, if the last look is `every_s` ago, and raises JobFailedError where a
    newer run has it. What is published needs a look each time.
    """
    looked = -math.inf

    def fence() -> None:
        nonlocal looked
        if (now := _now()) - looked < every_s:
            return
        if newest_generation(store) != generation:
            raise JobFailedError(f"another run took {store.root} over; this one stops")
        looked = now

    store.generation, store.fence = generation, fence


def _boot_id() -> str:
    """Return what tells this boot and container (by its PID namespace) from others; empty: unknown."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + namespace
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Return what tells a process from a later one of the same number; empty when it does not run.

    Clock ticks since boot where /proc has them; elsewhere the number alone must do.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]  # a zombie: killed, not yet waited for
    except OSError:
        if Path("/proc/self").exists():
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return str(pid)
