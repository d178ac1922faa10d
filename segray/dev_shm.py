"""Free space in /dev/shm, where Ray puts its object store if it fits."""

import shutil
from contextlib import suppress


def free_mib() -> int | None:
    """Return the free space in MiB; None where there is no /dev/shm (macOS)."""
    with suppress(OSError):
        return shutil.disk_usage("/dev/shm").free >> 20
    return None


def advice(object_store_mib: int) -> str | None:
    """Return a warning if an object store of this size does not fit into /dev/shm; None if it does."""
    free = free_mib()
    if free is None or free >= object_store_mib:
        return None
    return (
        f"/dev/shm has {free:,} MiB free, less than the object store of {object_store_mib:,} MiB, so Ray "
        f"puts it on disk, which is slower; in a container: docker run --shm-size={object_store_mib + 256}m, "
        "or use a smaller --ray.object-store-mib"
    )
