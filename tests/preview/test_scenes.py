"""Scenes: overview, label map, footprints on a map, longitude and latitude under the pointer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from pyproj import Transformer
from rasterio.transform import from_origin

from segray.palette import VOID
from segray.predict.maps import Maps
from segray.scenes.scene import Scene, Tiling
from segray.sources.byte_ranges import FileRanges
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings
from segray.tile_overlap import Window
from tests.preview import made
from tests.preview.conftest import Watched
from tests.preview.test_pages import preview

HEIGHT, WIDTH, CRS = 600, 900, "EPSG:32636"
TRANSFORM = from_origin(450_000, 40_000, 0.5, 0.5)


def scene(folder: Path) -> tuple[dict[str, Any], Scene]:
    """A GeoTIFF: its row of `images`, and how it is read."""
    path = folder / "scene <1>.tif"
    folder.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=CRS, transform=TRANSFORM, tiled=True) as file:
        file.write(np.moveaxis(made.picture(3, HEIGHT, WIDTH), -1, 0))
    with DecodeSandbox() as sandbox:
        ranges = FileRanges(f"file://{path}", "", str(path), path.stat().st_size, StorageSettings())
        found = sandbox.describe(ranges, Tiling())
    assert found is not None
    row = made.row_of(path) | {"height": HEIGHT, "width": WIDTH, "scene": found.to_json(), "crs": CRS}
    return row, found


def point(page: Page, x: float, y: float) -> None:
    """Move the pointer there as a hand does: Leaflet looks at it every 32 ms at most."""
    for step in (2, 1, 0):
        page.mouse.move(x - step, y)
        page.wait_for_timeout(100)


def test_footprints_on_a_map(tmp_path: Path, browser: Browser) -> None:
    row, _ = scene(tmp_path / "photos")
    masks = [made.ellipse(150, 200, 60, 90, (HEIGHT, WIDTH)), made.ellipse(450, 700, 60, 90, (HEIGHT, WIDTH))]
    found = [made.instance(row["image_id"], at, mask, at, 0.9) for at, mask in enumerate(masks)]
    run = made.write(tmp_path / "run", [row | {"instances": 2}], found)
    assert preview(tmp_path / "page", run, more=("--side", "450")) == 0
    (entry,) = made.scripts(tmp_path / "page")["images"]
    assert (entry["size"], entry["scene"]) == ([300, 450], True)
    with Image.open(tmp_path / "page" / entry["picture"]) as image:
        middle = np.asarray(image)[::30, ::30].astype(int)
    truth = made.picture(3, HEIGHT, WIDTH)[::60, ::60].astype(int)
    assert np.median(np.abs(middle - truth)) < 8
    to_degrees = Transformer.from_crs(CRS, "OGC:CRS84", always_xy=True)
    with Watched(browser, tmp_path / "page") as page:
        page.locator(".card").click()
        layer = page.locator(".leaflet-image-layer")
        expect(layer).to_be_visible()
        page.wait_for_timeout(500)
        box = layer.bounding_box()
        assert box
        for col, row_, name in ((200, 150, made.CLASSES[0]), (700, 450, made.CLASSES[1])):
            point(page, box["x"] + box["width"] * col / WIDTH, box["y"] + box["height"] * row_ / HEIGHT)
            expect(page.locator(".leaflet-tooltip").last).to_contain_text(name)  # the other one fades
            lat, lon = map(float, page.locator(".position").inner_text().split(", "))
            expected = to_degrees.transform(*(TRANSFORM @ (col, row_)))
            assert (lon, lat) == pytest.approx(expected, abs=3e-5)  # a pixel of the screen is 1e-5
        point(page, box["x"] + box["width"] * 0.5, box["y"] + 5)
        expect(page.locator(".leaflet-tooltip")).to_have_count(0)
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_be_hidden()


def test_a_label_map_of_a_scene_is_read_by_its_colours(tmp_path: Path) -> None:
    row, about = scene(tmp_path / "photos")
    run = made.write(
        tmp_path / "run", [row], verb="predict", identity={"classes": ["ground", "road", "roof"]}
    )
    truth: NDArray[np.uint8] = np.zeros((HEIGHT, WIDTH), np.uint8)
    truth[:, 300:600], truth[:200, 600:], truth[400:, :300] = 1, 2, VOID
    values = np.stack([(truth == kind) * np.uint16(65535) for kind in range(3)]).astype(np.uint16)
    (run / "labels").mkdir()
    (tmp_path / "maps").mkdir()
    maps = Maps(tmp_path / "maps", about, ("ground", "road", "roof"), False)
    maps.write([(Window(0, HEIGHT, 0, WIDTH), values)])
    for _, path in maps.cogs():
        (run / f"labels/{row['image_id']}.tif").write_bytes(path.read_bytes())
    assert preview(tmp_path / "page", run) == 0
    (shown,) = made.scripts(tmp_path / "page", "images/0").values()
    shares = {int(value): share for value, share in shown["shares"].items()}
    assert shares == {value: pytest.approx((truth == value).mean(), abs=1e-6) for value in (0, 1, 2, VOID)}
