"""DECODED -> ANNOTATED as annotate and predict do it, and measures of each image on the way. No Ray."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from segray.annotate.detector import Detections, MaskRCNNDetector
from segray.annotate.instances import annotated_table
from segray.annotate.predictor import Predictor
from segray.annotate.settings import SamSettings
from segray.bulk.batches import Batches, Image, images_of
from segray.bulk.results import Outcome, results_table
from segray.errors import ItemError
from segray.models.device import Precision
from segray.models.weights import LoadedModel
from segray.predict.network import ONE, Network
from segray.predict.predictor import Labelled
from segray.selection.disagreement import Boxes, Categories, disagreement, mirrored
from segray.selection.measures import Measured, MeasuresWriter, projected, total_entropy


class PooledFeatures:
    """Captures the output of a layer at each call, pooled to one vector an image."""

    def __init__(self, layer: torch.nn.Module | None) -> None:
        """layer: None where a model has none that is known; then there are no features."""
        self._pooled: torch.Tensor | None = None
        if layer is not None:
            layer.register_forward_hook(self._keep)

    def take(self, images: int) -> list[NDArray[np.float32] | None]:
        """Return the features of the last call, (WIDTH,) float32 each; None without any."""
        pooled, self._pooled = self._pooled, None
        if pooled is None or len(pooled) != images:
            return [None] * images
        return list(projected(pooled.cpu().numpy()))

    def _keep(self, _layer: torch.nn.Module, _inputs: Any, output: Any) -> None:
        maps = list(output.values()) if isinstance(output, Mapping) else output
        maps = [maps] if isinstance(maps, torch.Tensor) else list(maps)
        means = [each.float().mean((2, 3)) for each in maps if each.ndim == 4]
        # each level counts alike, however large its values are
        self._pooled = torch.cat([torch.nn.functional.normalize(each, dim=1) for each in means], dim=1)


class MeasuringPredictor(Predictor):
    """`Predictor` that also writes measures: features of the backbone, disagreement with the mirror image."""

    def __init__(
        self,
        model: LoadedModel,
        device: str,
        precision: Precision,
        score_threshold: float,
        batch_size: int,
        threads: int | None,
        proposals: int | None,
        writer: MeasuresWriter,
        sam: SamSettings | None = None,
    ) -> None:
        super().__init__(model, device, precision, score_threshold, batch_size, threads, proposals, sam)
        backbone: Any = None
        if isinstance(self.detector, MaskRCNNDetector):
            backbone = self.detector.model.backbone
        self._features = PooledFeatures(backbone)
        self._writer = writer
        self.flips_above: float | None = None
        """Minimum score of the instances that are compared with the mirror image's; None: no flips."""

    def predict(self, table: pa.Table) -> pa.Table:
        """Turn DECODED into ANNOTATED as `Predictor.predict`, once the measures are written."""
        outcomes: list[Outcome] = [None] * table.num_rows
        measured: dict[int, Measured] = {}
        pictures = images_of(table)
        for row, found in self.batches.run(pictures, self._detect):
            if isinstance(found, ItemError):
                outcomes[row] = found
                continue
            detections, measured[row] = found
            outcomes[row] = self._outcome(detections, *pictures[row].shape[:2])
        _write(self._writer, table, measured)
        return annotated_table(table, outcomes, self.model.categories)

    def _detect(self, images: Sequence[Image]) -> list[tuple[Detections, Measured]]:
        found = self.detector.detect(images)
        features = self._features.take(len(images))
        flips: list[float | None] = [None] * len(images)
        if self.flips_above is not None:
            mirror = self.detector.detect([np.ascontiguousarray(image[:, ::-1]) for image in images])
            self._features.take(len(images))
            flips = [
                self._contradiction(*pair, image.shape[1])
                for pair, image in zip(zip(found, mirror, strict=True), images, strict=True)
            ]
        return [
            (each, Measured(vector, flips=flip))
            for each, vector, flip in zip(found, features, flips, strict=True)
        ]

    def _contradiction(self, plain: Detections, mirror: Detections, width: int) -> float:
        boxes, categories = self._kept(plain)
        others, of_others = self._kept(mirror)
        return disagreement(boxes, mirrored(others, width), categories, of_others)

    def _kept(self, found: Detections) -> tuple[Boxes, Categories]:
        keep = found.scores > (self.flips_above or 0)
        return found.boxes[keep], found.labels[keep].astype(np.int32)


class MapMeasurer:
    """A semantic model that measures images, and writes no maps."""

    def __init__(
        self,
        model: LoadedModel,
        device: str,
        precision: Precision,
        batch_size: int,
        threads: int | None,
        writer: MeasuresWriter,
        flips: bool,
    ) -> None:
        """Load the model; device and precision: resolved. threads: of torch on a CPU; None: unchanged."""
        if threads is not None:
            torch.set_num_threads(threads)
        self.network, self.flips, self._writer = Network(model, device, precision), flips, writer
        self._features = PooledFeatures(_encoder(self.network.module))
        self._batches = Batches(batch_size, lambda height, width: (height, width))

    def predict(self, table: pa.Table) -> pa.Table:
        """Turn DECODED into ANNOTATED, in the order of the rows, once the measures are written."""
        outcomes: list[Outcome] = [None] * table.num_rows
        measured: dict[int, Measured] = {}
        for row, found in self._batches.run(images_of(table), self._measure):
            outcomes[row] = found if isinstance(found, ItemError) else Labelled()
            if not isinstance(found, ItemError):
                measured[row] = found
        _write(self._writer, table, measured)
        return results_table(table, outcomes)

    def _measure(self, images: Sequence[Image]) -> list[Measured]:
        labels, shares = self.network.labels_and_probabilities(images)
        features = self._features.take(len(images))
        flips: list[float | None] = [None] * len(images)
        if self.flips:
            other = self.network.labels([np.ascontiguousarray(image[:, ::-1]) for image in images])
            self._features.take(len(images))
            flips = [float((a != b[:, ::-1]).mean()) for a, b in zip(labels, other, strict=True)]
        return [
            Measured(_shares_if_none(vector, share), entropy(share), flip)
            for vector, share, flip in zip(features, shares, flips, strict=True)
        ]


def entropy(shares: NDArray[np.uint16]) -> float:
    """Return the mean entropy of the pixels of (classes, h, w) shares, of which ONE is 1; 0..1."""
    height, width = shares.shape[1:]
    return float(total_entropy(shares, ONE) / (height * width))


def _shares_if_none(vector: NDArray[np.float32] | None, shares: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return features; of a model without a known encoder the mean share of each class."""
    if vector is not None:
        return vector
    found: NDArray[np.float32] = projected(shares.mean((1, 2), dtype=np.float64)[None].astype(np.float32))[0]
    return found


def _encoder(module: Any) -> torch.nn.Module | None:
    """Return the part of a network that sees most: of smp's, torchvision's, and our own U-Net."""
    network = getattr(module, "network", module)
    for name in ("encoder", "backbone", "bottom"):
        layer = getattr(network, name, None)
        if isinstance(layer, torch.nn.Module):
            return layer
    return None


def _write(writer: MeasuresWriter, table: pa.Table, measured: Mapping[int, Measured]) -> None:
    rows = sorted(measured)
    ids, tiles, heights, widths = (
        [column[row] for row in rows]
        for column in (table[name].to_pylist() for name in ("image_id", "tile", "height", "width"))
    )
    pixels = [height * width for height, width in zip(heights, widths, strict=True)]
    writer.write(ids, tiles, pixels, [measured[row] for row in rows])
