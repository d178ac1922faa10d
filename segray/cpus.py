"""Number of CPUs that this process may use: its affinity and the CPU quota of its cgroups."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def available_cpus() -> float:
    """Return the CPUs this process may use, also a fraction (`docker run --cpus 0.5`); never 0."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cpu_quota())


def whole_cpus() -> int:
    """Return `available_cpus` rounded up, for a number of threads or processes."""
    return math.ceil(available_cpus())


def cpu_quota(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float:
    """Return the smallest CPU quota of the cgroups that this process is in; infinite where none is set.

    Ray reads the outermost cgroup alone, which is the container's; a Slurm job or a systemd unit is nested
    in it. See https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), sched-bwc (cpu.cfs_quota_us).
    """
    return min(_quotas(cgroups, own), default=math.inf)


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    for root, path in _hierarchies(cgroups, own):
        place = root / path.strip("/")
        for folder in (place, *place.parents):
            if not folder.is_relative_to(root):
                break
            with suppress(OSError, ValueError, ZeroDivisionError):  # no quota is set, or it cannot be read
                quota, period = _limit(folder)
                if quota > 0:
                    yield quota / period


def _hierarchies(cgroups: Path, own: Path) -> Iterator[tuple[Path, str]]:
    """Yield (mount point, path of this process's cgroup) for cgroup v2 and the `cpu` controller of v1."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield cgroups, path
        elif "cpu" in controllers.split(","):
            yield cgroups / "cpu", path


def _limit(folder: Path) -> tuple[float, float]:
    """Return (quota, period) in microseconds. Raises ValueError for `max`, which means no quota."""
    both = folder / "cpu.max"
    if both.exists():
        quota, period = both.read_text().split()
        return float(quota), float(period)
    parts = (folder / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
    quota, period = (part.read_text() for part in parts)
    return float(quota), float(period)
