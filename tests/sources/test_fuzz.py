"""Thousands of damaged files: every one is answered in words, in bounded time and memory; nothing is left.

`--fuzz-files N` images, a fifth as many archives and a tenth as many manifests; `--fuzz-seed` draws others.
"""

import gzip
import io
import random
import re
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image, ImageOps
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from segray.errors import ERROR_TYPES, ItemError, SettingsError
from segray.scenes.scene import Tiling
from segray.schema import FETCHED
from segray.sources.archives import read_archive
from segray.sources.byte_ranges import MemoryRanges
from segray.sources.decode import Decoded, decode_rgb
from segray.sources.file_headers import may_be_scene
from segray.sources.item import Source
from segray.sources.listing import Listing
from segray.sources.sandbox import DecodeSandbox
from segray.sources.signature import FORMATS
from tests.sources.footprint import Footprint
from tests.sources.mutations import mutate
from tests.sources.pictures import encoded, jpeg, picture, pillow_rgb
from tests.sources.test_archives import STORAGE, tar, zipped

AWKWARD = Path(__file__).parents[1] / "data" / "awkward"
TIMEOUT_S = 10.0
MOST_PIXELS = (10**4, 10**6, 10**8)
"""A limit that refuses much, one that refuses lies, and the default."""


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TMPDIR of our own, whatever else runs on the machine."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def check_words(error_type: str | None, reason: str | None) -> None:
    """A known type, and a reason that a person can use."""
    assert error_type in ERROR_TYPES
    assert reason is not None
    assert 12 < len(reason) < 500, reason
    assert reason.isprintable(), repr(reason)
    assert not re.search(r"(?<![0-9a-f])b'", reason), reason  # but a name may end in \x1b
    for noise in ("<_io", " at 0x", "NoneType", "Traceback", "the decoder failed", "list index"):
        assert noise not in reason, reason


def check_nothing_grew(before: Footprint, after: Footprint, peak: int, most_bytes: int) -> None:
    """Descriptors, files in TMPDIR, resident memory; `most_bytes` is what one file may take in between.

    Threads of Ray and of servers in this process open a descriptor now and then; a leak is one of many files.
    """
    assert after.descriptors <= before.descriptors + 2
    assert after.scratch <= before.scratch
    assert after.resident < before.resident + (150 << 20)
    assert peak < before.resident + most_bytes


def seeds_of_images() -> list[bytes]:
    """The awkward set, and small pictures of the formats and options that it lacks."""
    found = [path.read_bytes() for path in sorted(AWKWARD.iterdir()) if path.suffix != ".md"]
    pages = [picture(), Image.new("RGB", (40, 24), "red")]
    exif = Image.Exif()
    exif[274] = 6
    for form in ("JPEG2000", "AVIF", "WEBP", "PNG", "TIFF", "JPEG"):
        found.append(encoded(picture(), form, exif=exif))
    for form in ("GIF", "WEBP", "PNG", "AVIF", "MPO"):
        found.append(encoded(pages[0], form, save_all=True, append_images=pages[1:]))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "zstd"):
        page = picture("1" if compression == "group4" else "RGB")
        found.append(encoded(page, "TIFF", compression=compression))
    found += [encoded(picture(), "JPEG", progressive=True), encoded(picture("P"), "BMP")]
    return found


def pillow_alone(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8] | None:
    """What Pillow makes of it in this process; None where it complains, or has no 8-bit form."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if (image.mode[0] in "IF" and image.mode != "1") or image.width * image.height > max_pixels:
                    return None
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except Exception:  # noqa: BLE001 - any complaint is one
            return None


def answer(sandbox: DecodeSandbox, data: bytes, max_pixels: int) -> Decoded | ItemError:
    """The picture or the rejection; anything else fails the test."""
    start = time.monotonic()
    try:
        return sandbox.decode(data, max_pixels)
    except ItemError as error:
        check_words(error.error_type, error.reason)
        return error
    finally:
        assert time.monotonic() - start < TIMEOUT_S + 5


def mutations(seeds: Sequence[bytes], number: int, seed: int) -> Iterator[tuple[str, bytes, random.Random]]:
    """(what was done, the file, the file's own generator); any one can be made again from its number."""
    for index in range(number):
        draw = random.Random(f"{seed}-{index}")
        made, data = mutate(draw.choice(seeds), seeds, draw)
        yield f"seed {seed} file {index}: {made}", data, draw


def test_images(fuzz_files: int, fuzz_seed: int) -> None:
    seeds, counts = seeds_of_images(), Counter[str]()
    with DecodeSandbox(TIMEOUT_S) as sandbox:
        for data in seeds:
            answer(sandbox, data, 10**8)
        before = Footprint()
        for made, data, draw in mutations(seeds, fuzz_files, fuzz_seed):
            max_pixels = draw.choice(MOST_PIXELS)
            outcome = answer(sandbox, data, max_pixels)
            counts[outcome.error_type if isinstance(outcome, ItemError) else "decoded"] += 1
            if isinstance(outcome, Decoded):
                assert outcome.pixels.shape[0] * outcome.pixels.shape[1] <= max_pixels
            if len(data) < 1 << 20 and counts["compared"] < 2000:
                compare(made, data, outcome, max_pixels)
                counts["compared"] += 1
        peak, after = before.peak, Footprint()
    print(dict(counts))
    assert counts["decoded"] > fuzz_files / 10
    assert after.children <= 1
    check_nothing_grew(before, after, peak, 1 << 30)


def compare(made: str, data: bytes, outcome: Decoded | ItemError, max_pixels: int) -> None:
    """Pillow's pixels where Pillow has no complaint; none where the sandbox had to be afraid."""
    if isinstance(outcome, ItemError) and outcome.error_type in ("timeout", "memory", "crashed", "too_large"):
        return
    expected = pillow_alone(data, max_pixels)
    if expected is not None:
        assert isinstance(outcome, Decoded), f"{made}: {outcome!r}"
        assert np.array_equal(outcome.pixels, expected), made


def test_jpegs(fuzz_files: int, fuzz_seed: int) -> None:
    """Two decoders share them: a picture or none, as Pillow says, whichever of the two gave it."""
    options: list[dict[str, Any]] = [{"progressive": True}, {"restart_marker_blocks": 2}]
    options += [{"quality": 10}, {"subsampling": 0}, {"subsampling": 1}, {}]
    seeds = [encoded(picture(mode), "JPEG", **each) for mode in ("RGB", "L") for each in options]
    counts = Counter[str]()
    for made, data, _ in mutations(seeds, fuzz_files, fuzz_seed):
        try:
            outcome: npt.NDArray[np.uint8] | None = decode_rgb(data, 10**6).pixels
        except ItemError as error:
            if error.error_type == "too_large":
                continue
            outcome = None
        try:
            expected: npt.NDArray[np.uint8] | None = pillow_rgb(data)
        except Exception:  # noqa: BLE001 - plugins fail on hostile bytes with any type
            expected = None
        assert (outcome is None) == (expected is None), made
        if outcome is not None and expected is not None:
            assert np.array_equal(outcome, expected), made
        counts["refused" if outcome is None else "decoded"] += 1
    assert min(counts["refused"], counts["decoded"]) > fuzz_files / 10


MAX_FILE_BYTES = 32 << 20
NAMES = ["a.jpg", "b/c.png", "notes.txt", "b/é.webp", "n" * 150 + ".jpg", "a.jpg", "empty.gif"]


def seeds_of_scenes(folder: Path) -> list[bytes]:
    """Small GeoTIFFs of several kinds."""
    random = np.random.default_rng(5)
    kinds: list[dict[str, Any]] = [
        {"dtype": "uint8", "count": 3, "compress": "jpeg", "photometric": "ycbcr"},
        {"dtype": "uint16", "count": 1, "nodata": 0, "compress": "deflate", "predictor": 2},
        {"dtype": "float32", "count": 4, "interleave": "band", "compress": "lzw"},
        {"dtype": "int16", "count": 2, "tiled": False, "BIGTIFF": "YES"},
    ]
    found = []
    for number, kind in enumerate(kinds):
        path = folder / f"{number}.tif"
        tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64} if kind.get("tiled", True) else {}
        place = {"crs": "EPSG:32636", "transform": from_origin(500_000, 40_000, 1, 1)}
        with rasterio.open(
            path, "w", driver="GTiff", height=150, width=130, **place, **tiles, **kind
        ) as file:
            file.write(random.integers(0, 200, (kind["count"], 150, 130)).astype(kind["dtype"]))
            if number == 1:
                file.build_overviews([2], Resampling.average)
        found.append(path.read_bytes())
    return found


def test_scenes(fuzz_files: int, fuzz_seed: int, tmp_path: Path) -> None:
    seeds, counts = seeds_of_scenes(tmp_path), Counter[str]()
    with DecodeSandbox(TIMEOUT_S) as sandbox:
        for data in seeds:
            assert look_at(sandbox, "sound", data) == ["tile"] * 9
        before = Footprint()
        for made, data, _ in mutations(seeds, fuzz_files, fuzz_seed):
            counts.update(look_at(sandbox, made, data))
        peak, after = before.peak, Footprint()
    print(dict(counts))
    assert counts["tile"] > fuzz_files
    assert after.children <= 1
    check_nothing_grew(before, after, peak, 2 << 30)


def look_at(sandbox: DecodeSandbox, key: str, data: bytes) -> list[str]:
    """What became of a scene, or of its first nine tiles; all but tiles and rejections fails the test."""
    file, tiling = MemoryRanges(key, memoryview(data)), Tiling(64, 16)
    try:
        if not may_be_scene(memoryview(data)) or (scene := sandbox.describe(file, tiling)) is None:
            return ["picture"]
    except ItemError as error:
        check_words(error.error_type, error.reason)
        return [error.error_type]
    found = []
    for tile in range(min(len(scene.grid), 9)):
        start = time.monotonic()
        try:
            found.append("empty" if sandbox.window(file, scene, tile, sandbox.room()) is None else "tile")
        except ItemError as error:
            check_words(error.error_type, error.reason)
            found.append(error.error_type)
        assert time.monotonic() - start < TIMEOUT_S + 5
    return found


def seeds_of_archives() -> dict[str, list[bytes]]:
    """Small archives of every dialect, by suffix."""
    members = [(name, jpeg(seed, 16, 8 * seed) if seed else b"") for seed, name in enumerate(reversed(NAMES))]
    dialects = [tar(members), *(dialect(members, form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))]
    links = io.BytesIO()
    with tarfile.open(fileobj=links, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("link.jpg")
            info.type, info.linkname = kind, "a" * 120
            archive.addfile(info)
    dialects += [links.getvalue(), dialects[0] + dialects[1]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicate names
        zips = [zipped(members, method) for method in (0, 8, 12, 14)]  # stored, deflate, bzip2, LZMA
    return {"tar": dialects, "tar.gz": [gzip.compress(each, mtime=0) for each in dialects], "zip": zips}


def dialect(members: list[tuple[str, bytes]], form: int) -> bytes:
    """A tar with extended headers of one kind."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, pax_headers={"comment": "all"}) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 0.5
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def damaged_archives(number: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """(what was done, suffix, the file); half of the packed tars are damaged before they are packed."""
    seeds = seeds_of_archives()
    for index in range(number):
        draw = random.Random(f"{seed}-archive-{index}")
        suffix = draw.choice(("tar", "tar.gz", "zip"))
        inside = suffix == "tar.gz" and draw.random() < 0.5
        pool = seeds["tar" if inside else suffix]
        made, data = mutate(draw.choice(pool), pool, draw)
        yield (
            f"seed {seed} archive {index}: {made}",
            suffix,
            gzip.compress(data, 1, mtime=0) if inside else data,
        )


def test_archives(fuzz_files: int, fuzz_seed: int, tmp_path: Path) -> None:
    before, counts = Footprint(), Counter[str]()
    for made, suffix, data in damaged_archives(fuzz_files // 5, fuzz_seed):
        path, start = tmp_path / f"x.{suffix}", time.monotonic()
        path.write_bytes(data)
        (source,) = Listing([str(path)], STORAGE)
        tables = list(read_archive(source, (), STORAGE, MAX_FILE_BYTES))
        assert time.monotonic() - start < TIMEOUT_S, made
        assert all(table.schema == FETCHED for table in tables)
        *rows, end = [row for table in tables for row in table.to_pylist()]
        assert end["end"]["items"] == len(rows), made
        assert len({row["image_id"] for row in rows}) == len(rows), made
        assert [row["member"] for row in rows].count(None) == end["end"]["broken"], made
        for row in rows:
            assert (row["data"] is None) == (row["error_type"] is not None)
            if row["error_type"] is not None:
                check_words(row["error_type"], row["error"])
                assert row["error_type"] in ("corrupt", "truncated", "too_large", "unsupported"), (made, row)
            counts[row["error_type"] or "whole"] += 1
        if made.endswith(": cut tail"):
            assert end["end"]["broken"] or len(rows) in (3, 6, 12), made  # up to an end mark
    print(dict(counts))
    check_nothing_grew(before, Footprint(), before.peak, 300 << 20)


def seeds_of_manifests() -> dict[str, list[bytes]]:
    """Manifests that name files beside them, by suffix."""
    uris = [
        *NAMES,
        None,
        "",
        "foo://bar/x.jpg",
        "file:///nowhere/x.jpg",
        "C:\\x.jpg",
        "javascript:x",
        *"ab" * 300,
    ]
    lines = "".join(f'{number},"{uri or ""}"\n' for number, uri in enumerate(uris))
    table = pa.table({"label": range(len(uris)), "uri": uris})
    packed = []
    for options in (
        {"compression": "none"},
        {"compression": "zstd"},
        {"use_dictionary": False},
        {"version": "1.0"},
    ):
        file = io.BytesIO()
        pq.write_table(table, file, **options)
        packed.append(file.getvalue())
    return {"csv": [f"label,uri\n{lines}".encode(), b"uri\r\na.jpg\r\n"], "parquet": packed}


def manifest_rows(path: Path) -> tuple[list[Source], str | None]:
    """The rows, and why there are not more."""
    rows = list[Source]()
    try:
        rows.extend(Listing([str(path)], STORAGE))
    except SettingsError as error:
        return rows, str(error)
    return rows, None


def test_manifests(fuzz_files: int, fuzz_seed: int, tmp_path: Path) -> None:
    seeds, before, counts = seeds_of_manifests(), Footprint(), Counter[str]()
    for index in range(fuzz_files // 10):
        draw = random.Random(f"{fuzz_seed}-manifest-{index}")
        suffix = draw.choice(sorted(seeds))
        made, data = mutate(draw.choice(seeds[suffix]), seeds[suffix], draw)
        path, start = tmp_path / f"m.{suffix}", time.monotonic()
        path.write_bytes(data)
        rows, refusal = manifest_rows(path)
        counts["rows"] += len(rows)
        for row in rows:
            check_words(row.error_type, row.error)  # none of the files is there
        if refusal is not None:
            counts["refused"] += 1
            assert refusal.startswith(f"file://{path}: "), made
            check_words("corrupt", refusal)
        assert time.monotonic() - start < TIMEOUT_S, made
    print(dict(counts))
    check_nothing_grew(before, Footprint(), before.peak, 500 << 20)
