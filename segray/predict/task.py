"""`segray predict` as a bulk task: a semantic model, label maps, blended windows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from segray.bulk.console import reading
from segray.errors import ExitCode, JobFailedError, SettingsError
from segray.output.folder import Output
from segray.predict.settings import PredictSettings
from segray.predict.windows import FOLDER, output_of_worker

if TYPE_CHECKING:
    from segray.bulk.model_step import Predictor
    from segray.models.architectures import Task
    from segray.models.device import Precision
    from segray.models.weights import LoadedModel


@dataclass(frozen=True)
class Predict:
    """The task of predicting label maps; see `bulk.task.BulkTask`."""

    settings: PredictSettings
    generation: int = 0
    """Generation of the lease; 0: none is held yet."""
    name = "predict"
    keeps_instances = False
    keeps_tiles = False  # windows take many times the size of their scene
    merges_in_workers = True

    def check(self) -> None:
        """Raise SettingsError for weights that are missing or do not fit, and for a missing library."""
        from segray.models.card_peek import class_names, peeked_card, resized_side
        from segray.models.weights import check_weights, name_of, weights_kind
        from segray.predict.superpixels import check_installed
        from segray.sources import volume

        if self.settings.superpixels:
            check_installed()
        if self.settings.volumes:
            volume.check_installed()
            if weights_kind(self.settings.weights) == "python":
                raise SettingsError("weights: volumes need a model.pt of `segray train --volumes`")

        weights, storage = self.settings.weights, self.settings.storage
        check_weights(weights, storage, self._model_task)
        if self.settings.sliding_window or self.settings.blur:
            card = peeked_card(weights, storage)
            self._check_fits(name_of(weights), resized_side(card), class_names(card))

    def load(self) -> "LoadedModel":
        """Return the model, loaded. Raises SettingsError."""
        from segray.models.imports import import_torchvision

        import_torchvision()
        from segray.models.weights import load_weights

        return load_weights(self.settings.weights, self.settings.storage, self._model_task)

    @property
    def _model_task(self) -> "Task":
        return "volume" if self.settings.volumes else "semantic"

    def identity(self, model: "LoadedModel", precision: str) -> dict[str, Any]:
        """Return what a map depends on, and which files are written.

        Raises SettingsError for a class to blur that the model does not have, and for a sliding window with
        a model of whole images.
        """
        self._check_fits(model.name, model.resized_to, model.classes)
        blur = self.settings.blur
        hiding = {"blur": sorted(blur) or None, "blur_margin": self.settings.blur_margin if blur else None}
        wanted = {name: getattr(self.settings, name) for name in ("tta", "probabilities", "polygons")}
        hiding |= self._after_network()
        # maps 2: windows in 16 bits; those left by an older version are bytes
        return {"verb": "predict", "maps": 2, "classes": list(model.classes), **wanted, **hiding}

    def _check_fits(self, name: str, side: int | None, classes: Sequence[str]) -> None:
        """Raise SettingsError for what a model does not do; no classes: they are not known yet."""
        lines = []
        if self.settings.sliding_window and side:
            lines.append(
                f"sliding_window: {name} was trained on whole images brought to {side} x {side} pixels "
                "(fit: resize), not on parts of them; leave it out"
            )
        if classes and (unknown := [each for each in self.settings.blur if each not in classes]):
            lines.append(f"blur: {name} has no class {', '.join(unknown)}; it has: {', '.join(classes)}")
        if lines:
            raise SettingsError(*lines)

    def _after_network(self) -> dict[str, Any]:
        """Return the settings of the steps that are asked for, None for others: older outputs have none."""
        settings = self.settings
        return {
            "sliding_window": settings.sliding_window,
            "crf": settings.crf.model_dump() if settings.crf.iterations else None,
            "superpixels": settings.superpixels,
            "compactness": settings.compactness if settings.superpixels else None,
            "smallest_area": settings.smallest_area or None,
            "close_holes": settings.close_holes or None,
            "volumes": settings.volumes or None,
        }

    def predictor(
        self, model: "LoadedModel", device: str, precision: "Precision", batch_size: int, threads: int
    ) -> "Predictor":
        """Return the model on its device."""
        store = output_of_worker(self.settings, self.generation)
        if self.settings.volumes:
            from segray.predict.volumes import VolumePredictor

            return VolumePredictor(model, device, precision, threads, store)
        from segray.predict.predictor import MapPredictor

        return MapPredictor(model, self.settings, device, precision, batch_size, threads, store)

    def merge_tiles(self, tiles: pa.Table) -> pa.Table:
        """Blend windows, write the map; return the item's row (schema ANNOTATED). Raises JobFailedError."""
        from segray.predict.merge_windows import merged_map

        store = output_of_worker(self.settings, self.generation)
        plan = store.read_json("_segray/plan.json")
        if not isinstance(plan, dict) or "classes" not in plan:
            raise JobFailedError(f"{self.settings.output}: its _segray/plan.json is gone or damaged")
        return merged_map(tiles, self.settings, tuple(plan["classes"]), store)

    def under(self, generation: int) -> "Predict":
        """Return the same task with the generation of the lease; see `output_of_worker`."""
        return replace(self, generation=generation)

    def after_merge(self, store: Output, image_id: str) -> None:
        """Delete the item's windows."""
        store.delete_folder(f"{FOLDER}/{image_id}")

    def discard(self, store: Output, image_ids: Sequence[str]) -> None:
        """Delete maps of items that were replaced: no later run writes them."""
        for image_id in image_ids:
            for name in (f"labels/{image_id}.png", f"labels/{image_id}.tif", f"labels/{image_id}.nii.gz",
                         f"probabilities/{image_id}.tif", f"polygons/{image_id}.parquet",
                         f"blurred/{image_id}.jpg", f"blurred/{image_id}.png"):  # fmt: skip
                store.delete(name)

    def finish(self, store: Output) -> None:
        """Delete all windows."""
        store.delete_folder(FOLDER)

    def about(self) -> str:
        """Return which files are written."""
        if self.settings.volumes:
            return "label volumes"
        more = [name for name in ("probabilities", "polygons") if getattr(self.settings, name)]
        more += [f"copies with {', '.join(self.settings.blur)} blurred"] * bool(self.settings.blur)
        return " and ".join(["label maps", *more])

    def opening(self, output: str) -> list[str]:
        """Return a command that lists the images of the label maps."""
        return [reading(f"{output}/images", '[["uri", "image_id", "status"]]')]


def predict(settings: PredictSettings) -> ExitCode:
    """Predict a label map for every image of the sources. Raises as `bulk.job.run`."""
    from segray.bulk.job import run

    return run(Predict(settings))
