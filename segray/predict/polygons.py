"""Regions of one class on the map, as GeoParquet: a row per region connected along pixel edges."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import rasterio.features
import shapely
from shapely.geometry import shape

from segray.output.folder import Output
from segray.palette import VOID
from segray.predict.cleanup import BACKGROUND
from segray.scenes.geoparquet import geoparquet_metadata, hilbert_order
from segray.scenes.georeference import Place, placed
from segray.scenes.scene import Scene
from segray.schema import GEOMETRY_BBOX

POLYGONS = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("category_id", pa.int32()),  # the byte of the label map
        pa.field("category", pa.string()),
        pa.field("area", pa.int64()),  # pixels
        pa.field("geometry", pa.binary()),
        pa.field("geometry_bbox", GEOMETRY_BBOX),
        pa.field("area_m2", pa.float64()),
    ]
)


def write_polygons(
    labels: Path, store: Output, image_id: str, scene: Scene, names: tuple[str, ...], crs: str
) -> None:
    """Write polygons/<image_id>.parquet of a label map, unless the scene is not georeferenced.

    Pixels are connected along their edges, not over corners. All regions of one scene are in memory at once.
    """
    if scene.crs is None or scene.transform is None:
        return
    wanted = [number for number, name in enumerate(names) if name != BACKGROUND]
    with rasterio.open(labels) as file:
        a, b, c, d, e, f = tuple(~file.transform)[:6]
        regions = [  # in the scene's CRS, whatever transform is given, as always for a band of a file
            (shape(outline), int(value))
            for outline, value in rasterio.features.shapes(rasterio.band(file, 1), connectivity=4)
            if int(value) in wanted and int(value) != VOID
        ]
    outlines = shapely.transform(
        np.array([outline for outline, _ in regions], object),
        lambda x, y: (np.rint(a * x + b * y + c), np.rint(d * x + e * y + f)),
        interleaved=False,
    )
    # rings of GDAL's touch themselves where a region closes around a hole over a corner
    outlines = shapely.make_valid(outlines)
    number = np.array([value for _, value in regions], np.int32)
    geometry, box, square_metres = placed(outlines, Place(scene.transform, scene.crs, crs))
    order = hilbert_order(box)
    corners = [pa.array(box[order, side], pa.float64()) for side in range(4)]
    hidden = np.isnan(box[order]).any(1)
    table = pa.table(
        [
            pa.array([image_id] * len(order), pa.string()),
            pa.array(number[order]),
            pa.array([names[value] for value in number[order]], pa.string()),
            pa.array(np.rint(shapely.area(outlines[order])).astype(np.int64)),
            pa.array([geometry[place] for place in order], pa.binary()),
            pa.StructArray.from_arrays(corners, fields=list(GEOMETRY_BBOX), mask=pa.array(hidden)),
            pa.array(square_metres[order], pa.float64(), mask=np.isnan(square_metres[order])),
        ],
        schema=POLYGONS,
    )
    shapes = shapely.from_wkb(table["geometry"].drop_null().to_pylist())
    geo = geoparquet_metadata(crs, sorted({each.geom_type for each in shapes}))
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({b"geo": geo}), sink, compression="zstd")
    store.put(f"polygons/{image_id}.parquet", sink.getvalue().to_pybytes())
