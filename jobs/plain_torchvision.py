"""Mask R-CNN over a folder of images into a Parquet file with torchvision alone: the other arm.

    python jobs/plain_torchvision.py FOLDER OUT.parquet --weights FILE [--precision bf16] [--device cuda]

Written as torchvision's documentation teaches it (https://docs.pytorch.org/vision/stable/models.html,
torchvision tutorials): a Dataset of image files, a DataLoader, the model in evaluation and inference mode
with the score threshold given to it, `masks > 0.5`, pycocotools for the run lengths. uint8 goes from the
workers to the model's process, where the device makes floats of it. The defaults are the best settings that
were found for two cores (`jobs/benchmark.py plain`); channels_last is not in those pages.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pycocotools import mask as coco
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import MaskRCNN

from segray.models.weights import load_weights  # reads the file; the network is torchvision's own
from segray.storage import StorageSettings

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("category_id", pa.int32()),
        ("score", pa.float32()),
        ("box", pa.list_(pa.float32(), 4)),  # x0, y0, x1, y1
        ("size", pa.list_(pa.int32(), 2)),  # height, width
        ("counts", pa.string()),  # COCO's compressed run lengths
    ]
)


class Pictures(Dataset[tuple[str, Tensor]]):
    """(name, uint8 of shape (3, height, width)) of each file of a folder."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        path = self.paths[index]
        return path.name, decode_image(str(path), mode=ImageReadMode.RGB, apply_exif_orientation=True)


def annotate(given: argparse.Namespace) -> None:
    """Every picture of the folder into one Parquet file."""
    usual = 1 if given.device == "cpu" else 8
    if given.threads:
        torch.set_num_threads(given.threads)
    loaded = load_weights(given.weights, StorageSettings())
    model: MaskRCNN = loaded.module.eval().to(given.device)
    model.roi_heads.score_thresh = given.score_threshold  # = the argument box_score_thresh of torchvision
    if given.channels_last:
        model = model.to(memory_format=torch.channels_last)
    ids = np.array([0, *(loaded.category_ids or range(1, 1000))])  # label of the network -> category id
    loader = DataLoader(
        Pictures(given.folder),
        batch_size=given.batch_size or usual,
        num_workers=usual if given.workers is None else given.workers,
        collate_fn=_as_lists,
        pin_memory=given.device != "cpu",
    )
    with pq.ParquetWriter(given.output, SCHEMA) as writer, torch.inference_mode():
        for names, images in loader:
            with _precision(given):
                outputs = model([image.to(given.device).float().div_(255) for image in images])
            for name, output in zip(names, outputs, strict=True):
                writer.write_table(_rows(name, output, ids))


def _as_lists(samples: Sequence[tuple[str, Tensor]]) -> tuple[list[str], list[Tensor]]:
    return [name for name, _ in samples], [image for _, image in samples]


def _precision(given: argparse.Namespace) -> AbstractContextManager[Any]:
    if given.precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(given.device).type, torch.bfloat16)


def _rows(name: str, output: dict[str, Tensor], ids: np.ndarray) -> pa.Table:
    masks = (output["masks"] > 0.5).cpu().numpy()  # (n, 1, height, width)
    runs = [coco.encode(np.array(mask[0, :, :, None], np.uint8, order="F"))[0] for mask in masks]
    return pa.table(
        {
            "image": [name] * len(runs),
            "category_id": ids[output["labels"].cpu().numpy()].astype(np.int32),
            "score": output["scores"].float().cpu().numpy(),
            "box": output["boxes"].float().cpu().tolist(),
            "size": [run["size"] for run in runs],
            "counts": [run["counts"].decode() for run in runs],
        },
        schema=SCHEMA,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--weights", required=True, help="a name or a file, as for `segray annotate`")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, help="default 1, on a GPU 8")
    parser.add_argument("--workers", type=int, help="default 1, on a GPU 8")
    parser.add_argument("--threads", type=int, help="of torch; default its own, one a core")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    return parser


if __name__ == "__main__":
    annotate(_parser().parse_args())
