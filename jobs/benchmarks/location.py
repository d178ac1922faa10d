"""What EXIF costs the decoder: photos with and without `--no-location`, by CPU time.

Run: python -m jobs.benchmarks.location
"""

import io
import time

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segray.sources.decode import decode_rgb
from tests.sources.exif_made import STREET

SIZES = {"12 megapixels": (3000, 4000, 5), "640 x 480": (480, 640, 60), "320 x 240": (240, 320, 150)}
"""Height, width, and how many are decoded in a round."""
ROUNDS = 15


def photo(height: int, width: int, exif: bytes | None) -> bytes:
    """A JPEG of quality 90 that is as large as a photo's: noise of several scales."""
    random = np.random.default_rng(0)
    pixels = np.zeros((height, width, 3), np.float32)
    for scale in (1, 4, 16, 64):
        coarse = random.normal(0, 12, (height // scale + 1, width // scale + 1, 3)).astype(np.float32)
        pixels += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    file = io.BytesIO()
    image = Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=90, **({"exif": exif} if exif else {}))
    return file.getvalue()


def seconds(data: bytes, number: int, target: NDArray[np.uint8], *, location: bool) -> float:
    """CPU time of one image."""
    started = time.process_time()
    for _ in range(number):
        decode_rgb(data, 10**8, lambda size: target[:size], location=location)
    return (time.process_time() - started) / number


def main() -> None:
    """Print the best of all rounds, with and without, taken in turns."""
    target = np.empty(3 * 12_000_000, np.uint8)
    for name, (height, width, number) in SIZES.items():
        for kind, exif in (("with EXIF", STREET.tobytes()), ("without EXIF", None)):
            data = photo(height, width, exif)
            found: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(ROUNDS):
                for location, times in found.items():
                    times.append(seconds(data, number, target, location=location))
            on, off = (1000 * min(times) for times in found.values())
            print(f"{name} {kind}: {off:.3f} ms, with location {on:.3f} ms, ratio {on / off:.3f}")


if __name__ == "__main__":
    main()
