"""What annotate and predict each add to the bulk job: a model, its results, how tiles become an item."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from segray.bulk.settings import BulkSettings

if TYPE_CHECKING:
    from segray.bulk.model_step import Predictor
    from segray.models.device import Precision
    from segray.output.folder import Output


class Model(Protocol):
    """What the job itself asks of a model; pickles to a worker."""

    @property
    def name(self) -> str:
        """As the user gave it, without credentials."""

    @property
    def digest(self) -> str:
        """sha256, hex."""

    @property
    def resized_to(self) -> int | None:
        """The side of the square that it sees a whole picture in, however large; None: any size."""

    @property
    def band_ranges(self) -> Sequence[tuple[float, float]] | None:
        """See `Tiling.ranges`."""


class BulkTask(Protocol):
    """A bulk verb; it pickles to a worker."""

    @property
    def name(self) -> str:
        """As on the command line."""

    @property
    def settings(self) -> BulkSettings:
        """Of this run."""

    @property
    def keeps_instances(self) -> bool:
        """Whether the output has a table of them."""

    @property
    def keeps_tiles(self) -> bool:
        """Whether the tiles of an item stay where some are rejected, so that a retry does those alone."""

    @property
    def merges_in_workers(self) -> bool:
        """Whether `merge_tiles` takes so long for one item that several should be done at a time."""

    def check(self) -> None:
        """Raise SettingsError for weights that are not there; torch is not loaded for it."""

    def load(self) -> Model:
        """Return the model, loaded. Raises SettingsError."""

    def identity(self, model: Any, precision: str) -> dict[str, Any]:
        """Return the settings of this verb alone that results depend on. Raises SettingsError."""

    def predictor(
        self, model: Any, device: str, precision: "Precision", batch_size: int, threads: int
    ) -> "Predictor":
        """Return the model on its device; called in a worker."""

    def merge_tiles(self, tiles: pa.Table) -> pa.Table:
        """Merge all tiles of one item into its row, both of schema ANNOTATED."""

    def under(self, generation: int) -> "BulkTask":
        """Return the same for workers that write to the output under the lease of this generation."""

    def after_merge(self, store: "Output", image_id: str) -> None:
        """Delete what the tiles of an item left behind; the item is safe."""

    def discard(self, store: "Output", image_ids: Sequence[str]) -> None:
        """Delete what was written outside the tables for items that were replaced."""

    def finish(self, store: "Output") -> None:
        """Clean up; every item is safe."""

    def about(self) -> str:
        """Return what a dry run prints with the model's name."""

    def opening(self, output: str) -> list[str]:
        """Return shell commands that open the output."""
