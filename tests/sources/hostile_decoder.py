"""A decoder that does what its input says; the sandbox's tests run it in place of the real one."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from segray.sources import decoder_process
from segray.sources.decode import Decoded, Place, decode_rgb
from segray.sources.decoder_process import serve
from segray.sources.label_image import Stored, read_stored

_HOARD: list[bytearray] = []


def obey(data: bytes, max_pixels: int, place: Place, *, location: bool) -> Decoded:
    """`<order> <argument>` in `data`; anything else is decoded as usual."""
    order, _, argument = data.partition(b" ")
    if order == b"die":
        os.kill(os.getpid(), int(argument))
    if order == b"die-once" and not (mark := Path(argument.decode())).exists():
        mark.touch()
        os.abort()
    if order == b"exit":
        os._exit(int(argument))
    if order == b"hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        time.sleep(3600)
    if order == b"allocate":
        np.empty(int(argument), np.uint8)  # address space is what is bounded
    if order == b"hoard":
        _HOARD.append(bytearray(int(argument)))
    if order == b"mute":
        os.closerange(3, 256)
        time.sleep(3600)
    if order in (b"hoard", b"die-once", b"pid", b"allocate"):
        pixels = place(3).reshape(1, 1, 3)
        pixels[:] = os.getpid() % 251
        return Decoded(pixels, os.getpid())
    return decode_rgb(data, max_pixels, place, location=location)


def obey_label(data: bytes, max_pixels: int, *, coloured: bool) -> Stored:
    """The same for a label picture."""
    if data.startswith(b"die "):
        os.kill(os.getpid(), int(data[4:]))
    return read_stored(data, max_pixels, coloured=coloured)


if __name__ == "__main__":
    decoder_process.read_stored = obey_label  # type: ignore[attr-defined, assignment]
    if "SEGRAY_TEST_BROKEN_START" in os.environ:
        sys.exit("a library is missing")
    killed = Path(os.environ.get("SEGRAY_TEST_KILLED_STARTS", os.devnull))  # a dot for each start
    if killed.is_file() and len(killed.read_text()) < int(os.environ["SEGRAY_TEST_KILLS"]):
        killed.write_text(killed.read_text() + ".")
        os.kill(os.getpid(), signal.SIGKILL)
    serve(obey)
