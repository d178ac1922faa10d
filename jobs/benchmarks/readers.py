"""Five ways to get pixels out of a folder, each a program of its own.

    python -m jobs.benchmarks.readers segray|torch|ray|pool|pillow FOLDER PROCESSES

segray: the stages of `annotate` that read and decode; torch: a DataLoader with the same decoder; ray:
`ray.data.read_images`; pool: decoding alone, nothing is brought anywhere; pillow: the same by Pillow.
Prints one JSON object: `pictures`, name -> what the stub model would say of its pixels, `seconds`, of the
loop over the pictures, start included.
"""

import json
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jobs.benchmarks.pictures import score_of
from segray.arrow_rows import byte_views

Picture = tuple[str, float]
"""Its name, and `score_of` its pixels."""
MAX_PIXELS = 100_000_000
BATCH = 8


def by_segray(folder: Path, processes: int) -> Iterator[Picture]:
    """The job's own ledger and stages; only the model is missing."""
    from segray.cluster import RayStart, set_environment

    set_environment()  # before Ray is imported, as the job does

    from segray.annotate.settings import AnnotateSettings
    from segray.bulk.ledger_db import LedgerDb
    from segray.bulk.pipeline import decode, read
    from segray.bulk.resources import share_out
    from segray.bulk.streaming import stream
    from segray.sources.listing import Listing

    settings = AnnotateSettings(sources=[str(folder)], output="-", decoders=processes, device="cpu")
    with LedgerDb() as ledger, RayStart(settings.ray, Path(tempfile.mkdtemp()) / "log") as start:
        ledger.add_sources(Listing(settings.sources, settings.storage))
        given = settings, settings.tiling, share_out(settings, "cpu", start.cluster())
        for table in stream(decode(read(ledger, *given), *given), prefetch=1):
            columns = [table[name].to_pylist() for name in ("uri", "height", "width")]
            for uri, height, width, pixels in zip(*columns, byte_views(table["pixels"]), strict=True):
                yield Path(uri).name, score_of(pixels.reshape(height, width, 3))


def by_torch(folder: Path, processes: int) -> Iterator[Picture]:
    """As PyTorch's documentation teaches it."""
    import torch
    from torch.utils.data import DataLoader

    def decode(path: Path) -> tuple[str, torch.Tensor]:
        from segray.sources.decode import decode_rgb

        pixels = decode_rgb(path.read_bytes(), MAX_PIXELS).pixels
        with warnings.catch_warnings():  # of read-only memory; nobody writes, and a copy would cost
            warnings.simplefilter("ignore")
            return path.name, torch.from_numpy(pixels)

    class Pictures(torch.utils.data.Dataset[tuple[str, torch.Tensor]]):
        def __init__(self) -> None:
            self.paths = sorted(folder.iterdir())

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
            return decode(self.paths[index])

    for batch in DataLoader(Pictures(), batch_size=BATCH, num_workers=processes, collate_fn=list):
        yield from ((name, score_of(pixels.numpy())) for name, pixels in batch)


def by_ray(folder: Path, processes: int) -> Iterator[Picture]:
    """As Ray's documentation teaches it, on as many CPUs."""
    import ray
    from ray.data import DataContext

    ray.init(address="local", num_cpus=processes, include_dashboard=False, log_to_driver=False)
    DataContext.get_current().enable_progress_bars = False
    pictures = ray.data.read_images(str(folder), mode="RGB", include_paths=True)
    for batch in pictures.iter_batches(batch_size=None, batch_format="numpy"):
        for path, image in zip(batch["path"], batch["image"], strict=True):
            yield Path(path).name, score_of(image)


def by_pool(folder: Path, processes: int) -> Iterator[Picture]:
    """Files are read and decoded, and the pixels are dropped where they are."""
    return _in_pool(_decode_and_drop, folder, processes)


def by_pillow(folder: Path, processes: int) -> Iterator[Picture]:
    """Likewise, in Pillow's own words."""
    return _in_pool(_decode_by_pillow, folder, processes)


def _in_pool(decode: Callable[[Path], Picture], folder: Path, processes: int) -> Iterator[Picture]:
    with multiprocessing.get_context("forkserver").Pool(processes) as pool:
        yield from pool.imap_unordered(decode, sorted(folder.iterdir()), BATCH)


def _decode_and_drop(path: Path) -> Picture:
    from segray.sources.decode import decode_rgb

    return path.name, score_of(decode_rgb(path.read_bytes(), MAX_PIXELS).pixels)


def _decode_by_pillow(path: Path) -> Picture:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        return path.name, score_of(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))


READERS = {"segray": by_segray, "torch": by_torch, "ray": by_ray, "pool": by_pool, "pillow": by_pillow}

if __name__ == "__main__":
    started = time.perf_counter()
    reader = READERS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
    found = {name: round(score, 6) for name, score in reader}
    print(json.dumps({"pictures": found, "seconds": time.perf_counter() - started}))
