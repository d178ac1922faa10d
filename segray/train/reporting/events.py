"""The lines of metrics.jsonl for TensorBoard: one event file, a function of the history alone.

An event file is a series of TFRecords (length, its checksum, bytes, their checksum), each with one `Event`:
https://github.com/tensorflow/tensorboard/tree/master/tensorboard/compat/proto (event.proto, summary.proto)
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
These are six fields in three messages, encoded here: tensorboardX would bring its own copy of all of
TensorBoard's messages and import boto3 and google-cloud-storage with them (4 s).
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec

from segray.atomic import put_atomically

EVENTS = "events.out.tfevents.segray"
"""Always the same name: a resumed run replaces its file, so that each epoch occurs once."""
SCORES = {
    "miou": "mIoU", "dice": "Dice", "pixel_accuracy": "pixel accuracy", "ap": "AP", "ap50": "AP50",
    "ap75": "AP75", "ap_small": "AP small", "ap_medium": "AP medium", "ap_large": "AP large",
}  # fmt: skip
"""Scores of the validation items by their keys in a line, and their printed names."""
_TAGS = {"train_loss": "train/loss", "val_loss": "val/loss"} | {key: f"val/{key}" for key in SCORES}
_NO_SCALARS = frozenset({"epoch", "step", "time"})
_FILE_VERSION = b"brain.Event:2"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types, https://protobuf.dev/programming-guides/encoding"""


def write_events(
    filesystem: fsspec.AbstractFileSystem,
    folder: str,
    history: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
) -> None:
    """Write the whole history into the event file of a folder (OUTPUT/tensorboard).

    A local file is overwritten in place, not renamed: a running TensorBoard keeps it open and continues
    reading at its position. Each epoch only adds at the end; after a kill, bytes change at most from the
    epoch at which the run resumed. A kill during the write leaves at worst a truncated last record, for which
    readers wait, and which the next epoch repairs.
    """
    data = event_file(history, classes)
    if "file" in filesystem.protocol:
        _write_over(Path(folder, EVENTS), data)
    else:
        put_atomically(filesystem, f"{folder}/{EVENTS}", data)


def event_file(history: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> bytes:
    """Return one event per line of metrics.jsonl, at its `step` (of the optimiser).

    `time`, if a line has it, is when it was written: seconds since 1970. Scalars are those of `scalars`.
    """
    times = [float(line.get("time", 0.0)) for line in history]
    events = [_event(times[0] if times else 0.0, 0, _field(3, _BYTES, _FILE_VERSION))]
    for line, time in zip(history, times, strict=True):
        values = b"".join(
            _field(1, _BYTES, _field(1, _BYTES, tag.encode()) + _field(2, _FIXED32, struct.pack("<f", value)))
            for tag, value in scalars(line, classes)
        )
        events.append(_event(time, line["step"], _field(5, _BYTES, values)))
    return b"".join(map(_record, events))


def scalars(line: Mapping[str, Any], classes: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield tag and value of each number in a line of metrics.jsonl; None is skipped.

    `train/loss`, `val/loss`, scores such as `val/miou`, `val/iou/CLASS` of a list with a value per class; any
    other number by its key: `lr`, `images_per_s`.
    """
    for key, value in line.items():
        if isinstance(value, list):
            for name, each in zip(classes, value, strict=True):
                if each is not None:
                    yield f"val/{key}/{name}", each
        elif isinstance(value, int | float) and key not in _NO_SCALARS:
            yield _TAGS.get(key, key), value


def _write_over(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def _event(time: float, step: int, content: bytes) -> bytes:
    return _field(1, _FIXED64, struct.pack("<d", time)) + _field(2, _VARINT, _varint(step)) + content


def _field(number: int, wire_type: int, content: bytes) -> bytes:
    length = _varint(len(content)) if wire_type == _BYTES else b""
    return _varint(number << 3 | wire_type) + length + content


def _varint(value: int) -> bytes:
    """Encode seven bits per byte, the lowest first; the eighth says that another follows."""
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    """Return the CRC-32C (RFC 3720, appendix B.4), masked as TFRecords mask it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC_OF_BYTE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reflected
    return byte


_CRC_OF_BYTE = tuple(map(_crc_of_byte, range(256)))
