"""How far two runs over the same images disagree, image by image; their instances are partitioned on disk."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segray.errors import SettingsError
from segray.output.io import files_below
from segray.selection.disagreement import disagreement
from segray.selection.reading import Ints, Pool, annotated_in, batches
from segray.storage import StorageSettings, shown

_BOX = np.dtype([("image", np.int64), ("category", np.int32), ("box", np.float32, 4)])
_IMAGES = 20_000
"""Images of a partition: with 100 instances each they take 56 MB a run."""
_MOST = 256
"""Partitions: as many files are open at a time."""


def add_against(pool: Pool, run: str, other: str, threshold: float, storage: StorageSettings) -> None:
    """Add the measure `against`: disagreement of both runs' instances above the threshold, 0..1.

    Raises SettingsError where the other run has none of the images.
    """
    shared = annotated_in(pool, other, storage)
    if not shared.any():
        raise SettingsError(f"against: {shown(other)} has none of the images of {shown(run)}")
    found = np.where(shared, 0.0, np.nan).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="segray-select-") as folder:
        parts = min(_MOST, 1 + len(pool) // _IMAGES)
        for name, address in (("one", run), ("other", other)):
            _partition(pool, address, threshold, storage, Path(folder), name, parts)
        for part in range(parts):
            one, two = (np.fromfile(Path(folder) / f"{name}-{part}", _BOX) for name in ("one", "other"))
            for image, mine, theirs in _by_image(one, two):
                if shared[image]:
                    found[image] = disagreement(
                        mine["box"], theirs["box"], mine["category"], theirs["category"]
                    )
    pool.measures["against"] = found


def _partition(
    pool: Pool, run: str, threshold: float, storage: StorageSettings, folder: Path, name: str, parts: int
) -> None:
    """Write the boxes of a run, each to the file of its image."""
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{name}-{part}").open("wb")) for part in range(parts)]
        for source in files_below(f"{run.rstrip('/')}/instances", (".parquet",), storage):
            for batch in batches(source, ("image_id", "category_id", "score", "bbox"), (), storage):
                rows = _rows(batch, pool.index(batch), threshold)
                for part in np.unique(rows["image"] % parts).tolist():
                    rows[rows["image"] % parts == part].tofile(files[part])


def _rows(batch: pa.RecordBatch, image: Ints, threshold: float) -> NDArray[np.void]:
    score = batch["score"].cast(pa.float64()).fill_null(1.0).to_numpy(zero_copy_only=False)
    rows = np.zeros(batch.num_rows, _BOX)
    box = pc.list_flatten(batch["bbox"]).to_numpy(zero_copy_only=False).reshape(-1, 4).astype(np.float32)
    rows["image"], rows["category"] = image, batch["category_id"].to_numpy(zero_copy_only=False)
    rows["box"] = np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)
    kept: NDArray[np.void] = rows[(image >= 0) & (score > threshold)]
    return kept


def _by_image(
    one: NDArray[np.void], other: NDArray[np.void]
) -> Iterator[tuple[int, NDArray[np.void], NDArray[np.void]]]:
    """Yield (image, its rows in one, its rows in other) of the images that are in either."""
    both = [each[np.argsort(each["image"], kind="stable")] for each in (one, other)]
    images = np.union1d(both[0]["image"], both[1]["image"])
    first, last = (
        [np.searchsorted(each["image"], images, side) for each in both] for side in ("left", "right")
    )
    for place, image in enumerate(images.tolist()):
        yield (
            image,
            both[0][first[0][place] : last[0][place]],
            both[1][first[1][place] : last[1][place]],
        )
