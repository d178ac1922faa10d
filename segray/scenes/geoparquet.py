"""GeoParquet metadata of a file of instances, and the spatial order of its rows."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segray.scenes.crs import Floats, map_of
from segray.schema import CRS84


def geoparquet_metadata(crs: str, geometry_types: Sequence[str]) -> bytes:
    """Return the `geo` value of a Parquet file's metadata (GeoParquet 1.1): WKB in `crs` with a covering box.

    `geometry_types` are those that occur ("Polygon", "MultiPolygon"), empty if unknown. OGC:CRS84 is the
    default and omitted.
    """
    covering = {side: ["geometry_bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}
    column = {
        "encoding": "WKB",
        "geometry_types": sorted(set(geometry_types)),
        "edges": "planar",
        "orientation": "counterclockwise",
        "covering": {"bbox": covering},
    }
    if crs != CRS84:
        column["crs"] = map_of(crs).to_json_dict()
    table = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return json.dumps(table).encode()


def hilbert_order(bbox: Floats) -> NDArray[np.int64]:
    """Return row indices (m,) in the order of a Hilbert curve over the centres of boxes, float64 (m, 4).

    The curve has 2**16 x 2**16 cells. Rows without coordinates (NaN) come last; rows of one cell keep their
    order. The distance along the curve is `xy2d` of https://en.wikipedia.org/wiki/Hilbert_curve, vectorised.
    """
    centres = (bbox[:, :2] + bbox[:, 2:]) / 2
    somewhere = np.isfinite(centres).all(axis=1)
    low = centres[somewhere].min(axis=0, initial=np.inf)
    extent = centres[somewhere].max(axis=0, initial=-np.inf) - low
    cells = (centres[somewhere] - low) / np.where(extent > 0, extent, 1) * (2**16 - 1)
    distance = np.full(len(bbox), 2**32)
    distance[somewhere] = _hilbert(*cells.astype(np.int64).T)
    return np.argsort(distance, kind="stable")


def _hilbert(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the distance along the curve of cells 0..2**16 - 1: one quadrant a bit, rotated as the curve."""
    distance = np.zeros_like(x)
    for bit in reversed(range(16)):
        right, up = x >> bit & 1, y >> bit & 1
        distance += (3 * right ^ up) << 2 * bit
        flip = (up == 0) & (right == 1)
        x, y = np.where(flip, 2**16 - 1 - x, x), np.where(flip, 2**16 - 1 - y, y)
        x, y = np.where(up == 0, y, x), np.where(up == 0, x, y)
    return distance
