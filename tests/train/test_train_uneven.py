"""1,001 pictures on three workers: none is dropped, nobody waits for ever."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.squares import lines, train

NUMBER, BATCH = 1001, 50
UNET = '{"width": 1, "depth": 1, "norm": "group", "groups": 1}'
TINY = ("--epochs", 1, "--size", 16, "--arch-settings", UNET, "--batch-size", BATCH, "--loaders", 1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,001 pictures of 16 x 16 to train with and three to score."""
    folder = tmp_path_factory.mktemp("uneven")
    random, rows = np.random.default_rng(0), ["images,masks,split"]
    for index in range(NUMBER + 3):
        for part in ("image", "label"):
            values = random.integers(0, 256, (16, 16), np.uint8)
            pixels = np.where(values > 127, np.uint8(255), np.uint8(0)) if part == "label" else values
            Image.fromarray(pixels).save(folder / f"{part}-{index}.png")
        rows.append(f"image-{index}.png,label-{index}.png,{'train' if index < NUMBER else 'val'}")
    (folder / "all.csv").write_text("\n".join(rows))
    return folder / "all.csv"


@pytest.mark.usefixtures("ray_session")
def test_three_workers_take_the_steps_of_one(manifest: Path, tmp_path: Path) -> None:
    """The last batch is one picture, so that two of them have none. `test_job` compares what they learn."""
    assert train(manifest, tmp_path, *TINY, "--workers", 3) == 0
    (line,) = lines(tmp_path)
    assert line["step"] == -(-NUMBER // BATCH) == 21
    assert json.loads((tmp_path / "run.json").read_text())["data"]["train"] == NUMBER
