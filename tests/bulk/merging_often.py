"""`segray` with parts of 16 KiB instead of 32 MiB, so that a short run merges its commits many times."""

from segray.bulk import committer
from tests.warm_segray import main

committer.MERGE_BYTES = 16 << 10  # type: ignore[attr-defined]

if __name__ == "__main__":
    raise SystemExit(main())
