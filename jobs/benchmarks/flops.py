"""How much arithmetic a model does, and how much this machine could do."""

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.io import ImageReadMode, decode_image

from jobs.benchmarks.measure import seconds_a_call
from segray.models.weights import load_weights
from segray.storage import StorageSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def flops_an_image(weights: str, picture: Path, threshold: float) -> int:
    """Of convolutions and matrix products, two for a multiply-add, in torchvision's forward."""
    model = load_weights(weights, StorageSettings()).module.eval()
    model.roi_heads.score_thresh = threshold
    image = decode_image(str(picture), ImageReadMode.RGB).float() / 255
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model([image])
    return int(counter.get_total_flops())


def peak_flops(precision: str, device: str) -> float:
    """FLOP/s of a large matrix product here, all threads: what MFU is measured against."""
    side = 8192 if device == "cuda" else 2048
    matrix = torch.ones(side, side, dtype=DTYPES[precision], device=device)

    def product() -> None:
        torch.mm(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()

    product()
    return 2 * side**3 / seconds_a_call(product, 1.0)
