"""Arrow schemas of the tables in `annotate`, declared once; a stage returns a table built with its schema.

    listing -> FETCHED (encoded bytes) -> DECODED (pixels) -> ANNOTATED (nested) -> INSTANCES, IMAGES, TILES

One row is one item from FETCHED to ANNOTATED, or one tile of an item that is processed in tiles; when all
tiles of an item have results, they are merged into one row. Only the output files have one row an instance.
Boxes are (x, y, width, height) in pixels of the whole upright image, x right and y down, half-open.
"""

import json
from collections.abc import Sequence

import pyarrow as pa

RLE = pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())])
"""COCO compressed run lengths of the whole image; size is [height, width]."""

CRS84 = "OGC:CRS84"
"""Longitude and latitude in degrees, WGS 84: GeoParquet's default."""

BOX = pa.list_(pa.float32(), 4)

GEOMETRY_BBOX = pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])

_IDENTITY = [
    pa.field("image_id", pa.string()),  # 32 hex digits: sha256 over canonical URL, member, version
    pa.field("uri", pa.string()),  # canonical: no credentials, no query string
    pa.field("member", pa.string()),  # name inside the archive; null outside archives
    pa.field("member_index", pa.int64()),  # position among all members of the archive; null outside
    pa.field("version", pa.string()),  # ETag; locally size and mtime in ns; an archive's own for members
]
_ERROR = [pa.field("error_type", pa.string()), pa.field("error", pa.string())]

ARCHIVE_END = pa.struct([("items", pa.int64()), ("ignored", pa.int64()), ("broken", pa.bool_())])
"""Set on the one control row (null image_id) that follows an archive's last member: the number of items it
contains (including those skipped because they were done before), the number of ignored members, and whether
it is truncated: then one of its items is the rejected row of the archive itself, with a null
`member_index`."""

_SCENE = pa.field(
    "scene", pa.string()
)  # JSON (`scenes.scene.Scene`) of an item that is processed in tiles, else null

FETCHED = pa.schema(
    [
        *_IDENTITY,
        pa.field("data", pa.large_binary()),
        *_ERROR,
        pa.field("end", ARCHIVE_END),
        _SCENE,
        pa.field("tiles", pa.list_(pa.int32())),  # indices of the tiles that this row stands for
        pa.field("address", pa.string()),  # URL or path to open its file; never written to an output
        pa.field("size", pa.int64()),  # bytes of its file
    ]
)
"""Encoded files. `data` is null where `error_type` is set, and for a scene that is read by window later: one
row stands for some tiles of it; `scene`, `tiles`, `address` and `size` are null in all other rows."""

_PICTURE = [
    pa.field("height", pa.int32()),  # after EXIF rotation; null when unknown
    pa.field("width", pa.int32()),
    pa.field("frames", pa.int32()),  # frames or pages in the file; the first is annotated
]

TILE = pa.field("tile", pa.int32())  # index in the grid of `scene`; null where the row is a whole item

NOTE = pa.field("note", pa.string())  # message to print for this row

QUALITY = [
    pa.field("brightness", pa.float32()),  # mean grey, 0..255; see `sources.quality`; null when unknown
    pa.field("sharpness", pa.float32()),  # variance of the Laplacian
]

TAKEN = [  # see `sources.taken`; null when unknown, and with `--no-location`
    pa.field("location", pa.binary()),  # WKB point, OGC:CRS84: where the camera stood; null for scenes
    pa.field("heading", pa.float32()),  # degrees from north, clockwise, in [0, 360)
    pa.field("heading_ref", pa.string()),  # true | magnetic
    pa.field("taken_at", pa.timestamp("us", "UTC")),
    pa.field("taken_at_local", pa.timestamp("us")),  # what the camera's clock showed
]

BLURRED = pa.field("blurred", pa.int32())  # regions hidden in its copy; null without `predict --blur`

DECODED = pa.schema(
    [
        *_IDENTITY,
        *_PICTURE,
        pa.field("pixels", pa.large_binary()),
        pa.field("nodata", pa.binary()),  # see `scenes.nodata`; null where every pixel holds data
        NOTE,
        *QUALITY,
        *TAKEN,
        *_ERROR,
        pa.field("end", ARCHIVE_END),
        _SCENE,
        TILE,
    ]
)
"""`pixels` are height * width * 3 bytes, uint8 RGB in row-major order; null where `error_type` is set, and
for a tile without data. Height and width are the tile's own. Of a volume they are place and voxels
(`sources.volume.packed`), and `frames` is its depth."""

_INSTANCE = [
    pa.field("instance_id", pa.string()),
    pa.field("category_id", pa.int32()),
    pa.field("category", pa.dictionary(pa.int32(), pa.string())),
    pa.field("score", pa.float32()),
    pa.field("bbox", BOX),  # = pycocotools toBbox(segmentation)
    pa.field("box", BOX),  # the detector's own
    pa.field("area", pa.int64()),  # mask pixels
    pa.field("segmentation", RLE),
    pa.field("iscrowd", pa.int8()),
    pa.field("truncated", pa.bool_()),  # the mask touches the image's border
    pa.field("geometry", pa.binary()),  # WKB along pixel edges; null without georeference
    pa.field("geometry_bbox", GEOMETRY_BBOX),
    pa.field("area_m2", pa.float64()),
]

_OUTCOME = [
    pa.field("status", pa.string()),  # annotated | rejected
    pa.field("instances", pa.int32()),
    *_ERROR,
    pa.field("crs", pa.string()),
]

IMAGES = pa.schema(
    [
        *_IDENTITY,
        *_PICTURE,
        *_OUTCOME,
        pa.field("empty_masks", pa.int32()),  # detections dropped because no mask pixel was left
        pa.field("vanished", pa.bool_()),  # no longer in the listing of the newest run
        _SCENE,
        pa.field("tiles", pa.int32()),  # how many; null for items that were not tiled
        pa.field("tiles_rejected", pa.int32()),
        pa.field("tiles_skipped", pa.int32()),  # without any data
        NOTE,
        *QUALITY,
        *TAKEN,
        BLURRED,
    ]
)
"""The ledger: one row an item, annotated and rejected alike; then the columns of `--keep-columns`.

`brightness` and `sharpness` are null in rejected rows and in those that an older version wrote; for a tiled
item they are the means over its windows with data, weighted by the number of pixels in each.
"""

_TILE_ROW = [
    pa.field("tile_row", pa.int32()),
    pa.field("tile_col", pa.int32()),
    *(pa.field(name, pa.int32()) for name in ("row_start", "row_stop", "col_start", "col_stop")),  # half-open
    pa.field("status", pa.string()),  # annotated | rejected | skipped
    *_ERROR,
]

TILES = pa.schema([pa.field("image_id", pa.string()), *_TILE_ROW])
"""One row a tile, for items that were tiled; windows in pixels of the item."""

INSTANCES = pa.schema([pa.field("image_id", pa.string()), *_INSTANCE])
"""One row an instance, within a file sorted by `image_id`, then `instance_id`; where some are georeferenced,
along a Hilbert curve."""

# Nested, the category is a plain string: dictionaries inside lists of structs do not concatenate in Arrow.
NESTED_INSTANCE = pa.struct(
    [field.with_type(pa.string()) if field.name == "category" else field for field in _INSTANCE]
)

ANNOTATED = pa.schema(
    [
        *IMAGES,
        pa.field("found", pa.list_(NESTED_INSTANCE)),  # empty for rejected rows
        pa.field("end", ARCHIVE_END),
        TILE,
        pa.field("tile_rows", pa.list_(pa.struct(_TILE_ROW))),  # of an item that was merged from its tiles
    ]
)
"""What the model step returns, one row an item: the ledger row with its instances inside. One row a tile
where `tile` is set: then sizes, boxes and masks are the tile's, and `status` may be `skipped`."""


def with_kept(declared: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """Return IMAGES or ANNOTATED with string columns of a manifest appended."""
    return pa.schema([*declared, *(pa.field(name, pa.string()) for name in names)])


def completed(table: pa.Table, declared: pa.Schema) -> pa.Table:
    """Return a table that an older version wrote in the declared schema; columns it lacks are null."""
    later = [*QUALITY, *TAKEN, BLURRED]
    columns = [
        pa.nulls(table.num_rows, field.type)
        if field in later and field.name not in table.column_names
        else table[field.name].cast(field.type)
        for field in declared
    ]
    return pa.table(columns, schema=declared)


def geoparquet_of_images() -> bytes:
    """Return the `geo` value (GeoParquet 1.1) of files of the ledger."""
    column = {"encoding": "WKB", "geometry_types": ["Point"]}
    return json.dumps(
        {"version": "1.1.0", "primary_column": "location", "columns": {"location": column}}
    ).encode()


def geoparquet_metadata() -> bytes:
    """Return the `geo` value (GeoParquet 1.1) of files in which every geometry is null."""
    covering = {side: ["geometry_bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}
    column = {"encoding": "WKB", "geometry_types": [], "covering": {"bbox": covering}}
    return json.dumps(
        {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    ).encode()
