"""What this process holds, to be compared before and after something hostile (Linux)."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.bulk.runs import descendants


class Footprint:
    """Taken before: `peak` is the most that was resident since. Taken before and after: the rest."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.resident = _status("VmRSS")
        self.descriptors = sum("/site-packages/" not in each for each in _open_files())
        commands = descendants(os.getpid()).values()
        self.children = sum("decoder_process" in command for command in commands)
        self.scratch = {path.name for path in Path(tempfile.gettempdir()).iterdir()}

    @property
    def peak(self) -> int:
        """Bytes."""
        return _status("VmHWM")


def _open_files() -> Iterator[str]:
    """What a library keeps open of its own, such as PROJ's database, is open from its first use on."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            yield os.readlink(link)  # noqa: PTH115 - most are no paths


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))
