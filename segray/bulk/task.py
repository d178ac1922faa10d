"""The parts of a bulk job that differ for annotate and predict: model, results, merging of tiles."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from segray.bulk.settings import BulkSettings

if TYPE_CHECKING:
    from segray.bulk.model_step import Predictor
    from segray.models.device import Precision
    from segray.output.folder import Output


class Model(Protocol):
    """The attributes of a model that the job itself uses; pickles to a worker."""

    @property
    def name(self) -> str:
        """Return the value of `--weights`, without credentials."""

    @property
    def digest(self) -> str:
        """Return the sha256, hex."""

    @property
    def categories(self) -> Mapping[int, str]:
        """Return the names of all categories that it may find, by id; empty where it does not tell."""

    @property
    def resized_to(self) -> int | None:
        """Return the side of the square that whole images are resized to; None: any size."""

    @property
    def band_ranges(self) -> Sequence[tuple[float, float]] | None:
        """Return the scaling of each band, see `Tiling.ranges`."""


class BulkTask(Protocol):
    """What a bulk verb runs; it pickles to a worker."""

    @property
    def name(self) -> str:
        """Return the verb's name on the command line."""

    @property
    def settings(self) -> BulkSettings:
        """Return the settings of this run."""

    @property
    def keeps_instances(self) -> bool:
        """Return whether the output has a table of instances."""

    @property
    def keeps_tiles(self) -> bool:
        """Return whether an item's tiles are kept when some are rejected: a retry does those alone."""

    @property
    def merges_in_workers(self) -> bool:
        """Return whether `merge_tiles` is so slow for one item that several should run at a time."""

    def check(self) -> None:
        """Raise SettingsError for weights that do not exist; torch is not loaded for it."""

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
        """Return the same task for workers that write to the output under the lease of this generation."""

    def after_merge(self, store: "Output", image_id: str) -> None:
        """Delete the files that the tiles of a committed item left behind."""

    def discard(self, store: "Output", image_ids: Sequence[str]) -> None:
        """Delete the files outside the tables of items that were replaced."""

    def finish(self, store: "Output") -> None:
        """Clean up; every item is committed."""

    def about(self) -> str:
        """Return the text that a dry run prints after the model's name."""

    def opening(self, output: str) -> list[str]:
        """Return shell commands that open the output."""
