"""Coordinate reference systems, through PROJ: x east before y north, whatever the system's own order."""

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
    """Why nothing of a scene in this CRS can be placed in the target CRS; None if it can."""
    try:
        transformer(crs, target)
    except ProjError as error:
        return str(error).partition(" You may override")[0].rpartition("proj_create_operations: ")[2]
    return None


def through(
    way: Transformer, points: Floats, direction: TransformDirection = TransformDirection.FORWARD
) -> Floats:
    """(n, 2) -> (n, 2), not finite where PROJ has no answer."""
    return np.stack(way.transform(points[:, 0], points[:, 1], direction=direction), axis=1)


@lru_cache(maxsize=64)
def transformer(crs: str, target: str) -> Transformer:
    """Raises ProjError, with the reason, if there is no way from one to the other."""
    return Transformer.from_crs(map_of(crs), map_of(target), always_xy=True)


@lru_cache(maxsize=64)
def to_ground(crs: str) -> Transformer:
    """To longitude and latitude in degrees on the scene's own ellipsoid."""
    own = map_of(crs)
    return Transformer.from_crs(own, own.geodetic_crs, always_xy=True)


def half_turn(target: str) -> float | None:
    """180 degrees in the units of a geographic CRS; None for a projected one."""
    crs = map_of(target)
    return math.pi / crs.axis_info[0].unit_conversion_factor if crs.is_geographic else None


@lru_cache(maxsize=64)
def map_of(text: str) -> CRS:
    """The CRS without its height. Raises CRSError (a ProjError) if it is none, or none of a map."""
    crs = CRS.from_user_input(text).to_2d()
    if not (crs.is_geographic or crs.is_projected):
        raise CRSError(f"{crs.name}: {crs.type_name}, neither geographic nor projected")
    return crs
