"""Coordinate reference systems, by PROJ: always x east before y north, also where the CRS has y first."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.enums import TransformDirection
from pyproj.exceptions import CRSError, ProjError

from segray.schema import CRS84

Floats = NDArray[np.float64]


def can_place(crs: str, target: str = CRS84) -> str | None:
    """Return why coordinates in this CRS cannot be transformed to the target CRS; None if they can."""
    try:
        transformer(crs, target)
    except ProjError as error:
        return str(error).partition(" You may override")[0].rpartition("proj_create_operations: ")[2]
    return None


def through(
    way: Transformer, points: Floats, direction: TransformDirection = TransformDirection.FORWARD
) -> Floats:
    """Transform points, float64 (n, 2) of x, y, to (n, 2); not finite where PROJ cannot transform them."""
    return np.stack(way.transform(points[:, 0], points[:, 1], direction=direction), axis=1)


@lru_cache(maxsize=64)
def transformer(crs: str, target: str) -> Transformer:
    """Return a transformer between two CRSs. Raises ProjError, with the reason, if there is none."""
    return Transformer.from_crs(map_of(crs), map_of(target), always_xy=True)


@lru_cache(maxsize=64)
def to_ground(crs: str) -> Transformer:
    """Return a transformer to longitude and latitude in degrees on the CRS's own ellipsoid.

    Raises ProjError for a CRS without one.
    """
    own = map_of(crs)
    return Transformer.from_crs(own, own.geodetic_crs, always_xy=True)


def half_turn(target: str) -> float | None:
    """Return 180 degrees in the units of a geographic CRS; None for a projected one."""
    crs = map_of(target)
    return math.pi / crs.axis_info[0].unit_conversion_factor if crs.is_geographic else None


@lru_cache(maxsize=64)
def map_of(text: str) -> CRS:
    """Return the horizontal CRS of a text. Raises CRSError (a ProjError) unless geographic or projected."""
    crs = CRS.from_user_input(text).to_2d()
    if not (crs.is_geographic or crs.is_projected):
        raise CRSError(f"{crs.name}: {crs.type_name}, neither geographic nor projected")
    return crs
