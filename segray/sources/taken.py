"""Where and when an image was taken, by its EXIF (CIPA DC-008, 4.6.5 and 4.6.6).

What the block does not say, or says in a way that cannot be right, is None; nothing is guessed:

    location   degrees, minutes and seconds with their hemispheres. None for a datum other than WGS 84 or one
               within two metres of it, for a fix that is marked void, and for exactly 0, 0, which receivers
               without a fix write
    heading    GPSImgDirection, of the camera's axis, clockwise from north; heading_ref says from which: a
               magnetic heading is not converted, since that needs a model of the field
    taken_at   UTC: DateTimeOriginal with OffsetTimeOriginal, else the receiver's own date and time, unless it
               is more than `_ZONES` from DateTimeOriginal (a fix of another day). Without either it is None:
               the clock's zone is not known
    taken_at_local   DateTimeOriginal as the camera's clock showed it, with or without a zone
"""

import math
import re
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from segray.sources.exif import Tags, Value, read_exif

_TAKEN, _OFFSET, _FRACTION = 0x9003, 0x9011, 0x9291
_LATITUDE, _LONGITUDE = (1, 2), (3, 4)
"""GPS tags of the hemisphere and the angle."""
_TIME, _STATUS, _HEADING_REF, _HEADING, _DATUM, _DATE = 7, 9, 16, 17, 18, 29
_EXIF_TAGS = (_TAKEN, _OFFSET, _FRACTION)
_GPS_TAGS = (*_LATITUDE, *_LONGITUDE, _TIME, _STATUS, _HEADING_REF, _HEADING, _DATUM, _DATE)

_WGS84 = frozenset({"", "WGS84", "WGS1984", "JGD2000", "JGD2011", "GDA94", "GDA2020", "NAD83", "ETRS89"})
"""Datums that are WGS 84 within about two metres; letters and digits alone. Tokyo is 400 m off."""
_REFERENCES = {"T": "true", "M": "magnetic"}
_CLOCK = re.compile(r"(\d{4})[:/-](\d\d)[:/-](\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.\d*)?")
_DAY = re.compile(r"(\d{4})[:/-](\d\d)[:/-](\d\d)")
_ZONE = re.compile(r"([+-])(\d\d):?([0-5]\d)")
_ZONES = timedelta(hours=15)
"""Local time is from UTC-12 to UTC+14; an hour more for slow clocks and fixes."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Taken:
    """Where and when an image was taken; None where unknown."""

    location: tuple[float, float] | None = None
    """Longitude and latitude in degrees, WGS 84."""
    heading: float | None = None
    """Degrees from north, clockwise, 0 <= heading < 360."""
    heading_ref: str | None = None
    """`true` or `magnetic`."""
    taken_at: int | None = None
    """Microseconds since 1970, UTC."""
    taken_at_local: int | None = None
    """Microseconds from 1970-01-01 00:00 to what the clock showed."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Taken":
        """Return what `dataclasses.asdict` made and JSON carried."""
        return cls(**values | {"location": values["location"] and tuple(values["location"])})

    @property
    def wkb(self) -> bytes | None:
        """The location as a point in well-known binary (OGC 06-103r4, 8.2)."""
        return None if self.location is None else struct.pack("<BIdd", 1, 1, *self.location)


def taken_of(block: Any) -> Taken | None:
    """Return what an EXIF block says; None where it says nothing of these. Raises nothing."""
    if not isinstance(block, bytes):
        return None
    exif, gps = read_exif(block, _EXIF_TAGS, _GPS_TAGS)
    if not exif and not gps:
        return None
    heading, reference = _heading(gps)
    clock = _clock(exif)
    moment = _moment(clock, exif, gps)
    times = [None if each is None else _microseconds(each) for each in (moment, clock)]
    found = Taken(_location(gps), heading, reference, *times)
    return None if found == Taken() else found


def _location(gps: Tags) -> tuple[float, float] | None:
    datum = re.sub(r"[^A-Z0-9]", "", str(gps.get(_DATUM, "")).upper())
    longitude = _angle(gps, _LONGITUDE, "EW", 180)
    latitude = _angle(gps, _LATITUDE, "NS", 90)
    if longitude is None or latitude is None or gps.get(_STATUS) == "V" or datum not in _WGS84:
        return None
    return None if longitude == latitude == 0 else (longitude, latitude)


def _angle(gps: Tags, tags: tuple[int, int], hemispheres: str, most: float) -> float | None:
    """Return an angle in degrees, negative in the second hemisphere."""
    hemisphere, parts = (gps.get(tag) for tag in tags)
    if not isinstance(parts, tuple) or not isinstance(hemisphere, str) or not 0 < len(parts) <= 3:
        return None
    if len(hemisphere) != 1 or hemisphere.upper() not in hemispheres:
        return None
    degrees, *smaller = parts
    if not degrees >= 0 or not all(0 <= part <= 60 for part in smaller):  # NaN is neither
        return None
    angle = degrees + sum(part / (60.0, 3600.0)[place] for place, part in enumerate(smaller))
    if angle > most:
        return None
    return -angle if hemisphere.upper() == hemispheres[1] else angle


def _heading(gps: Tags) -> tuple[float | None, str | None]:
    angle = _first(gps.get(_HEADING))
    if angle is None or not 0 <= angle <= 360:
        return None, None
    return angle % 360, _REFERENCES.get(str(gps.get(_HEADING_REF)).upper())


def _first(value: Value | None) -> float | None:
    return value[0] if isinstance(value, tuple) and len(value) == 1 else None


def _clock(exif: Tags) -> datetime | None:
    """Return DateTimeOriginal, as if it were UTC."""
    found = _CLOCK.fullmatch(str(exif.get(_TAKEN, "")))
    if found is None:
        return None
    fraction = re.match(r"\d{1,6}", str(exif.get(_FRACTION, "")), re.ASCII)
    try:
        moment = datetime.fromisoformat("{}-{}-{}T{}:{}:{}Z".format(*found.groups()))
    except ValueError:  # such as the 31st of February, or all zeros
        return None
    return moment.replace(microsecond=int(fraction[0].ljust(6, "0"))) if fraction else moment


def _moment(clock: datetime | None, exif: Tags, gps: Tags) -> datetime | None:
    """Return the moment in UTC."""
    offset = _ZONE.fullmatch(str(exif.get(_OFFSET, "")))
    try:
        if clock is not None and offset is not None:
            sign, hours, minutes = offset.groups()
            ahead = timedelta(hours=int(hours), minutes=int(minutes))
            if ahead < _ZONES:
                return clock + ahead if sign == "-" else clock - ahead
        fix = _fix(gps)
        return fix if fix is None or clock is None or abs(clock - fix) <= _ZONES else None
    except (ValueError, OverflowError):
        return None


def _fix(gps: Tags) -> datetime | None:
    """Return the receiver's date and time, UTC. Raises ValueError, OverflowError for impossible ones."""
    day, time = _DAY.fullmatch(str(gps.get(_DATE, ""))), gps.get(_TIME)
    if day is None or not isinstance(time, tuple) or len(time) != 3 or not all(map(math.isfinite, time)):
        return None
    hours, minutes, seconds = time
    if not (0 <= hours < 24 and 0 <= minutes < 60 and 0 <= seconds < 61):
        return None
    midnight = datetime.fromisoformat("{}-{}-{}T00:00:00Z".format(*day.groups()))
    return midnight + timedelta(hours=hours, minutes=minutes, seconds=seconds)


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def utc_of(text: object) -> int | None:
    """Return an ISO 8601 date and time with its zone in microseconds since 1970, UTC; None for others."""
    try:
        moment = datetime.fromisoformat(str(text))
        return None if moment.tzinfo is None else _microseconds(moment.astimezone(UTC))
    except (ValueError, OverflowError):
        return None
