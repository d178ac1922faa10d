"""Where and when a photo was taken: of every format, against Pillow's reading, and of hostile EXIF."""

import random
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import shapely
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from segray.scenes.scene import Tiling
from segray.schema import DECODED, TAKEN
from segray.sources.decode import decode_rgb
from segray.sources.decode_step import Decoder
from segray.sources.exif import read_exif
from segray.sources.item import Source
from segray.sources.rows import FetchedRows
from segray.sources.sandbox import DecodeSandbox
from segray.sources.taken import Taken, taken_of, utc_of
from tests.scenes.made import town, write
from tests.scenes.steps import annotated
from tests.sources.exif_made import BERLIN, STREET, gps_at, photo_exif
from tests.sources.mutations import mutate
from tests.sources.pictures import encoded, picture

LOCAL = datetime(2024, 5, 6, 7, 8, 9, 250_000, tzinfo=UTC)
MOMENT = LOCAL.replace(hour=5)
NAN, ENDLESS = IFDRational(0, 0), IFDRational(1, 0)


def taken(gps: dict[int, Any] | None = None, exif: dict[int, Any] | None = None) -> Taken:
    return taken_of(photo_exif(gps, exif).tobytes()) or Taken()


def moment(found: Taken, name: str = "taken_at") -> datetime | None:
    value = getattr(found, name)
    return None if value is None else datetime.fromtimestamp(value / 1e6, UTC)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DecodeSandbox]:
    with DecodeSandbox(location=True) as one:
        yield one


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_format_has_them(form: str, orientation: int, sandbox: DecodeSandbox) -> None:
    block = Image.Exif()
    block.load(STREET.tobytes())
    block[0x0112] = orientation
    if form == "TIFF":  # its directories are the file's own
        data = encoded(picture(), form, exif=block)
    else:
        data = encoded(picture(), form, exif=block.tobytes())
    found = sandbox.decode(data, 10_000)
    assert found.pixels.shape == ((40, 24, 3) if orientation == 6 else (24, 40, 3))
    assert found.taken is not None
    assert found.taken.location == pytest.approx(BERLIN, abs=1e-7)
    assert (found.taken.heading, found.taken.heading_ref) == (123.4, "true")
    assert (moment(found.taken), moment(found.taken, "taken_at_local")) == (MOMENT, LOCAL)
    assert decode_rgb(data, 10_000).taken is None  # only who asks for it gets it


def test_a_png_with_its_exif_behind_the_pixels(sandbox: DecodeSandbox) -> None:
    data = encoded(picture(), "PNG", exif=STREET.tobytes())
    start = data.index(b"eXIf") - 4
    (size,) = struct.unpack_from(">I", data, start)
    chunk, rest = data[start : start + size + 12], data[:start] + data[start + size + 12 :]
    end = rest.index(b"IEND") - 4
    found = sandbox.decode(rest[:end] + chunk + rest[end:], 10_000)
    assert found.taken is not None
    assert moment(found.taken) == MOMENT


@pytest.mark.parametrize("endian", ["<", ">"])
def test_places_all_over_the_world_are_those_that_pillow_reads(endian: str) -> None:
    random_ = random.Random(1)
    for _ in range(200):
        place = random_.uniform(-180, 180), random_.uniform(-90, 90)
        block = photo_exif(gps_at(*place))
        block.endian = endian
        data = block.tobytes()
        assert data[6:8] == (b"II" if endian == "<" else b"MM")
        found = taken_of(data)
        assert found is not None
        assert found.location == pytest.approx(place, abs=1e-7)
        assert shapely.get_coordinates(shapely.from_wkb(found.wkb)).tolist() == [list(found.location or ())]
        read = Image.Exif()
        read.load(data)
        _, gps = read_exif(data, (), (1, 2, 3, 4))
        assert gps[1] == read.get_ifd(0x8825)[1]
        assert gps[4] == tuple(map(float, read.get_ifd(0x8825)[4]))


PLACE = gps_at(*BERLIN)


@pytest.mark.parametrize(
    ("gps", "why"),
    [
        (PLACE | {2: (NAN, IFDRational(0), IFDRational(0))}, "0/0"),
        (PLACE | {4: (IFDRational(13), ENDLESS, IFDRational(0))}, "1/0"),
        (PLACE | {2: (IFDRational(200), IFDRational(0), IFDRational(0))}, "200 degrees north"),
        (PLACE | {2: (IFDRational(90), IFDRational(0), IFDRational(1))}, "beyond the pole"),
        (PLACE | {4: (IFDRational(180), IFDRational(1), IFDRational(0))}, "181 degrees east"),
        (PLACE | {2: (IFDRational(52), IFDRational(61), IFDRational(0))}, "61 minutes"),
        (PLACE | {1: "X"}, "no hemisphere of that name"),
        (PLACE | {1: "E"}, "the other axis's"),
        (PLACE | {3: ""}, "an empty one"),
        ({tag: value for tag, value in PLACE.items() if tag != 3}, "none"),
        ({tag: value for tag, value in PLACE.items() if tag != 2}, "no latitude"),
        (PLACE | {9: "V"}, "the fix is void"),
        (PLACE | {18: "TOKYO"}, "another datum"),
        (gps_at(0, 0), "null island"),
    ],
)
def test_a_place_that_cannot_be_right_is_null_and_costs_nothing_else(gps: dict[int, Any], why: str) -> None:
    found = taken(gps | {16: "M", 17: IFDRational(90)}, {0x9003: "2024:05:06 07:08:09"})
    assert found.location is None, why
    assert (found.heading, found.heading_ref) == (90, "magnetic")
    assert moment(found, "taken_at_local") == LOCAL.replace(microsecond=0)


@pytest.mark.parametrize("datum", ["WGS-84", "wgs84", "WGS-84   ", "JGD2011", ""])
def test_datums_that_are_wgs_84(datum: str) -> None:
    assert taken(PLACE | {18: datum}).location == pytest.approx(BERLIN)


def test_decimal_degrees_in_one_rational() -> None:
    gps = {1: "S", 2: (IFDRational(525, 10),), 3: "w", 4: (IFDRational(134, 10),)}
    assert taken(gps).location == (-13.4, -52.5)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({17: IFDRational(0), 16: "T"}, (0, "true")),
        ({17: IFDRational(360), 16: "T"}, (0, "true")),
        ({17: IFDRational(3599, 10)}, (359.9, None)),
        ({17: IFDRational(361), 16: "T"}, (None, None)),
        ({17: ENDLESS, 16: "T"}, (None, None)),
        ({17: IFDRational(5), 16: "?"}, (5, None)),
    ],
)
def test_headings(tags: dict[int, Any], expected: tuple[float | None, str | None]) -> None:
    found = taken(tags)
    assert (found.heading, found.heading_ref) == expected


TAKEN_AT, OFFSET = 0x9003, 0x9011
NINE = "2024:05:06 09:00:00"


@pytest.mark.parametrize(
    ("exif", "gps", "expected"),
    [
        ({TAKEN_AT: NINE, OFFSET: "+05:30"}, {}, "03:30:00"),
        ({TAKEN_AT: NINE, OFFSET: "-03:00"}, {29: "2024:05:06", 7: (1, 2, 3)}, "12:00:00"),
        ({TAKEN_AT: NINE, OFFSET: "+99:00"}, {}, None),
        ({TAKEN_AT: NINE, OFFSET: "   :  "}, {29: "2024:05:06", 7: (7, 0, 1)}, "07:00:01"),
        ({TAKEN_AT: NINE}, {}, None),
        ({TAKEN_AT: NINE}, {29: "2024:05:03", 7: (7, 0, 1)}, None),  # the fix is three days old
        ({}, {29: "2024:05:06", 7: (7, 0, IFDRational(3, 2))}, "07:00:01.500000"),
        ({}, {29: "2024:05:06", 7: (24, 0, 0)}, None),
        ({}, {29: "2024:05:06", 7: (7, 0, ENDLESS)}, None),
        ({}, {29: "2024:02:30", 7: (7, 0, 0)}, None),
        ({TAKEN_AT: "0000:00:00 00:00:00", OFFSET: "+00:00"}, {}, None),
        ({TAKEN_AT: "    :  :     :  :  ", OFFSET: "+00:00"}, {}, None),
        ({TAKEN_AT: "0001:01:01 00:00:00", OFFSET: "+01:00"}, {}, None),  # before the first year
    ],
)
def test_moments(exif: dict[int, Any], gps: dict[int, Any], expected: str | None) -> None:
    found = moment(taken(gps, exif))
    assert (None if found is None else found.time().isoformat()) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-06T05:08:09.25Z", MOMENT),
        ("2024-05-06T07:08:09.25+02:00", MOMENT),
        ("2024-05-06T07:08:09", None),
        ("0001-01-01T00:00:00+14:00", None),
        (None, None),
        ({}, None),
    ],
)
def test_iso_8601(text: object, expected: datetime | None) -> None:
    found = utc_of(text)
    assert found == (None if expected is None else int(expected.timestamp() * 1e6))


def test_damaged_blocks_never_raise_and_never_lie() -> None:
    """Bits, runs and tails of a block, and every length of it: what is read is in range."""
    whole, draw = STREET.tobytes(), random.Random(2)
    blocks = [whole[:size] for size in range(len(whole))]
    blocks += [mutate(whole, [whole], draw)[1] for _ in range(3000)]
    known = 0
    for block in blocks:
        found = taken_of(block) or Taken()
        if found.location is not None:
            known += 1
            longitude, latitude = found.location
            assert abs(longitude) <= 180
            assert abs(latitude) <= 90
        assert found.heading is None or 0 <= found.heading < 360
        pa.array([found.taken_at, found.taken_at_local], pa.timestamp("us", "UTC")).to_pylist()
    assert 500 < known < len(blocks)


def test_a_directory_of_65535_tags_is_read_in_no_time() -> None:
    entry = struct.pack("<HHII", 0x8825, 4, 1, 8)  # the GPS directory is the first one, again
    block = b"II*\0" + struct.pack("<IH", 8, 65535) + entry * 65535
    assert taken_of(block) is None


def test_a_broken_block_costs_no_pixel(sandbox: DecodeSandbox) -> None:
    block = STREET.tobytes()
    for end in (7, 20, 60, 200):
        data = encoded(picture(), "JPEG", exif=block[:end])
        found = sandbox.decode(data, 10_000)
        assert np.array_equal(found.pixels, decode_rgb(encoded(picture(), "JPEG"), 10_000).pixels)


def test_the_table_and_the_windows_of_a_large_photo(sandbox: DecodeSandbox) -> None:
    rows = FetchedRows()
    files = [
        encoded(picture(width=40), "JPEG", exif=STREET.tobytes()),
        encoded(picture(width=100, height=100), "JPEG", exif=STREET.tobytes()),
        encoded(picture(width=40), "PNG"),
        b"no image",
    ]
    for number, data in enumerate(files):
        rows.add_file(Source(f"file:///{number}", f"/{number}", "file", "1", 1), data)
    decoder = Decoder(sandbox, 1_000_000, Tiling(tile=64, overlap=8, picture_pixels=5000))
    decoded = pa.concat_tables(decoder.tables(rows.take()))
    assert decoded.schema == DECODED
    known = decoded["tile"].is_valid().to_pylist()
    assert known == [False, True, True, True, True, False, False]
    for field in TAKEN:
        assert decoded[field.name].is_valid().to_pylist() == [True] * 5 + [False] * 2
    first = decoded.slice(0, 1).to_pylist()[0]
    assert shapely.from_wkb(first["location"]).equals_exact(shapely.Point(BERLIN), 1e-7)
    assert (first["heading"], first["heading_ref"]) == (np.float32(123.4), "true")
    assert (first["taken_at"], first["taken_at_local"]) == (MOMENT, LOCAL.replace(tzinfo=None))


def test_heic(sandbox: DecodeSandbox) -> None:
    data = (Path(__file__).parents[1] / "data/heif/STREET__29x100.heif").read_bytes()
    found = sandbox.decode(data, 10_000).taken
    assert found == taken_of(STREET.tobytes())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-06 05:08:09", MOMENT.replace(microsecond=0)),
        ("2024-05-06", None),
        ("2024-13-06 05:08:09", None),
    ],
)
def test_a_scene_that_says_when_it_was_taken(
    text: str, expected: datetime | None, sandbox: DecodeSandbox, tmp_path: Path
) -> None:
    path = write(tmp_path / "town.tif", town(300, 300))
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="IMAGERY", ACQUISITIONDATETIME=text)
        file.update_tags(TIFFTAG_DATETIME="2025:01:01 00:00:00")  # when it was written
    row = annotated(path, Tiling(256, 64), sandbox, "exact")
    assert (row["status"], row["taken_at"], row["location"]) == ("annotated", expected, None)
    row = annotated(path, Tiling(256, 64, location=False), sandbox, "exact")
    assert row["taken_at"] is None
