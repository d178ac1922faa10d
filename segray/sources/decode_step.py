"""FETCHED -> DECODED: encoded files become pixels, whole images or the tiles of scenes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segray.arrow_rows import byte_views
from segray.errors import ItemError
from segray.scenes.nodata import nodata_mask
from segray.scenes.scene import Scene, Tiling, scene_from
from segray.schema import DECODED, TAKEN
from segray.sources.byte_ranges import AHEAD, FileRanges, MemoryRanges
from segray.sources.decode import Decoded
from segray.sources.file_headers import is_for_gdal, may_be_scene
from segray.sources.quality import Quality, measure
from segray.sources.rows import TABLE_ROWS
from segray.sources.sandbox import ByteRanges, DecodeSandbox, Room
from segray.sources.taken import Taken
from segray.sources.volume import unpacked as unpacked_volume
from segray.storage import StorageSettings

TABLE_BYTES = 48 << 20
_NOT_SEEN, _UNKNOWN = Quality(None, None), Taken()
SPREAD = 16
"""The tiles of a large scene make at least this many tables, for as many model actors."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """One future row: of row `row` of the fetched table; an item, or a tile of one."""

    row: int
    outcome: Decoded | ItemError | None
    """None for a row without an image and a tile without data."""
    scene: Scene | None = None
    tile: int | None = None


@dataclass
class Decoder:
    """What decoding needs; `tables` is the step."""

    sandbox: DecodeSandbox
    max_pixels: int
    """Larger images are rejected; scenes are not, they are read by window."""
    tiling: Tiling = field(default_factory=Tiling)
    storage: StorageSettings = field(default_factory=StorageSettings)
    table_bytes: int = TABLE_BYTES
    table_rows: int = TABLE_ROWS

    def tables(self, fetched: pa.Table) -> Iterator[pa.Table]:
        """Yield tables of schema DECODED, in order: a row for each row of FETCHED, or one for each tile.

        Error and control rows pass through. A table is cut at `table_rows`, and before its pixels would
        exceed `table_bytes` (one image may, alone): images have the same size in every run, so the cuts
        are the same too.
        """
        building = _Building(fetched, self)
        for row, data in enumerate(byte_views(fetched["data"])):
            for piece in self._pieces(building, row, data):
                yield from building.add(piece)
        yield from building.rest()

    def _pieces(
        self, building: "_Building", row: int, data: npt.NDArray[np.uint8] | None
    ) -> Iterator[_Piece]:
        text = building.fetched["scene"][row].as_py()
        if text is not None:
            yield from self._tiles(building, row, _file_of(building.fetched, row, self.storage), text)
        elif data is None:
            yield _Piece(row, None)
        else:
            yield from self._of_bytes(building, row, data)

    def _tiles(self, building: "_Building", row: int, file: ByteRanges, text: str) -> Iterator[_Piece]:
        scene = scene_from(text)
        building.most_rows = min(self.table_rows, max(1, len(scene.grid) // SPREAD))
        tiles = building.fetched["tiles"][row].as_py()
        for place, tile in enumerate(tiles, start=1):
            yield self._tile(building, row, file, scene, tile, tiles[place : place + AHEAD])
        building.most_rows = self.table_rows

    def _tile(
        self,
        building: "_Building",
        row: int,
        file: ByteRanges,
        scene: Scene,
        tile: int,
        ahead: Sequence[int] = (),
    ) -> _Piece:
        try:
            return _Piece(row, self.sandbox.window(file, scene, tile, building.room, ahead), scene, tile)
        except ItemError as error:
            return _Piece(row, error, scene, tile)

    def _of_bytes(self, building: "_Building", row: int, data: npt.NDArray[np.uint8]) -> Iterator[_Piece]:
        try:
            if self.tiling.volumes:
                yield _Piece(row, self._volume(data, building.room))
                return
            file = MemoryRanges(building.fetched["image_id"][row].as_py(), data.data)
            if may_be_scene(data.data):
                scene = self.sandbox.describe(file, self.tiling)
                if scene is not None:
                    for tile in range(len(scene.grid)):
                        yield self._tile(building, row, file, scene, tile)
                    return
            picture = decode_image(self.sandbox, file, self.max_pixels, self.tiling, building.room)
        except ItemError as error:
            yield _Piece(row, error)
            return
        height, width, _ = picture.pixels.shape
        if height * width > self.tiling.picture_pixels:
            yield from self._cut(building, row, picture)
        else:
            yield _Piece(row, picture)

    def _volume(self, data: npt.NDArray[np.uint8], room: Room) -> Decoded:
        found = self.sandbox.volume(data.data, self.max_pixels, room)
        depth, height, width = unpacked_volume(found).place.shape
        return Decoded(found, depth, volume=(height, width))

    def _cut(self, building: "_Building", row: int, picture: Decoded) -> Iterator[_Piece]:
        """Cut a large image into its windows."""
        pixels = picture.pixels.copy()  # its memory is needed
        height, width, _ = pixels.shape
        scene = Scene(height, width, self.tiling.tile, self.tiling.overlap, told=picture.note)
        for tile, window in enumerate(scene.grid):
            part = pixels[window.row_start : window.row_stop, window.col_start : window.col_stop]
            place = building.room.file.place(building.room.used, part.size).reshape(part.shape)
            np.copyto(place, part)
            yield _Piece(row, Decoded(place, picture.frames, taken=picture.taken), scene, tile)


def decode_image(
    sandbox: DecodeSandbox, file: MemoryRanges, max_pixels: int, tiling: Tiling, room: Room | None = None
) -> Decoded:
    """Decode as `DecodeSandbox.decode`; a sound image that Pillow does not know is read by its bands."""
    try:
        return sandbox.decode(file.data, max_pixels, room)
    except ItemError as error:
        if not is_for_gdal(file.data, error):
            raise
    scene = sandbox.describe(file, replace(tiling, picture_pixels=0, resolution=None))
    assert scene is not None
    return sandbox.whole(file, scene, max_pixels, room)


def _file_of(fetched: pa.Table, row: int, storage: StorageSettings) -> FileRanges:
    uri, version, address, size = (
        fetched[name][row].as_py() for name in ("uri", "version", "address", "size")
    )
    return FileRanges(uri, version, address, size, storage)


class _Building:
    """The table that grows, and the shared memory of its pixels."""

    def __init__(self, fetched: pa.Table, decoder: Decoder) -> None:
        self.fetched, self._decoder = fetched, decoder
        self._pieces: list[_Piece] = []
        self.room = decoder.sandbox.room()
        self.most_rows = decoder.table_rows

    def add(self, piece: _Piece) -> Iterator[pa.Table]:
        """Add a piece whose pixels, if any, lie in `room` after its `used` bytes; yield a full table."""
        size = piece.outcome.pixels.nbytes if isinstance(piece.outcome, Decoded) else 0
        room = self.room
        if room.used and size and room.used + size > self._decoder.table_bytes:
            full = self._take()
            self.room = self._decoder.sandbox.room()
            assert isinstance(piece.outcome, Decoded)
            self.room.put(piece.outcome.pixels)
            yield full
            del full  # its memory is needed
        else:
            room.used += size
        self._pieces.append(piece)
        if len(self._pieces) >= self.most_rows:
            yield from self.rest()
            self.room = self._decoder.sandbox.room()

    def rest(self) -> Iterator[pa.Table]:
        """Yield the last table, if it has rows."""
        if self._pieces:
            yield self._take()

    def _take(self) -> pa.Table:
        pieces, self._pieces = self._pieces, []
        return _table(self.fetched, pieces, self.room)


def _table(fetched: pa.Table, pieces: list[_Piece], room: Room) -> pa.Table:
    """Return the rows of the pieces (schema DECODED), with pixels in place of the encoded bytes."""
    rows = [piece.row for piece in pieces]
    whole = all(after == before + 1 for before, after in pairwise(rows))
    part = fetched.slice(rows[0], len(rows)) if whole else fetched.drop(["data"]).take(pa.array(rows))
    found = [piece.outcome if isinstance(piece.outcome, Decoded) else None for piece in pieces]
    errors = [piece.outcome if isinstance(piece.outcome, ItemError) else None for piece in pieces]
    columns: dict[str, Any] = {name: part[name] for name in DECODED.names if name in part.schema.names}
    columns["height"] = [None if one is None else one.size[0] for one in found]
    columns["width"] = [None if one is None else one.size[1] for one in found]
    columns["frames"] = [None if one is None else one.frames for one in found]
    columns["pixels"] = _pixel_column(found, room)
    columns["note"] = [None if one is None else one.note for one in found]
    columns["nodata"] = [None if one is None else one.nodata for one in found]
    measured = [_NOT_SEEN if one is None else _measured(one) for one in found]
    columns |= {name: [getattr(each, name) for each in measured] for name in ("brightness", "sharpness")}
    columns |= _taken_columns([None if one is None else one.taken for one in found])
    columns["scene"] = [None if piece.scene is None else piece.scene.to_json() for piece in pieces]
    columns["tile"] = [piece.tile for piece in pieces]
    for name, attribute in (("error_type", "error_type"), ("error", "reason")):
        known = part[name].to_pylist()
        columns[name] = [
            old if new is None else getattr(new, attribute) for old, new in zip(known, errors, strict=True)
        ]
    return pa.table(
        [
            pa.array(columns[f.name], f.type) if isinstance(columns[f.name], list) else columns[f.name]
            for f in DECODED
        ],
        schema=DECODED,
    )


def _measured(one: Decoded) -> Quality:
    if one.volume is not None:
        return _NOT_SEEN
    nodata = None if one.nodata is None else nodata_mask(one.nodata, *one.pixels.shape[:2])
    return measure(one.pixels, nodata)


def _taken_columns(taken: list[Taken | None]) -> dict[str, Any]:
    """Return the columns TAKEN."""
    known = [one or _UNKNOWN for one in taken]
    names = [field.name for field in TAKEN if field.name != "location"]
    columns = {name: [getattr(one, name) for one in known] for name in names}
    return {"location": [one.wkb for one in known], **columns}


def _pixel_column(found: list[Decoded | None], room: Room) -> pa.LargeBinaryArray:
    """Return the room's pixels as a column, without a copy."""
    sizes = [0 if one is None else one.pixels.nbytes for one in found]
    offsets = np.cumsum([0, *sizes], dtype=np.int64)
    valid = pa.array([one is not None for one in found]).buffers()[1]
    buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(room.pixels())]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(found), buffers)
