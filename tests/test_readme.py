"""The README's first command on the bundled images and model, and the output read as its readers do."""

import re
import shlex
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask

from segray.cli import main

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "tests/data/nuclei/images"

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def output(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first command writes, with another output folder."""
    text = (ROOT / "README.md").read_text()
    command = re.search(r"uv run (segray annotate .*)", text)
    assert command is not None
    _, *arguments = shlex.split(command[1])
    folder = tmp_path_factory.mktemp("readme") / "out"
    arguments[arguments.index("--output") + 1] = str(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(arguments) == 0
    return folder


def test_every_run_length_decodes_to_its_area_box_and_size(output: Path) -> None:
    instances = pd.read_parquet(output / "instances")
    images = pd.read_parquet(output / "images").set_index("image_id")
    assert len(images) == len(list(IMAGES.glob("*.png")))
    assert len(instances) > 10 * len(images)
    assert images.instances.sum() == len(instances)
    for row in instances.itertuples():
        size = [int(side) for side in row.segmentation["size"]]
        image = images.loc[row.image_id]
        assert size == [image.height, image.width]
        rle = {"size": size, "counts": row.segmentation["counts"]}
        pixels = mask.decode(rle)
        assert pixels.sum() == row.area == mask.area(rle)
        rows, columns = np.nonzero(pixels)
        left, top = columns.min(), rows.min()
        assert list(row.bbox) == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
        assert list(row.bbox) == mask.toBbox(rle).tolist()
        at_border = left == 0 or top == 0 or rows.max() + 1 == size[0] or columns.max() + 1 == size[1]
        assert row.truncated == at_border
        assert row.score >= 0.5


def test_sizes_are_those_of_the_images(output: Path) -> None:
    for row in pd.read_parquet(output / "images").itertuples():
        with Image.open(Path(row.uri.removeprefix("file://"))) as image:
            assert (row.width, row.height, row.frames) == (*image.size, 1)


def test_duckdb_and_geopandas_open_it(output: Path) -> None:
    counted = (
        duckdb.connect()
        .execute(f"SELECT category, count(*) FROM '{output}/instances/*.parquet' GROUP BY 1")
        .fetchall()
    )
    frame = geopandas.read_parquet(output / "instances")
    assert counted == [("nucleus", len(frame))]
    assert frame.crs == "OGC:CRS84"
    assert frame.geometry.isna().all()
