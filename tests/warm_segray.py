"""`segray` as a process of its own, whose own Ray has the tests' warm workers."""

from segray.cli import main as segray
from segray.cluster import set_environment
from tests import warm_workers


def main() -> int:
    """Its exit code."""
    set_environment()  # before Ray is imported
    with warm_workers.used():
        return segray()


if __name__ == "__main__":
    raise SystemExit(main())
