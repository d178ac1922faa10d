"""A model with the interface of torchvision's detectors: of a model file, or a user's own callable."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segray.annotate.detector import Detections, padded_size
from segray.errors import JobFailedError
from segray.masks.interpolation import THRESHOLD
from segray.masks.rle import MaskFrame
from segray.models.device import Precision, arithmetic
from segray.models.resize import has_known_sizes

MOST_PIXELS = 2**30
"""A box coordinate beyond this is a fault of the model."""


class CustomDetector:
    """Calls the model with a list of (3, height, width) float32 images in 0..1 on the device.

    It returns a dict per image: `boxes` (n, 4) as x0, y0, x1, y1 in pixels, `labels` (n,), `scores` (n,),
    `masks` as its attribute `mask_frame` says:

        roi     (n, 1, m, m), relative to the boxes
        image   (n, 1, height, width), bool, or numbers that are the instance's above 0.5
        grid    (n, 1, rows, cols), numbers on a coarse grid over the image, the instance's above 0.5 after
                bilinear interpolation; with `extent` (2,), the rows and columns of the grid that the image
                takes up (the rest is padding), else all; see `encode_grid_masks`

    Without the attribute: `image` if the size is the image's, else `roi`. `boxes` may be left out, but for
    `roi`: they are then the masks', of a grid's to whole cells. A model with the attribute `image_dtype`
    torch.uint8 gets the raw pixels, 0..255, in memory that is reused for the next call.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        device: torch.device,
        score_threshold: float,
        precision: Precision = "fp32",
    ) -> None:
        """Store the model; precision: in which it is called (autocast); a user's own chooses itself."""
        self.precision = precision
        self.model = model.eval().to(device) if isinstance(model, torch.nn.Module) else model
        self.name, self.device, self.score_threshold = name, device, score_threshold
        self.takes_bytes = getattr(model, "image_dtype", torch.float32) == torch.uint8
        self._rooms: list[Tensor] = []
        self.frame: MaskFrame | None = getattr(model, "mask_frame", None)
        if self.frame not in (None, *get_args(MaskFrame)):
            known = ", ".join(map(repr, get_args(MaskFrame)))
            raise JobFailedError(f"{name}: mask_frame is {self.frame!r}, not one of {known}")

    def batch_key(self, height: int, width: int) -> tuple[int, int]:
        """Return the size in the network, or the image's; only images of one key may share a batch."""
        transform = getattr(self.model, "transform", None)
        if has_known_sizes(transform):
            return padded_size(transform, height, width)
        return height, width

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Return detections above the threshold of each image (height, width, 3) uint8.

        Raises JobFailedError where the model's results break its interface, ValueError where they have the
        right form but impossible numbers: that may be one image's fault.
        """
        with arithmetic(self.device, self.precision):
            answer = self.model([self._tensor(place, image) for place, image in enumerate(images)])
        if not isinstance(answer, list | tuple) or len(answer) != len(images):
            raise JobFailedError(f"{self.name}: returned for {len(images)} images {_kind(answer)}")
        return [self._detections(each, image) for each, image in zip(answer, images, strict=True)]

    def _tensor(self, place: int, image: NDArray[np.uint8]) -> Tensor:
        """Return an image as the model's input; `place`: its index in the batch."""
        with warnings.catch_warnings():  # about read-only memory: it is copied below, as a model may write
            warnings.simplefilter("ignore")
            pixels = torch.from_numpy(image)
        if not self.takes_bytes:
            return pixels.to(self.device).permute(2, 0, 1).float().div_(255)
        room = self._room(place, image.size).view(image.shape)
        if room.is_cpu:  # by numpy: torch's copy wakes all its threads, which then wait for more, awake
            np.copyto(room.numpy(), image)
        else:
            room.copy_(pixels)
        return room.permute(2, 0, 1)

    def _room(self, place: int, size: int) -> Tensor:
        """Return reused memory: fresh memory for each image would cost more in page faults than the copy."""
        if place == len(self._rooms):
            self._rooms.append(torch.empty(0, dtype=torch.uint8, device=self.device))
        if self._rooms[place].numel() < size:
            self._rooms[place] = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._rooms[place][:size]

    def _detections(self, answer: Any, image: NDArray[np.uint8]) -> Detections:
        scores, labels, masks = (self._array(answer, key) for key in ("scores", "labels", "masks"))
        n, size = len(scores), (image.shape[0], image.shape[1])
        frame = self.frame or ("image" if n == 0 or masks.shape[2:] == size else "roi")
        self._expect(scores.shape == (n,), "scores: (n,)", scores)
        self._expect(labels.shape == (n,) and labels.dtype.kind in "iu", "labels: (n,), integers", labels)
        if n == 0:  # whatever the other dimensions are
            masks, frame = np.zeros((0, 1, *size), bool), "image"
        masks = self._masks(masks, frame, n, size)
        extent = self._extent(answer, masks) if frame == "grid" else None
        if n == 0 or (frame != "roi" and answer.get("boxes") is None):
            boxes = boxes_of(masks[:, 0], size, extent)
        else:
            boxes = self._boxes(self._array(answer, "boxes"), n)
        if not np.isfinite(scores).all():
            raise ValueError("a score is not finite")
        keep = scores > self.score_threshold
        return Detections(
            boxes=boxes[keep],
            scores=scores[keep].astype(np.float32),
            labels=labels[keep].astype(np.int64),
            masks=masks[keep, 0],
            frame=frame,
            extent=extent,
        )

    def _boxes(self, boxes: NDArray[Any], n: int) -> NDArray[np.float32]:
        self._expect(boxes.shape == (n, 4), "boxes: (n, 4)", boxes)
        if not _are_boxes(boxes):
            raise ValueError("a box is not finite, or not x0 <= x1, y0 <= y1")
        return boxes.astype(np.float32)

    def _masks(self, masks: NDArray[Any], frame: MaskFrame, n: int, size: tuple[int, int]) -> NDArray[Any]:
        if frame == "image":
            self._expect(masks.shape == (n, 1, *size), f"masks: (n, 1, {size[0]}, {size[1]})", masks)
            return masks
        if frame == "grid":
            is_grid = masks.ndim == 4 and masks.shape[:2] == (n, 1) and masks.size > 0
            self._expect(is_grid, "masks: (n, 1, rows, cols)", masks)
        else:
            self._expect(masks.shape == (n, 1, *masks.shape[-1:] * 2), "masks: (n, 1, m, m)", masks)
        return masks.astype(np.float32, copy=False)

    def _extent(self, answer: Any, masks: NDArray[Any]) -> tuple[float, float] | None:
        if answer.get("extent") is None:
            return None
        extent = self._array(answer, "extent")
        cells = masks.shape[2:]
        fits = extent.shape == (2,) and bool((extent > 0).all() and (extent <= cells).all())
        self._expect(fits, f"extent: (2,), above 0, at most {cells}", extent)
        return float(extent[0]), float(extent[1])

    def _array(self, answer: Any, key: str) -> NDArray[Any]:
        if not isinstance(answer, Mapping) or not isinstance(answer.get(key), Tensor):
            raise JobFailedError(f"{self.name}: the model's result has no tensor {key!r}: {_kind(answer)}")
        tensor: Tensor = answer[key].detach()
        array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
        return np.atleast_1d(array)

    def _expect(self, fulfilled: Any, what: str, given: NDArray[Any]) -> None:
        if not fulfilled:
            raise JobFailedError(
                f"{self.name}: the model must give {what}; it gave {given.dtype} {given.shape}"
            )


def boxes_of(
    masks: NDArray[Any], size: tuple[int, int], extent: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """Return the boxes (n, 4) of masks (n, rows, cols) over an image, x0, y0, x1, y1 in its pixels.

    size: height and width of the image; extent: as in `encode_grid_masks`. A box is that of the cells above
    0.5, clipped to the image; all zeros where there are none.
    """
    above = masks if masks.dtype == bool else masks > THRESHOLD
    ends = []
    for axis, pixels, covered in zip((2, 1), size, extent or masks.shape[1:], strict=True):
        line = np.atleast_2d(above.any(axis=axis))
        bounds = np.stack([line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)], axis=1)
        ends.append(np.minimum(bounds * line.any(axis=1, keepdims=True) * (pixels / covered), pixels))
    rows, cols = ends
    return np.stack([cols[:, 0], rows[:, 0], cols[:, 1], rows[:, 1]], axis=1).astype(np.float32)


def _are_boxes(boxes: NDArray[Any]) -> bool:
    ordered = (boxes[:, :2] <= boxes[:, 2:]).all()
    return bool(ordered and (np.abs(boxes) < MOST_PIXELS).all())


def _kind(answer: Any) -> str:
    if isinstance(answer, Mapping):
        return f"keys {', '.join(map(str, answer))}"
    return f"{type(answer).__name__}" + (f" of {len(answer)}" if isinstance(answer, Sequence) else "")
