"""The bare model step: segray's Predictor over uint8 pictures that lie in memory. No Ray, no decoding.

    python -m jobs.benchmarks.bare FOLDER WEIGHTS PRECISION DEVICE COUNT

Prints one JSON object: seconds_an_image, and what it found in the first COUNT pictures.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from segray.annotate.predictor import Predictor
from segray.annotate.settings import AnnotateSettings
from segray.bulk.resources import share_out
from segray.cluster import Cluster
from segray.models.device import resolve_precision
from segray.models.weights import load_weights
from segray.sources.decode_step import Decoder
from segray.sources.listing import Listing
from segray.sources.read_step import fetch_files
from segray.sources.sandbox import DecodeSandbox


def tables(folder: str, rows: int) -> Iterator[pa.Table]:
    """Decoded pictures, in tables of so many rows as the job makes."""
    settings = AnnotateSettings(sources=[folder], output="-")
    with DecodeSandbox() as sandbox:
        for fetched in fetch_files(list(Listing([folder], settings.storage)), settings.storage):
            for start in range(0, fetched.num_rows, rows):
                yield from Decoder(sandbox, settings.max_pixels).tables(fetched.slice(start, rows))


def main(folder: str, weights: str, precision: str, device: str, count: str) -> dict[str, Any]:
    """As the job's model actor would do it, with the same threads and batches."""
    settings = AnnotateSettings(sources=[folder], output="-", weights=weights)
    cores = len(os.sched_getaffinity(0))
    gpus = float(device == "cuda")
    resources = share_out(settings, device, Cluster(max(2, cores), gpus, max(2, cores), gpus))
    predictor = Predictor(
        load_weights(weights, settings.storage),
        device=device,
        precision=resolve_precision(precision, device),
        score_threshold=settings.score_threshold,
        batch_size=resources.batch_size,
        threads=resources.threads,
    )
    pictures = list(tables(folder, resources.table_rows))
    predictor.predict(pictures[0].slice(0, 1))  # the first call allocates and chooses kernels
    started = time.perf_counter()
    found = [predictor.predict(table) for table in pictures]
    seconds = time.perf_counter() - started
    rows = pa.concat_tables(found).slice(0, int(count)).to_pylist()
    strings = {
        Path(row["uri"]).name: [each["segmentation"]["counts"] for each in row["found"]] for row in rows
    }
    return {"seconds_an_image": seconds / sum(table.num_rows for table in pictures), "counts": strings}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
