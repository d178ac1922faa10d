"""EXIF blocks of photos that never were, written by Pillow."""

from typing import Any

from PIL import Image
from PIL.TiffImagePlugin import IFDRational

EXIF, GPS = 0x8769, 0x8825
BERLIN = (13.4, 52.5)
"""Longitude, latitude."""


def degrees(value: float) -> tuple[IFDRational, ...]:
    """An angle as degrees, minutes and seconds."""
    whole = abs(value)
    minutes = (whole % 1) * 60
    return (
        IFDRational(int(whole)),
        IFDRational(int(minutes)),
        IFDRational(round((minutes % 1) * 60 * 10_000), 10_000),
    )


def gps_at(longitude: float, latitude: float, **more: Any) -> dict[int, Any]:
    """GPS tags of a place; more: `t17=…` sets tag 17."""
    return {
        1: "N" if latitude >= 0 else "S",
        2: degrees(latitude),
        3: "E" if longitude >= 0 else "W",
        4: degrees(longitude),
        **{int(name[1:]): value for name, value in more.items()},
    }


def photo_exif(gps: dict[int, Any] | None = None, exif: dict[int, Any] | None = None) -> Image.Exif:
    """An EXIF block; None: no such directory."""
    block = Image.Exif()
    block[0x0110] = "Camera"
    for pointer, tags in ((EXIF, exif), (GPS, gps)):
        if tags is not None:
            block.get_ifd(pointer).update(tags)
    return block


STREET = photo_exif(
    gps_at(*BERLIN, t16="T", t17=IFDRational(1234, 10), t29="2024:05:06", t7=(5, 8, 9)),
    {0x9003: "2024:05:06 07:08:09", 0x9011: "+02:00", 0x9291: "25"},
)
"""A photo of which everything is known; 05:08:09.25 UTC."""
