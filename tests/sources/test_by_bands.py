"""Sound pictures that Pillow does not know are read by their bands, as scenes are."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from segray.data.labels import LabelRules
from segray.data.pair_reader import Example, Reader
from segray.data.pairs import Pair
from segray.errors import ItemError
from segray.scenes.scene import Tiling
from segray.sources.byte_ranges import MemoryRanges
from segray.sources.decode_step import Decoder, decode_image
from segray.sources.item import Source
from segray.sources.rows import FetchedRows
from segray.sources.sandbox import DecodeSandbox, _Child
from segray.storage import StorageSettings

PLENTY = 1_000_000
USUAL = Tiling()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DecodeSandbox]:
    with DecodeSandbox() as started:
        yield started


def values(bands: int, kind: str) -> NDArray[Any]:
    """Reflectance, say: between 500 and 3,000 where the type holds it."""
    low, high = (20, 230) if kind == "uint8" else (500, 3000)
    return np.random.default_rng(7).uniform(low, high, (bands, 60, 90)).astype(kind)


def written(path: Path, bands: NDArray[Any], **options: Any) -> Path:
    kinds = options.pop("kinds", None)
    with rasterio.open(
        path, "w", driver="GTiff", count=bands.shape[0], height=bands.shape[1], width=bands.shape[2],
        dtype=bands.dtype, **options,
    ) as file:  # fmt: skip
        file.write(bands)
        if kinds is not None:
            file.colorinterp = kinds
    return path


def read(sandbox: DecodeSandbox, path: Path, tiling: Tiling = USUAL) -> NDArray[np.uint8]:
    decoded = decode_image(sandbox, MemoryRanges(str(path), memoryview(path.read_bytes())), PLENTY, tiling)
    assert (decoded.frames, decoded.nodata) == (1, None)
    return decoded.pixels


def as_scene(sandbox: DecodeSandbox, path: Path, bands: NDArray[Any], tiling: Tiling) -> NDArray[np.uint8]:
    """The same values with a place on Earth."""
    placed = written(
        path.with_suffix(".placed.tif"), bands, crs="EPSG:32636", transform=from_origin(5e5, 4e4, 1, 1)
    )
    scene = sandbox.describe(MemoryRanges(str(placed), memoryview(placed.read_bytes())), tiling)
    assert scene is not None
    assert len(scene.grid) == 1
    file = MemoryRanges(str(placed), memoryview(placed.read_bytes()))
    found = sandbox.window(file, scene, 0, sandbox.room())
    assert found is not None
    return found.pixels.copy()


@pytest.mark.parametrize(
    ("count", "kind", "options"),
    [
        (3, "uint16", {"photometric": "MINISBLACK"}),
        (4, "uint16", {"photometric": "MINISBLACK"}),
        (3, "uint8", {"photometric": "MINISBLACK"}),
        (4, "uint8", {"photometric": "MINISBLACK", "kinds": 4 * [ColorInterp.undefined]}),
        (5, "uint8", {}),
        (8, "uint8", {}),
        (13, "uint16", {"interleave": "band"}),
        (1, "int16", {}),
        (1, "float32", {}),
        (3, "float32", {"compress": "lerc"}),
        (3, "uint8", {"compress": "lerc"}),
        (1, "uint16", {"compress": "lerc"}),
        (3, "uint8", {"compress": "webp", "WEBP_LOSSLESS": "YES"}),
        (3, "uint16", {"compress": "zstd"}),
    ],
)
def test_tiffs_without_a_place(
    count: int, kind: str, options: dict[str, Any], sandbox: DecodeSandbox, tmp_path: Path
) -> None:
    bands = values(count, kind)
    path = written(tmp_path / "plain.tif", bands, **options)
    assert np.array_equal(read(sandbox, path), as_scene(sandbox, path, bands, Tiling()))


def test_bands_and_scaling_apply(sandbox: DecodeSandbox, tmp_path: Path) -> None:
    bands = values(4, "uint16")
    path = written(tmp_path / "four.tif", bands, photometric="MINISBLACK")
    found = read(sandbox, path, Tiling(bands=(3, 2, 1), scaling="0,3000"))
    expected = (bands[2::-1].transpose(1, 2, 0) * (255 / 3000)).clip(0, 255)
    assert np.abs(found - expected).max() < 0.51
    with pytest.raises(ItemError, match="--bands has band 9, the file has 4"):
        read(sandbox, path, Tiling(bands=(9,)))


def test_jpeg_2000_of_sixteen_bits(sandbox: DecodeSandbox, tmp_path: Path) -> None:
    bands = values(3, "uint16")
    plain = written(tmp_path / "plain.tif", bands, photometric="MINISBLACK")
    path = tmp_path / "three.jp2"
    rasterio.shutil.copy(plain, path, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")
    assert np.array_equal(read(sandbox, path), as_scene(sandbox, plain, bands, Tiling()))


def test_what_pillow_reads_it_reads(sandbox: DecodeSandbox, tmp_path: Path) -> None:
    bands = values(3, "uint8")
    path = written(tmp_path / "plain.tif", bands, photometric="RGB")
    assert np.array_equal(read(sandbox, path), np.asarray(Image.open(path)))
    assert np.array_equal(read(sandbox, path, Tiling(bands=(2,))), np.asarray(Image.open(path)))


def test_damage_is_still_damage(sandbox: DecodeSandbox, tmp_path: Path) -> None:
    path = written(tmp_path / "eight.tif", values(8, "uint8"), compress="deflate")
    data = path.read_bytes()
    for cut, kinds in ((len(data) // 2, ("corrupt", "truncated")), (6, ("truncated",))):
        path.write_bytes(data[:cut])
        with pytest.raises(ItemError) as caught:
            read(sandbox, path)
        assert caught.value.error_type in kinds
    path.write_bytes(data)
    with pytest.raises(ItemError, match="90 x 60 pixels, above max_pixels 5,000") as caught:
        decode_image(sandbox, MemoryRanges("x", memoryview(data)), 5_000, Tiling())
    assert caught.value.error_type == "too_large"


def test_damage_behind_bands_that_pillow_does_not_know(sandbox: DecodeSandbox, tmp_path: Path) -> None:
    path = written(tmp_path / "four.tif", values(4, "uint16"), photometric="MINISBLACK", compress="deflate")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ItemError, match="GDAL cannot read its metadata") as caught:
        read(sandbox, path)
    assert caught.value.error_type == "corrupt"


def test_a_compression_that_nobody_knows_is_no_damage(sandbox: DecodeSandbox, tmp_path: Path) -> None:
    path = written(tmp_path / "four.tif", values(4, "uint16"), photometric="MINISBLACK", compress="deflate")
    entry = struct.pack("<HHIHH", 259, 3, 1, 8, 0)
    data = path.read_bytes()
    assert data.count(entry) == 1
    path.write_bytes(data.replace(entry, struct.pack("<HHIHH", 259, 3, 1, 34712, 0)))
    with pytest.raises(ItemError, match="missing codec") as caught:
        read(sandbox, path)
    assert caught.value.error_type == "unsupported"


def test_a_long_picture_has_the_memory_of_its_pixels(tmp_path: Path) -> None:
    """Not of the square around it: 500,000 pixels a side would be no limit at all."""
    path = tmp_path / "long.tif"
    with rasterio.open(path, "w", driver="GTiff", count=5, height=2, width=500_000, dtype="uint8") as file:
        file.write(np.ones((5, 2, 500_000), np.uint8))
    asked = list[int]()
    ask = _Child._ask_of_scene

    def asking(child: _Child, request: dict[str, Any], *rest: Any) -> Any:
        asked.append(request["pixels"])
        return ask(child, request, *rest)

    with DecodeSandbox() as sandbox, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Child, "_ask_of_scene", asking)
        assert read(sandbox, path).shape == (2, 500_000, 3)
    assert asked == [0, 1_000_000]


def test_without_any_value(sandbox: DecodeSandbox, tmp_path: Path) -> None:
    path = written(tmp_path / "empty.tif", np.zeros((5, 60, 90), np.uint8), nodata=0)
    assert not read(sandbox, path).any()


def test_annotate_and_train_see_the_same(tmp_path: Path) -> None:
    """As a picture, neither tile nor scene; a large one is cut as others are."""
    bands = values(4, "uint16")
    path = written(tmp_path / "four.tif", bands, photometric="MINISBLACK")
    rows = FetchedRows()
    rows.add_file(Source(f"file://{path}", str(path), "file", "1", 1), path.read_bytes())
    fetched = rows.take()
    with DecodeSandbox() as sandbox:
        (table,) = Decoder(sandbox, PLENTY).tables(fetched)
        cut = pa.concat_tables(Decoder(sandbox, PLENTY, Tiling(32, 8, picture_pixels=1000)).tables(fetched))
    (row,) = table.to_pylist()
    assert (row["error"], row["scene"], row["tile"], row["nodata"]) == (None, None, None, None)
    assert cut["tile"].to_pylist() == list(range(cut.num_rows))
    Image.new("L", (90, 60)).save(tmp_path / "label.png")
    image, label = (
        Source(f"file://{each}", str(each), "file", "1", 1) for each in (path, tmp_path / "label.png")
    )
    (example,) = Reader(LabelRules(2), PLENTY, StorageSettings()).read([Pair("a", "a", image, label, None)])
    assert isinstance(example, Example)
    assert example.pixels.tobytes() == row["pixels"]
