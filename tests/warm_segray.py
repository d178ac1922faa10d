"""`segray` as a process of its own, whose own Ray has the tests' warm workers."""

import os
import sys

from segray.cli import main as segray
from segray.cluster import set_environment
from tests import warm_workers


def main() -> int:
    """Its exit code."""
    set_environment()  # before Ray is imported
    os.environ[warm_workers.TRAINS] = str(int(sys.argv[1] == "train"))
    with warm_workers.used():
        return segray()


if __name__ == "__main__":
    raise SystemExit(main())
