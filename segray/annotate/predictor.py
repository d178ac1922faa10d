"""The model step: DECODED -> ANNOTATED, one row out for each row in. No Ray; a worker holds one Predictor."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from segray.annotate.detector import Detections, MaskRCNNDetector, is_plain_maskrcnn
from segray.annotate.foreign import ForeignDetector
from segray.annotate.instances import Found, Outcome, annotated_table, found_instances
from segray.annotate.rle import encode_image_masks, encode_roi_masks
from segray.columns import byte_views
from segray.errors import ItemError
from segray.models.device import Precision, is_out_of_memory
from segray.models.weights import LoadedModel

Image = NDArray[np.uint8]


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
    ) -> None:
        """device and precision: resolved. threads: of torch on a CPU, in this process; None: as they are.

        proposals: see MaskRCNNDetector; a model of the user's own has none.
        Raises JobFailedError for a model of the user's own that asks for what is not known here.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.model, where = model, torch.device(device)
        self.batch_size = min(batch_size, getattr(model.module, "batch_size", batch_size))
        self.detector: MaskRCNNDetector | ForeignDetector
        if is_plain_maskrcnn(model.module):
            self.detector = MaskRCNNDetector(model.module, where, precision, score_threshold, proposals)
        else:
            self.detector = ForeignDetector(model.module, model.name, where, score_threshold)

    def annotate(self, table: pa.Table) -> pa.Table:
        """DECODED -> ANNOTATED, in the order of the rows.

        Images are put into batches by their shape inside the network, so that nothing depends on which other
        images are in the table but the last bits of the arithmetic. An image that does not fit into memory
        alone is rejected. Raises JobFailedError for answers of a model of the user's own that break its
        interface, and whatever such a model raises.
        """
        outcomes: list[Outcome] = [None] * table.num_rows
        pictures = _pictures(table)
        for rows in self._batches(pictures):
            images = [pictures[row] for row in rows]
            for row, image, detections in zip(rows, images, self._detect(images), strict=True):
                outcomes[row] = self._outcome(detections, image.shape[0], image.shape[1])
        return annotated_table(table, outcomes, self.model.categories)

    def _batches(self, pictures: Mapping[int, Image]) -> Iterator[list[int]]:
        """Row numbers of the pictures, in batches of one shape."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, picture in pictures.items():
            groups.setdefault(self.detector.batch_key(*picture.shape[:2]), []).append(row)
        for rows in groups.values():
            while rows:
                size = self.batch_size  # it may have become smaller
                yield rows[:size]
                rows = rows[size:]

    def _detect(self, images: Sequence[Image]) -> Sequence[Detections | ItemError]:
        """Out of memory halves the batch, for good; one image alone that does not fit is rejected."""
        try:
            return self.detector.detect(images)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        if torch.cuda.is_available():  # after the except: it kept the failed batch's tensors alive
            torch.cuda.empty_cache()
        if len(images) == 1:
            return [ItemError("memory", f"no room for the model's work on this image: {reason}")]
        half = len(images) // 2
        self.batch_size = min(self.batch_size, half)
        return [*self._detect(images[:half]), *self._detect(images[half:])]

    def _outcome(self, detections: Detections | ItemError, height: int, width: int) -> Found | ItemError:
        if isinstance(detections, ItemError):
            return detections
        try:
            if detections.frame == "roi":
                masks = encode_roi_masks(detections.masks, detections.boxes, height, width)
            else:
                masks = encode_image_masks(detections.masks, height, width)
        except ItemError as error:
            return error
        return found_instances(
            self._category_ids(detections.labels), detections.scores, detections.boxes, masks
        )

    def _category_ids(self, labels: NDArray[np.int64]) -> NDArray[np.int32]:
        if self.model.category_ids is None:
            return labels.astype(np.int32)
        return np.array(self.model.category_ids, np.int32)[labels - 1]


def _pictures(table: pa.Table) -> dict[int, Image]:
    """(height, width, 3) uint8 by row number, views into the table; rows without a picture are left out."""
    columns = byte_views(table["pixels"]), table["height"].to_pylist(), table["width"].to_pylist()
    return {
        row: pixels.reshape(height, width, 3)
        for row, (pixels, height, width) in enumerate(zip(*columns, strict=True))
        if pixels is not None
    }
