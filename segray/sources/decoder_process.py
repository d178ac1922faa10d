"""The child of `DecodeSandbox`: decodes one file after another and may die doing so.

Started as `python -m segray.sources.decoder_process CONNECTION INPUT OUTPUT...` (inherited descriptors).
A request is a JSON message; the encoded bytes lie in INPUT, the pixels are left in the OUTPUT it names: files
in memory that the parent maps too. The end of the connection ends the process.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from segray.errors import ItemError
from segray.sources.decode import Decoded, Place, decode_rgb
from segray.sources.shared import SharedFile

Decoder = Callable[[bytes, int, Place], Decoded]
"""Bytes, most pixels, and where the pixels go."""

READY = b"ready"
BASE_BYTES = 256 << 20
"""Address space that a decoder may take besides what grows with the picture."""
BYTES_PER_PIXEL = 32
"""Measured at 16 megapixels, Pillow's copies and ours included: 14 for JPEG, PNG and TIFF, 23 for WebP, 28
for the hungriest, lossless JPEG 2000 with alpha."""


def serve(decode: Decoder) -> None:
    """Answer requests with `decode` until the parent is gone."""
    connection, source = Connection(int(sys.argv[1])), SharedFile(int(sys.argv[2]))
    targets = [SharedFile(int(descriptor)) for descriptor in sys.argv[3:]]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.nice(4)  # the model comes first: where one of its threads waits for a core, all of them wait
    _volunteer_for_oom_killer()
    resource.setrlimit(
        resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1])
    )  # no core files
    own_bytes = _address_space()
    connection.send_bytes(READY)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and libpng complain there; ends the parent's pipe
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        # should the parent be killed while a file hangs us, the alarm's default action ends this process
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + 5)
        shared = sum(file.mapped for file in (source, *targets))
        growing = 4 * request["size"] + BYTES_PER_PIXEL * request["max_pixels"]
        _limit_memory(own_bytes + BASE_BYTES + shared + growing)
        answer = _answer(decode, request, source, targets[request["target"]])
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(json.dumps(answer).encode())


def _answer(
    decode: Decoder, request: dict[str, int], source: SharedFile, target: SharedFile
) -> dict[str, int | str]:
    try:
        data = source.place(0, request["size"]).tobytes()
        decoded = decode(data, request["max_pixels"], lambda size: target.place(request["offset"], size))
    except ItemError as error:
        return {"error_type": error.error_type, "reason": error.reason}
    except MemoryError:
        return {"error_type": "memory", "reason": "decoding it needs more memory than a decoder may have"}
    except Exception as error:  # noqa: BLE001 - a fault of ours must not look like a crash without a name
        return {"error_type": "crashed", "reason": f"the decoder failed: {type(error).__name__}: {error}"}
    height, width, _ = decoded.pixels.shape
    return {"height": height, "width": width, "frames": decoded.frames}


def _volunteer_for_oom_killer() -> None:
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/oom_score_adj").write_text("1000")


def _address_space() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 30


def _limit_memory(size: int) -> None:
    """Bound the address space; the limit can be raised again because only the soft one is set."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
    with contextlib.suppress(ValueError, OSError):  # systems without this limit
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    serve(decode_rgb)
