"""Folders of JPEGs: the bundled real images, tiled at their own scale; or a person's photos."""

import itertools
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.benchmarks.measure import Options

Pixels = NDArray[np.uint8]
ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "tests/data/nuclei/images"
DIFFERENT = 24
"""So many pictures are different; more files are links to them, with other names and so other ids."""
MEGAPIXEL, SIXTEEN = (800, 1280), (3464, 4618)
"""Height and width."""
STEP = 97


def score_of(pixels: Pixels) -> float:
    """The mean of a grid of pixels (height, width, 3) in 0.5..1: programs that saw other pixels differ.

    What the stub model says of a picture.
    """
    return float(0.501 + 0.498 * (pixels[::STEP, ::STEP].astype(np.float64) / 255).mean())


def folder_of(options: Options, number: int, size: tuple[int, int] = MEGAPIXEL) -> Path:
    """A folder of `number` JPEGs; made once and then used again."""
    folder = options.scratch / f"pictures-{size[0]}x{size[1]}-{number}"
    if not folder.exists():
        different = _photos(options.photos) if options.photos else _made(options.scratch, number, size)
        folder.mkdir()
        for index, path in zip(range(number), itertools.cycle(different), strict=False):
            os.link(path, folder / f"{index:06d}{path.suffix}")
    return folder


def _photos(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise SystemExit(f"--photos: no .jpg or .png in {folder}")
    return found


def _made(scratch: Path, number: int, size: tuple[int, int]) -> list[Path]:
    folder = scratch / f"different-{size[0]}x{size[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    real = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(BUNDLED.glob("*.png"))]
    paths = [
        folder / f"{index:03d}.jpg" for index in range(min(number, DIFFERENT if size == MEGAPIXEL else 6))
    ]
    for index, path in enumerate(paths):
        if not path.exists():
            Image.fromarray(tiled(real, size, seed=index)).save(path, quality=90)
    return paths


def tiled(real: list[Pixels], size: tuple[int, int], seed: int) -> Pixels:
    """(height, width, 3): pieces of the real images side by side, each turned or mirrored."""
    rng = np.random.default_rng(seed)
    height, width = size
    canvas = np.zeros((height, width, 3), np.uint8)
    side = min(min(image.shape[:2]) for image in real)
    for top, left in itertools.product(range(0, height, side), range(0, width, side)):
        image = real[rng.integers(len(real))]
        row, col = rng.integers(image.shape[0] - side + 1), rng.integers(image.shape[1] - side + 1)
        piece = np.rot90(image[row : row + side, col : col + side], int(rng.integers(4)))
        rows, cols = min(side, height - top), min(side, width - left)
        canvas[top : top + rows, left : left + cols] = piece[:rows, :cols]
    return canvas
