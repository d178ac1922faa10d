"""Decide what the values of a data set's label images mean, from a sample of them."""

from collections.abc import Sequence

from segray.data.labels import Decision, decide_values
from segray.sources.item import Source
from segray.sources.read_step import read_all
from segray.sources.sandbox import DecodeSandbox
from segray.storage import StorageSettings

SAMPLED = 64
"""Label images in the sample."""


def decide_from(
    files: Sequence[Source], max_pixels: int, storage: StorageSettings, void: tuple[int, ...] = ()
) -> Decision:
    """Decide what label images hold, from a sample of readable ones, spread over the list."""
    some = list(files[:: max(1, len(files) // SAMPLED)][:SAMPLED])
    data = [each for each in read_all(some, storage) if isinstance(each, bytes)]
    with DecodeSandbox() as sandbox:
        return decide_values(data, max_pixels, void, sandbox.stored)
