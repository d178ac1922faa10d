"""`segray` with parts of 16 KiB instead of 32 MiB, so that a short run merges its commits many times."""

from segray.bulk import sink
from tests.warm_segray import main

sink.MERGE_BYTES = 16 << 10  # type: ignore[attr-defined]

if __name__ == "__main__":
    raise SystemExit(main())
