"""Room in /dev/shm, where Ray's object store lies if it fits."""

import shutil
from contextlib import suppress


def free_mib() -> int | None:
    """MiB that are free; None where there is no /dev/shm (macOS)."""
    with suppress(OSError):
        return shutil.disk_usage("/dev/shm").free >> 20
    return None


def advice(object_store_mib: int) -> str | None:
    """What is wrong with it for an object store of this size; None if nothing is."""
    free = free_mib()
    if free is None or free >= object_store_mib:
        return None
    return (
        f"/dev/shm has {free:,} MiB free, less than the object store of {object_store_mib:,} MiB, which lies "
        f"on the slower disk then; in a container: docker run --shm-size={object_store_mib + 256}m, or take "
        "a smaller --ray.object-store-mib"
    )
