"""Building outlines on a georeferenced scene -> the COCO folder that `segray train` reads.

`python jobs/footprints_to_coco.py SCENE.tif OUTLINES.geojson OUTPUT` writes `OUTPUT/images/*.png` and
`OUTPUT/instances.json`. Neighbouring windows look alike, so images are not split at random: a rectangle of
the scene is held out for `val`, another for `test`, and no training window has a pixel in either.

One frame throughout: pixels of the reduced scene, x right and y down, rectangles half-open.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
import shapely
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from rasterio.features import rasterize
from rasterio.transform import Affine
from shapely.geometry import MultiPolygon, shape

from segray.data.footprints import areas_of
from segray.data.splits import SPLITS
from segray.errors import SettingsError
from segray.sources.names import fault

WGS84 = "OGC:CRS84"  # GeoJSON without a member `crs`: longitude, latitude (RFC 7946, section 4)
CATEGORY = {"id": 1, "name": "building"}


@dataclass(frozen=True)
class Shares:
    """A rectangle in fractions of the scene's width and height, from its left and top."""

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        if not (0 <= self.left < self.right <= 1 and 0 <= self.top < self.bottom <= 1):
            raise SettingsError(f"{self}: not a rectangle inside 0..1")


@dataclass(frozen=True)
class FootprintSettings:
    """How a scene is cut into windows; lengths in pixels of the reduced scene."""

    reduce: int = 2
    """Side of the squares of pixels that are averaged to one."""
    window: int = 640
    """Side of a training window, and the longest side of a held-out one."""
    overlap: int = 256
    """Overlap of neighbouring training windows; held-out windows share no pixel."""
    visible: float = 0.15
    """Minimum share of a building that must be in the window for it to be an object."""
    smallest_area: int = 64
    """Minimum number of a building's pixels in the window."""
    test: Shares = Shares(0.625, 0, 1, 0.5)
    val: Shares = Shares(0.625, 0.5, 1, 1)

    def __post_init__(self) -> None:
        if self.reduce < 1 or not 0 <= self.overlap < self.window:
            raise SettingsError("reduce must be at least 1, and overlap from 0 to below window")


@dataclass(frozen=True)
class Window:
    """A half-open rectangle of the reduced scene, and its split."""

    split: str
    left: int
    top: int
    right: int
    bottom: int

    def touches(self, other: "Window") -> bool:
        """Return whether the two share a pixel."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


@dataclass(frozen=True)
class Scene:
    """An image with its georeference."""

    pixels: NDArray[np.uint8]
    """(height, width, 3) uint8, RGB."""
    to_map: Any
    """Affine: (x, y) in pixels to coordinates of `crs`."""
    crs: pyproj.CRS


def read_scene(path: Path, *, reduce: int) -> Scene:
    """Read the first three bands, reduced; rows and columns that do not fill a square are left out.

    Raises SettingsError for a scene without a georeference, or whose bands are not three of 8 bits.
    """
    with rasterio.open(path) as source:
        if source.crs is None:
            raise SettingsError(f"{path}: has no coordinate system, outlines cannot be laid on it")
        if source.count < 3 or source.dtypes[0] != "uint8":
            raise SettingsError(f"{path}: expected red, green and blue as bytes, 3 x uint8")
        bands = source.read([1, 2, 3])
        crs, to_map = pyproj.CRS.from_wkt(source.crs.to_wkt()), source.transform
    pixels = block_means(np.ascontiguousarray(bands.transpose(1, 2, 0)), reduce)
    return Scene(pixels, to_map @ Affine.scale(reduce), crs)


def block_means(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the rounded means of squares of `side` x `side` pixels; `pixels` (height, width, bands)
    uint8."""
    height, width = pixels.shape[0] // side, pixels.shape[1] // side
    squares = pixels[: height * side, : width * side].reshape(height, side, width, side, -1)
    return np.asarray(np.rint(squares.mean((1, 3), dtype=np.float32)), np.uint8)


def read_outlines(path: Path, scene: Scene) -> list[MultiPolygon]:
    """Read the polygons of a GeoJSON file, in pixels of the reduced scene, largest first.

    Self-intersecting polygons are repaired; features without an area are left out. Raises SettingsError
    for a file that is not a feature collection or has a CRS that PROJ does not know.
    """
    try:
        content = json.loads(path.read_text())
        name = content["crs"]["properties"]["name"] if content.get("crs") else WGS84
        shapes = [shape(each["geometry"]) for each in content["features"] if each["geometry"]]
        project = pyproj.Transformer.from_crs(pyproj.CRS.from_user_input(name), scene.crs, always_xy=True)
    except (ValueError, KeyError, TypeError, AttributeError, pyproj.exceptions.CRSError) as error:
        raise SettingsError(
            f"{path}: no GeoJSON feature collection that can be read: {fault(error)}"
        ) from error
    to_pixels = ~scene.to_map

    def placed(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        map_x, map_y = project.transform(coordinates[:, 0], coordinates[:, 1])
        return np.column_stack(to_pixels @ (map_x, map_y))

    outlines = [areas_of(shapely.transform(shapely.force_2d(each), placed)) for each in shapes]
    return sorted((each for each in outlines if each.area > 0), key=lambda each: -each.area)


def windows_of(height: int, width: int, settings: FootprintSettings) -> list[Window]:
    """Return the windows of a reduced scene: training ones overlap and do not touch held-out rectangles.

    Raises SettingsError if `val` and `test` overlap or leave no room for a training window.
    """
    blocks = [_block(split, shares, height, width) for split, shares in _held_out(settings)]
    if blocks[0].touches(blocks[1]):
        raise SettingsError("the rectangles of val and test overlap")
    step = settings.window - settings.overlap
    training = [
        Window("train", left, top, min(left + settings.window, width), min(top + settings.window, height))
        for top in starts(height, settings.window, step)
        for left in starts(width, settings.window, step)
    ]
    training = [window for window in training if not any(window.touches(block) for block in blocks)]
    if not training:
        raise SettingsError("every training window touches the rectangles of val and test: use smaller ones")
    return training + [part for block in blocks for part in _parts(block, settings.window)]


def starts(length: int, window: int, step: int) -> list[int]:
    """Return the first pixels of the windows along one axis; the last one ends with the axis."""
    last = max(0, length - window)
    return [*range(0, last, step), last]


def draw(outlines: Sequence[MultiPolygon], window: Window, settings: FootprintSettings) -> NDArray[np.int32]:
    """Return the map (height, width) int32 of a window: 0 is ground, then 1, 2, ... in the outlines' order.

    A pixel belongs to the outline that covers its centre, to the smallest one if there are several. What is
    cut off too far at the edge is ground.
    """
    size = (window.bottom - window.top, window.right - window.left)
    numbered = [(outline, number) for number, outline in enumerate(outlines, start=1)]
    if not numbered:
        return np.zeros(size, np.int32)
    place = Affine.translation(window.left, window.top)
    drawn: NDArray[np.int32] = rasterize(numbered, out_shape=size, transform=place, dtype="int32")
    areas = np.bincount(drawn.ravel(), minlength=len(outlines) + 1)
    whole = np.array([math.inf, *(outline.area for outline in outlines)])
    kept = (areas >= settings.smallest_area) & (areas >= settings.visible * whole)
    renumbered = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return renumbered[drawn]


def write_folder(scene_path: Path, outlines_path: Path, output: Path, settings: FootprintSettings) -> Any:
    """Write the folder, `instances.json` last; return its content."""
    scene = read_scene(scene_path, reduce=settings.reduce)
    outlines = read_outlines(outlines_path, scene)
    height, width = scene.pixels.shape[:2]
    (output / "images").mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [CATEGORY]}
    for number, window in enumerate(windows_of(height, width, settings)):
        name = f"{window.split}-x{window.left}-y{window.top}.png"
        rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
        Image.fromarray(scene.pixels[rows, columns]).save(output / "images" / name)
        instances = draw(outlines, window, settings)
        size = {"height": instances.shape[0], "width": instances.shape[1]}
        place = {"x": window.left, "y": window.top, "split": window.split}
        content["images"].append({"id": number, "file_name": name, **size, **place})
        content["annotations"] += _annotations(instances, number, first_id=len(content["annotations"]))
    (output / "instances.json").write_text(json.dumps(content))
    return content


def _held_out(settings: FootprintSettings) -> list[tuple[str, Shares]]:
    return [("val", settings.val), ("test", settings.test)]


def _block(split: str, shares: Shares, height: int, width: int) -> Window:
    edges = shares.left * width, shares.top * height, shares.right * width, shares.bottom * height
    block = Window(split, *(round(edge) for edge in edges))
    if block.left == block.right or block.top == block.bottom:
        raise SettingsError(f"the rectangle of {split} holds no pixel of the scene")
    return block


def _parts(block: Window, longest: int) -> list[Window]:
    """Cut a block into as few parts of nearly equal size as sides of at most `longest` pixels allow."""
    columns = _cuts(block.left, block.right, longest)
    rows = _cuts(block.top, block.bottom, longest)
    return [
        Window(block.split, left, top, right, bottom)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def _cuts(start: int, stop: int, longest: int) -> list[int]:
    count = math.ceil((stop - start) / longest)
    return [start + (stop - start) * part // count for part in range(count + 1)]


def _annotations(instances: NDArray[np.int32], image_id: int, *, first_id: int) -> list[dict[str, Any]]:
    found = []
    for number in range(1, int(instances.max()) + 1):
        rle = coco_mask.encode(np.asfortranarray(instances == number, np.uint8))
        found.append(
            {
                "id": first_id + number,
                "image_id": image_id,
                "category_id": CATEGORY["id"],
                "iscrowd": 0,
                "area": int(coco_mask.area(rle)),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    return found


def main() -> None:
    """Cut a scene with building outlines into windows for training; print the contents of each split."""
    usual = FootprintSettings()
    parser = argparse.ArgumentParser(prog="python jobs/footprints_to_coco.py", description=main.__doc__)
    parser.add_argument("scene", type=Path, help="GeoTIFF, 3 x uint8")
    parser.add_argument("outlines", type=Path, help="GeoJSON; longitude and latitude if it names no crs")
    parser.add_argument("output", type=Path, help="folder to write")
    for name in ("reduce", "window", "overlap", "smallest_area"):
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=getattr(usual, name))
    parser.add_argument("--visible", type=float, default=usual.visible)
    rectangle = "left,top,right,bottom as shares of the scene"
    for name in ("test", "val"):
        parser.add_argument("--" + name, type=_shares, default=getattr(usual, name), help=rectangle)
    given = vars(parser.parse_args())
    paths = given.pop("scene"), given.pop("outlines"), given.pop("output")
    try:
        content = write_folder(*paths, FootprintSettings(**given))
    except SettingsError as error:
        parser.exit(error.exit_code, f"{error}\n")
    for split in SPLITS:
        images = {image["id"] for image in content["images"] if image["split"] == split}
        buildings = sum(row["image_id"] in images for row in content["annotations"])
        print(json.dumps({"split": split, "images": len(images), "buildings": buildings}))


def _shares(text: str) -> Shares:
    try:
        return Shares(*(float(part) for part in text.split(",")))
    except (SettingsError, TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no left,top,right,bottom such as 0.5,0,1,1") from error


if __name__ == "__main__":
    main()
