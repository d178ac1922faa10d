"""`segray annotate` as a bulk task: Mask R-CNN, instances, seams."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from segray.annotate.settings import AnnotateSettings
from segray.bulk.console import reading
from segray.errors import ExitCode, SettingsError

if TYPE_CHECKING:
    from segray.annotate.predictor import Predictor
    from segray.models.device import Precision
    from segray.models.weights import LoadedModel
    from segray.output.folder import Output


@dataclass(frozen=True)
class Annotate:
    """The task of annotating images with instances; see `bulk.task.BulkTask`."""

    settings: AnnotateSettings
    name = "annotate"
    keeps_instances = True
    keeps_tiles = True
    merges_in_workers = False

    def check(self) -> None:
        """Raise SettingsError for weights that do not exist."""
        from segray.models.weights import check_weights

        check_weights(self.settings.weights, self.settings.storage, "instance")

    def load(self) -> "LoadedModel":
        """Return the model, loaded. Raises SettingsError."""
        from segray.models.imports import import_torchvision

        import_torchvision()
        from segray.models.weights import load_weights

        return load_weights(self.settings.weights, self.settings.storage, "instance")

    def identity(self, model: "LoadedModel", precision: str) -> dict[str, Any]:
        """Return what instances depend on.

        Raises SettingsError for `proposals` with a model that is not torchvision's Mask R-CNN.
        """
        if self.settings.proposals is not None:
            from segray.annotate.detector import is_plain_maskrcnn

            if not is_plain_maskrcnn(model.module):
                raise SettingsError(f"proposals: {model.name} is not torchvision's Mask R-CNN: leave it out")
        return {"score_threshold": self.settings.score_threshold, "proposals": self.settings.proposals}

    def predictor(
        self, model: "LoadedModel", device: str, precision: "Precision", batch_size: int, threads: int
    ) -> "Predictor":
        """Return the model on its device."""
        from segray.annotate.predictor import Predictor

        settings = self.settings
        return Predictor(
            model, device, precision, settings.score_threshold, batch_size, threads, settings.proposals
        )

    def merge_tiles(self, tiles: pa.Table) -> pa.Table:
        """Merge tiles into the item's row (schema ANNOTATED): close seams, assign ids, add map outlines."""
        from segray.annotate.merge_instances import (
            merged_item,  # lazy, only for scenes: the import takes a while
        )

        return merged_item(tiles, self.settings.crs)

    def under(self, generation: int) -> "Annotate":
        """Return this task unchanged: workers write nothing."""
        return self

    def after_merge(self, store: "Output", image_id: str) -> None:
        """Do nothing: tiles leave no files behind."""

    def discard(self, store: "Output", image_ids: Sequence[str]) -> None:
        """Do nothing: everything is in the tables."""

    def finish(self, store: "Output") -> None:
        """Do nothing: there are no files to clean up."""

    def about(self) -> str:
        """Return the threshold, in words."""
        return f"score threshold {self.settings.score_threshold:g}"

    def opening(self, output: str) -> list[str]:
        """Return a command that counts the instances of each category."""
        return [reading(f"{output}/instances", '.groupby("category").score.agg(["count", "mean"])')]


def annotate(settings: AnnotateSettings) -> ExitCode:
    """Annotate every image of the sources. Raises as `bulk.job.run`."""
    from segray.bulk.job import run

    return run(Annotate(settings))
