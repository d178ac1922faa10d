"""Segment Anything, 1 to 3, of transformers, behind one interface: an image, prompts, masks on a grid.

    embedding = model.embed(pixels)                       once an image
    logits, scores = model.masks(embedding, size, points) for each handful of prompts
    frame = model.frame(*size)                            from the logits' grid to the image's pixels

SAM 1 (Kirillov et al. 2023) keeps an image's proportions and pads it to a square; SAM 2 and 3 stretch it.
transformers' own pipeline for masks scales points of SAM 2 as those of SAM 1, which leaves the shorter side's
end without any: here they are scaled as the image is.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from segray.masks.grids import GridFrame, axis

PROCESSORS = {"sam": "SamImageProcessor", "sam2": "Sam2ImageProcessor", "sam3": "Sam3ImageProcessor"}
"""Kind of SAM -> class of transformers that resizes and normalises, with its published constants."""


class SegmentAnything(nn.Module):
    """One network of SAM, of any version."""

    def __init__(self, network: nn.Module, kind: str) -> None:
        """Store transformers' SamModel, Sam2Model or Sam3TrackerModel; kind: a key of `PROCESSORS`."""
        super().__init__()
        self.network, self.kind = network, kind
        self.side = int(network.config.prompt_encoder_config.image_size)  # type: ignore[union-attr, arg-type]

    @cached_property
    def _processor(self) -> Any:
        import transformers

        square = {"height": self.side, "width": self.side}
        sizes: Mapping[str, Any] = {"size": square}
        if self.kind == "sam":
            sizes = {"size": {"longest_edge": self.side}, "pad_size": square}
        return getattr(transformers, PROCESSORS[self.kind])(**sizes)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the image processor, which is made anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_processor"}

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of an image inside the network, unpadded; 0 for a very narrow one."""
        if self.kind != "sam":
            return self.side, self.side
        scale = self.side / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def embed(self, pixels: Tensor) -> Any:
        """Return the embedding of an image, uint8 (3, height, width)."""
        values = self._processor(images=[pixels], device=pixels.device, return_tensors="pt")["pixel_values"]
        return self.network.get_image_embeddings(values)  # type: ignore[operator]

    def masks(
        self,
        embedding: Any,
        size: tuple[int, int],
        *,
        points: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return mask logits, float32 (n, masks, grid, grid), and predicted IoUs, float32 (n, masks).

        size: height and width of the image. points: float (n, 2), x and y in pixels of the image, each for
        three masks (whole, part, part of a part); or boxes: float (n, 4), x0, y0, x1, y1, each for one.
        """
        height, width = self.resized(*size)
        scale = torch.tensor([width / size[1], height / size[0]])
        prompts = {} if points is None else {"input_points": (points * scale)[None, :, None]}
        if boxes is not None:
            prompts["input_boxes"] = (boxes * scale.repeat(2))[None]
        where = next(self.network.parameters()).device
        found = self.network(
            image_embeddings=embedding,
            multimask_output=boxes is None,
            **{name: each.float().to(where) for name, each in prompts.items()},
        )
        return found.pred_masks[0].float(), found.iou_scores[0].float()

    def frame(self, height: int, width: int, grid: int) -> GridFrame:
        """Return how logits (grid, grid) lie over an image of this size."""
        if self.kind != "sam":
            return GridFrame(axis(grid, height), axis(grid, width))
        rows, cols = self.resized(height, width)
        return GridFrame(axis(grid, height, (self.side, rows)), axis(grid, width, (self.side, cols)))
