"""`segray annotate` as a bulk task: Mask R-CNN, instances, seams."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from segray.annotate.settings import AnnotateSettings, SamSettings
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
        """Raise SettingsError for weights that do not exist, and for a refiner that is not SAM."""
        from segray.models.weights import check_refiner, check_weights, is_sam

        settings = self.settings
        if settings.boxes is None:
            check_weights(settings.weights, settings.storage, "instance")
        elif "weights" in settings.model_fields_set or settings.refine is None:
            raise SettingsError("boxes: with --refine, which makes their masks, and without --weights")
        if settings.refine is None:
            return
        check_refiner(settings.refine, settings.storage)
        if settings.boxes is None and is_sam(settings.weights, settings.storage):
            raise SettingsError("refine: SAM's own masks are not refined; leave it out, or use other weights")

    def load(self) -> "LoadedModel":
        """Return the model, loaded, with its refiner where there is one. Raises SettingsError."""
        from segray.models.imports import import_torchvision

        import_torchvision()
        from segray.models.weights import load_weights, said_of

        settings = self.settings
        refiner = None
        if settings.refine:
            with said_of("refine"):
                refiner = load_weights(settings.refine, settings.storage, "instance")
        if settings.boxes is not None and refiner is not None:
            from segray.annotate.box_prompts import load_boxes

            return load_boxes(settings.boxes, settings.storage, refiner)
        return replace(load_weights(settings.weights, settings.storage, "instance"), refiner=refiner)

    def identity(self, model: "LoadedModel", precision: str) -> dict[str, Any]:
        """Return what instances depend on.

        Raises SettingsError for `proposals` with a model that is not torchvision's Mask R-CNN, and for
        settings of SAM with another model.
        """
        from segray.annotate.detector import is_plain_maskrcnn

        settings, refiner = self.settings, model.refiner
        if settings.proposals is not None and not is_plain_maskrcnn(model.module):
            raise SettingsError(f"proposals: {model.name} is not torchvision's Mask R-CNN: leave it out")
        if model.kind != "sam" and settings.sam != SamSettings():
            raise SettingsError(f"sam: {model.name} is not SAM, whose settings these are: leave them out")
        return {
            "score_threshold": settings.score_threshold,
            "proposals": settings.proposals,
            "sam": settings.sam.model_dump() if model.kind == "sam" else None,
            "refine": refiner and {"weights": refiner.name, "sha256": refiner.digest},
        }

    def predictor(
        self,
        model: "LoadedModel",
        device: str,
        precision: "Precision",
        batch_size: int,
        threads: int,
    ) -> "Predictor":
        """Return the model on its device."""
        if self.settings.boxes is not None:
            from segray.annotate.box_prompts import BoxPredictor

            return BoxPredictor(model, device, precision, threads)  # type: ignore[return-value]
        from segray.annotate.predictor import Predictor

        settings = self.settings
        return Predictor(
            *(model, device, precision, settings.score_threshold, batch_size, threads),
            proposals=settings.proposals,
            sam=settings.sam,
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
