"""The training of an instance model, torchvision's Mask R-CNN: step and score. No Ray.

The loss of a global batch is the mean over its images of torchvision's loss of each part: a process and a
part (`Recipe.accumulate`) are weighted by their images. Torchvision divides by the proposals that it drew for
a part, so parts and processes change the loss a little, unlike in semantic training.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import fsspec
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, distributed
from torchvision.models.detection import MaskRCNN

from segray.evaluate.average_precision import InstanceScores
from segray.masks.rle import EncodedMasks, MaskFrame, encode_masks
from segray.masks.types import Rle
from segray.models.device import DTYPES
from segray.models.exact_boxes import keep_boxes_in_float32, keep_scales
from segray.models.modelfile import ModelCard, build_model, model_bytes
from segray.models.start_weights import begin_with
from segray.train.train_step import Recipe, Training
from segray.train.transforms.instance import InstanceBatch, InstanceImage

_BLANK = 64
"""Side of a blank image, for a process that has none in a step."""


@dataclass(frozen=True, kw_only=True)
class InstanceRecipe(Recipe):
    """The recipe of a detector with masks."""

    card: ModelCard
    window: int | None = None
    """Pixels that become `card.min_size`: windows of scenes have one scale; None: the shorter side does."""

    def shorter(self, height: int, width: int) -> int:
        """Return the pixels to which the shorter side of an image is resized."""
        least = self.card.min_size
        return least if self.window is None else max(1, round(min(height, width) * least / self.window))

    def training(self, device: torch.device) -> "InstanceTraining":
        """Return the training of this process, see `Recipe`."""
        return InstanceTraining(self, device)


class InstanceTraining(Training):
    """The training of a detector with masks."""

    best = "ap"
    recipe: InstanceRecipe

    def __init__(self, recipe: InstanceRecipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        model = build_model(recipe.card)
        if recipe.start is not None:
            begin_with(model, recipe.start)
        model.to(device)
        if isinstance(model, MaskRCNN):
            keep_scales(model)
        if recipe.precision != "fp32":  # in fp32 this order made oneDNN's backward pass corrupt the heap
            model.to(memory_format=torch.channels_last)
            if isinstance(model, MaskRCNN):
                keep_boxes_in_float32(model)
        model.transform._skip_resize = True  # in training only: crops have their size already
        super().__init__(recipe, model, device)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the categories, see `Training`."""
        return tuple(name for _, name in sorted(self.recipe.card.categories.items()))

    def figures(self, pictures: Iterable[InstanceBatch]) -> dict[str, Any]:
        """Return the AP of masks, overall and by size, see `Training`."""
        scores = self.score(pictures)
        if self._parallel is not None:
            shards: list[InstanceScores] = [scores] * self._workers
            distributed.all_gather_object(shards, scores)
            scores = sum(shards, InstanceScores())
        return dict(scores.compute())

    def score(self, pictures: Iterable[InstanceBatch]) -> InstanceScores:
        """Return truth and predictions of this process's images; computed in float32 in any precision."""
        scores = InstanceScores()
        ids = sorted(self.recipe.card.categories)
        for batch in pictures:
            for picture in batch.pictures:
                scores.add_image(picture.name, picture.size)
                for true in picture.truth:
                    rle: Rle = {"size": list(picture.size), "counts": true["counts"]}
                    scores.add_truth(
                        picture.name, rle, true["category"], crowd=true["crowd"], area=true["area"]
                    )
                masks, labels, confidences = self.predict(picture.pixels)
                for counts, label, score in zip(
                    masks.counts, labels.tolist(), confidences.tolist(), strict=True
                ):
                    mask: Rle = {"size": list(picture.size), "counts": counts}
                    scores.add_prediction(picture.name, mask, ids[label - 1], score)
        return scores

    @torch.inference_mode()
    def predict(self, pixels: Tensor) -> tuple[EncodedMasks, Tensor, Tensor]:
        """Return n masks, labels (n,) and scores (n,) of an image, uint8 (3, h, w)."""
        model: Any = self.scored.eval()
        model.transform.min_size = (self.recipe.shorter(*pixels.shape[1:]),)
        (found,) = model([pixels.to(self.device).float() / 255])
        found = {name: tensor.cpu() for name, tensor in found.items()}
        frame: MaskFrame = getattr(model, "mask_frame", "image")  # torchvision's own grow to the image
        boxes = found["boxes"].numpy() if frame == "roi" else None
        extent = tuple(found["extent"].tolist()) if "extent" in found else None
        size = (pixels.shape[1], pixels.shape[2])
        masks = encode_masks(frame, found["masks"][:, 0].numpy(), boxes, size, extent)
        return masks, found["labels"], found["scores"]

    def model_file(self) -> bytes:
        """Return the scored network as bytes of `model.pt`, see `Training`."""
        return model_bytes(self.recipe.card, self.scored.state_dict())

    def draw(self, picture: InstanceBatch, filesystem: fsspec.AbstractFileSystem, folder: str) -> None:
        """Write picture | truth | prediction with outlined instances, see `Training`."""
        from segray.train.reporting.samples import outlined, write_panels

        (one,) = picture.pictures
        found, _, scores = self.predict(one.pixels)
        sure = [counts for counts, score in zip(found.counts, scores.tolist(), strict=True) if score >= 0.5]
        truth, masks = (
            [coco_mask.decode({"size": one.size, "counts": counts}) > 0 for counts in each]
            for each in ([true["counts"] for true in one.truth], sure)
        )
        drawn = outlined(one.name, one.pixels.permute(1, 2, 0).numpy(), truth, masks)
        write_panels(filesystem, folder, one.name, drawn)

    def _backward(self, batch: InstanceBatch) -> Tensor:
        """Compute the gradient, see `Training`."""
        numbers = torch.tensor([len(batch.pictures)] * 2, dtype=torch.float64, device=self.device)
        if self._parallel is not None:
            distributed.all_reduce(numbers[:1])
            distributed.all_reduce(numbers[1:], distributed.ReduceOp.MAX)
        everyone, most = numbers.tolist()
        parts = max(1, min(self.recipe.accumulate, int(most)))  # the same number in every process
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in range(parts):
            pictures = batch.pictures[part::parts]
            share = len(pictures) / everyone
            with self._alone(part < parts - 1):
                loss = self._loss(pictures or [_blank()])
                # DDP averages over processes what must be summed
                self.scaler.scale(loss * share * self._workers).backward()
            total += loss.detach().double() * share
        if self._parallel is not None:
            distributed.all_reduce(total)
        return total

    def _loss(self, pictures: list[InstanceImage]) -> Tensor:
        pixels = [each.pixels.to(self.device).float() / 255 for each in pictures]
        targets = [{name: t.to(self.device) for name, t in each.target.items()} for each in pictures]
        kind, narrow = DTYPES[self.recipe.precision], self.recipe.precision != "fp32"
        with torch.autocast(self.device.type, kind if narrow else None, enabled=narrow):
            losses: dict[str, Tensor] = self._network(pixels, targets)
        return torch.stack([loss.float() for loss in losses.values()]).sum()


def _blank() -> InstanceImage:
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, _BLANK, _BLANK, dtype=torch.uint8),
    }
    return InstanceImage("", torch.zeros(3, _BLANK, _BLANK, dtype=torch.uint8), target)
