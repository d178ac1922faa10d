"""Small made volumes: a bright ball in noise, int16 as of CT, and the label volume that is known."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHAPE = (20, 24, 28)
"""(depth, height, width); not a multiple of any stride."""
AFFINE = np.array([[-0.7, 0, 0, 90.0], [0, 0.7, 0.1, -126.0], [0, 0, 2.5, -72.0], [0, 0, 0, 1]])
BALL, TISSUE, NOISE = 300, -100, 60


def ball(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A volume, int16 (depth, height, width), and its label: 1 inside a ball."""
    rng = np.random.default_rng(seed)
    centre = np.array([rng.integers(8, side - 8) for side in shape])
    axes = np.indices(shape) - centre[:, None, None, None]
    label = ((axes**2).sum(axis=0) <= rng.integers(5, 8) ** 2).astype(np.uint8)
    voxels = np.where(label == 1, BALL, TISSUE) + rng.normal(0, NOISE, shape)
    return voxels.astype(np.int16), label


def write_nifti(path: Path, values: NDArray[Any], affine: NDArray[Any] = AFFINE) -> None:
    """values: (depth, height, width); `.nii` or `.nii.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image: Any = nibabel.Nifti1Image(values.T, affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)


def write_stack(path: Path, values: NDArray[Any]) -> None:
    """Write values (depth, height, width) as pages of a TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (Image.fromarray(each) for each in values)
    first.save(path, save_all=True, append_images=others)


def write_pairs(folder: Path, train: int = 3, val: int = 1, *, stacks: bool = False) -> Path:
    """Write images/{train,val} and labels/{train,val}."""
    for number in range(train + val):
        voxels, label = ball(number)
        split = "train" if number < train else "val"
        for kind, values in (("images", voxels), ("labels", label)):
            place = folder / kind / split
            if stacks:
                pages = (values + 1000).astype(np.uint16) if kind == "images" else values
                write_stack(place / f"{number}.tif", pages)
            else:
                write_nifti(place / f"{number}.nii.gz", values)
    return folder


def opened(path: Path) -> Any:
    """Return nibabel's image of a file."""
    return nibabel.load(path)
