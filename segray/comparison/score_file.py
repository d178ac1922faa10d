"""One model's scores as a file: of each image the pixels of each pair of true and predicted class.

Only pairs that occur are kept, so an image takes some dozen numbers however many classes there are. The files
of all models list the same images in the same order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray.evaluate.confusion_matrix import SemanticScores
from segray.storage import StorageSettings, open_filesystem

SCORES = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("digest", pa.binary()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("error", pa.string()),
        pa.field("pair", pa.list_(pa.int32())),
        pa.field("pixels", pa.list_(pa.int64())),
    ]
)
"""digest: sha256 of name, image and label; error: why there are no counts, else null; pair: row x columns +
column of `SemanticScores.matrix`, ascending; pixels: of each pair."""
ROWS = 1_000
"""Images of a row group: what is in memory at a time."""


@dataclass(frozen=True, slots=True)
class ImageScore:
    """One image's counts, or why there are none."""

    name: str
    digest: bytes
    size: tuple[int, int]
    """Height and width of the image in pixels; 0, 0 where it could not be read."""
    error: str | None
    pair: Sequence[int] = ()
    pixels: Sequence[int] = ()

    @classmethod
    def of(cls, name: str, digest: bytes, size: tuple[int, int], scores: SemanticScores) -> "ImageScore":
        """Return the counts of one image."""
        flat = scores.matrix.ravel()
        pair = np.flatnonzero(flat)
        return cls(name, digest, size, None, pair.tolist(), flat[pair].tolist())

    def matrix(self, classes: int) -> NDArray[np.int64]:
        """Return the counts as (classes, classes + 1) int64, as `SemanticScores` has them."""
        flat = np.zeros(classes * (classes + 1), np.int64)
        flat[list(self.pair)] = self.pixels
        return flat.reshape(classes, classes + 1)

    def row(self) -> dict[str, Any]:
        """Return it as a row of SCORES."""
        height, width = self.size
        return {
            **{"name": self.name, "digest": self.digest, "height": height, "width": width},
            **{"error": self.error, "pair": list(self.pair), "pixels": list(self.pixels)},
        }


def write_scores(path: Path, scores: Iterator[ImageScore]) -> None:
    """Write a local file, some images at a time."""
    with pq.ParquetWriter(path, SCORES) as writer:
        waiting = list[dict[str, Any]]()
        for score in scores:
            waiting.append(score.row())
            if len(waiting) == ROWS:
                writer.write_table(pa.Table.from_pylist(waiting, SCORES))
                waiting.clear()
        writer.write_table(pa.Table.from_pylist(waiting, SCORES))


def read_scores(url: str, storage: StorageSettings) -> Iterator[ImageScore]:
    """Yield the images of a score file, one row group in memory at a time."""
    filesystem, path = open_filesystem(url, storage)
    with filesystem.open(path, "rb") as stream:
        file = pq.ParquetFile(stream)
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                size = row["height"], row["width"]
                yield ImageScore(row["name"], row["digest"], size, row["error"], row["pair"], row["pixels"])


def in_step(urls: Sequence[str], storage: StorageSettings) -> Iterator[tuple[ImageScore, ...]]:
    """Yield for each image its score by each model."""
    return zip(*(read_scores(url, storage) for url in urls), strict=True)


def common_error(names: Sequence[str], scores: Sequence[ImageScore]) -> str | None:
    """Return why an image is in no model's score; None where it is in all."""
    broken = [(name, each.error) for name, each in zip(names, scores, strict=True) if each.error is not None]
    if len(broken) == len(scores) and len({error for _, error in broken}) == 1:
        return broken[0][1]
    if broken:
        return "; ".join(f"{name}: {error}" for name, error in broken)
    if len({each.digest for each in scores}) > 1:
        return "its files changed while the models were compared"
    return None
