"""HEIC by the extra `heic`: near the pictures that they were made of, and what is said without it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segray.errors import ItemError
from segray.sources.decode import decode_rgb
from segray.sources.sandbox import DecodeSandbox

HEIF = Path(__file__).parents[1] / "data/heif"
PLENTY = 1_000_000
SOURCES = {"RGB_8": "RGB_8", "RGBA_10": "RGBA_16", "L_12": "L_8"}
WITHOUT = """
import sys
sys.modules["pi_heif"] = None
from segray.sources.decode import decode_rgb
try:
    decode_rgb(open(sys.argv[1], "rb").read(), 10**6)
except Exception as error:
    print(error.error_type, error.reason)
"""


@pytest.mark.parametrize("name", SOURCES)
def test_pictures(name: str) -> None:
    with DecodeSandbox() as sandbox:
        found = sandbox.decode((HEIF / f"{name}__29x100.heif").read_bytes(), PLENTY)
    with Image.open(HEIF / f"{SOURCES[name]}__29x100.png") as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert found.frames == 1
    assert found.pixels.shape == expected.shape
    assert np.abs(found.pixels - expected).mean() < 4


def test_limits_and_damage() -> None:
    data = (HEIF / "RGB_8__29x100.heif").read_bytes()
    for given, most, kinds in (
        (data, 2000, ("too_large",)),
        (data[: len(data) // 2], PLENTY, ("corrupt", "truncated")),
        (data[:40], PLENTY, ("corrupt", "truncated")),
        (data[:300] + bytes(len(data) - 300), PLENTY, ("corrupt", "truncated")),
    ):
        with pytest.raises(ItemError) as caught:
            decode_rgb(given, most)
        assert caught.value.error_type in kinds, caught.value.reason


def test_without_the_extra_it_is_named() -> None:
    command = [sys.executable, "-c", WITHOUT, str(HEIF / "RGB_8__29x100.heif")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "unsupported HEIC is read with the extra heic: uv sync --extra heic"
