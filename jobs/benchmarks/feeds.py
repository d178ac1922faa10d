"""Two ways to get batches out of a folder of pairs, each a program of its own.

    python -m jobs.benchmarks.feeds segray|torch FOLDER SIZE BATCH EPOCHS PROCESSES

segray: `segray.train.loader` by Ray Data; torch: a DataLoader with the same decoder and transform.
Prints one JSON object: `batches`, a checksum of each, and `times`, when each was there, in seconds.
"""

import json
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from jobs.benchmarks.loader import MAX_PIXELS, Loaded, loaded, plan
from jobs.benchmarks.pairs import RULES, SEED, split_pairs, transform

FILL = (0, 0, 0)


def by_segray(folder: Path, size: int, batch_size: int, epochs: int, processes: int) -> Iterator[Loaded]:
    """What feeds a training worker."""
    from segray.cluster import RayStart, set_environment

    set_environment()  # before Ray is imported, as the job does

    import pyarrow as pa
    import ray

    from segray.data.pair_reader import Reading, digest_of
    from segray.data.pair_table import pair_table
    from segray.settings import RaySettings
    from segray.storage import StorageSettings
    from segray.train.loader import Feed, batches
    from segray.train.sampler import EpochSampler, Part

    settings = RaySettings()
    with RayStart(settings, Path(tempfile.mkdtemp()) / "log") as start:
        start.cluster()
        train, _ = split_pairs(folder)
        files = [(Path(pair.image.address), Path(pair.label.address)) for pair in train]
        digests = [[digest_of(file.read_bytes()) for file in pair] for pair in files]
        table = pair_table(
            train, pa.table(list(map(list, zip(*digests, strict=True))), ["digest", "label_digest"])
        )
        reading = Reading(RULES, MAX_PIXELS, StorageSettings())
        feed = Feed(
            reading,
            transform(size, FILL),
            EpochSampler(batch_size, SEED, len(train), 0),
            processes,
            settings.stall_timeout_s,
        )
        for batch in batches(ray.put(table), feed, range(epochs), 0, Part(0, 1)):
            yield batch.pixels, batch.classes


def by_torch(folder: Path, size: int, batch_size: int, epochs: int, processes: int) -> Iterator[Loaded]:
    """As PyTorch's documentation teaches it."""
    train, _ = split_pairs(folder)
    return loaded(plan(train, [], batch_size, epochs, 0, 1), transform(size, FILL), processes)


FEEDS = {"segray": by_segray, "torch": by_torch}

if __name__ == "__main__":
    name, folder, *numbers = sys.argv[1:]
    sums: list[int] = []
    times: list[float] = []
    for pixels, classes in FEEDS[name](Path(folder), *map(int, numbers)):
        times.append(time.perf_counter())
        sums.append(zlib.crc32(classes.numpy().data, zlib.crc32(pixels.numpy().data)))
    print(json.dumps({"batches": sums, "times": times}))
