"""DECODED -> ANNOTATED: batches, detector, masks -> COCO run lengths. No Ray; a worker has one Predictor."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from segray.annotate.custom_detector import CustomDetector
from segray.annotate.detector import Detections, MaskRCNNDetector, is_plain_maskrcnn
from segray.annotate.instances import Found, annotated_table, found_instances
from segray.annotate.sam_detector import SamDetector, SamMasks
from segray.annotate.settings import SamSettings
from segray.bulk.batches import Batches, images_of
from segray.bulk.results import Outcome
from segray.errors import ItemError
from segray.masks.rle import EncodedMasks, encode_masks
from segray.models.device import Precision
from segray.models.sam import SegmentAnything
from segray.models.weights import LoadedModel


class Predictor:
    """One model on one device."""

    def __init__(
        self,
        model: LoadedModel,
        device: str,
        precision: Precision,
        score_threshold: float,
        batch_size: int,
        threads: int | None = None,
        proposals: int | None = None,
        sam: SamSettings | None = None,
    ) -> None:
        """Load the model; device and precision: resolved. threads: of torch on a CPU; None: unchanged.

        proposals: see MaskRCNNDetector; sam: see SamDetector; neither is for a custom model.
        Raises JobFailedError for a custom model with an unknown `mask_frame`.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.model, where = model, torch.device(device)
        self.detector: MaskRCNNDetector | SamDetector | CustomDetector
        if is_plain_maskrcnn(model.module):
            self.detector = MaskRCNNDetector(model.module, where, precision, score_threshold, proposals)
        elif isinstance(model.module, SegmentAnything):
            given = sam or SamSettings()
            self.detector = SamDetector(model.module, where, precision, score_threshold, given)
        else:
            own = precision if model.card is not None else "fp32"  # a user's own model chooses itself
            self.detector = CustomDetector(model.module, model.name, where, score_threshold, own)
        self.refiner = SamMasks(model.refiner.module, where, precision) if model.refiner else None
        most = min(batch_size, getattr(model.module, "batch_size", batch_size))
        self.batches = Batches(most, self.detector.batch_key)

    def predict(self, table: pa.Table) -> pa.Table:
        """Turn DECODED into ANNOTATED, in the order of the rows; see `Batches`.

        Raises JobFailedError for results of a custom model that break its interface, and whatever such a
        model raises.
        """
        outcomes: list[Outcome] = [None] * table.num_rows
        pictures = images_of(table)
        for row, detections in self.batches.run(pictures, self._refined):
            outcomes[row] = self._outcome(detections, *pictures[row].shape[:2])
        return annotated_table(table, outcomes, self.model.categories)

    def _refined(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Return the detections of each image; where there is a refiner, with its masks of their boxes."""
        found, refiner = self.detector.detect(images), self.refiner
        if refiner is None:
            return found
        return [
            replace(each, masks=refiner.masks(image, each.boxes), frame="image")
            for each, image in zip(found, images, strict=True)
        ]

    def _outcome(self, detections: Detections | ItemError, height: int, width: int) -> Found | ItemError:
        if isinstance(detections, ItemError):
            return detections
        try:
            masks = detections.masks
            if not isinstance(masks, EncodedMasks):
                size = height, width
                masks = encode_masks(detections.frame, masks, detections.boxes, size, detections.extent)
        except ItemError as error:
            return error
        return found_instances(
            self._category_ids(detections.labels), detections.scores, detections.boxes, masks
        )

    def _category_ids(self, labels: NDArray[np.int64]) -> NDArray[np.int32]:
        if self.model.category_ids is None:
            return labels.astype(np.int32)
        return np.array(self.model.category_ids, np.int32)[labels - 1]
