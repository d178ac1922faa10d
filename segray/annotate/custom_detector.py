"""A custom model: any callable with the interface of torchvision's detectors."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segray.annotate.detector import Detections
from segray.errors import JobFailedError
from segray.models.device import arithmetic

MOST_PIXELS = 2**30
"""A box coordinate beyond this is a fault of the model."""


class CustomDetector:
    """Calls the model with a list of (3, height, width) float32 images in 0..1 on the device.

    It returns a dict per image: `boxes` (n, 4) as x0, y0, x1, y1 in pixels, `labels` (n,), `scores` (n,),
    `masks` (n, 1, height, width) of the whole image, or (n, 1, m, m) relative to the boxes: the latter if the
    size is not the image's, or as its attribute `mask_frame` says ('roi' or 'image'). It chooses its own
    precision. A model with the attribute `image_dtype` torch.uint8 gets the raw pixels, 0..255, in memory
    that is reused for the next call.
    """

    def __init__(self, model: Any, name: str, device: torch.device, score_threshold: float) -> None:
        self.model = model.eval().to(device) if isinstance(model, torch.nn.Module) else model
        self.name, self.device, self.score_threshold = name, device, score_threshold
        self.takes_bytes = getattr(model, "image_dtype", torch.float32) == torch.uint8
        self._rooms: list[Tensor] = []
        self.frame: Literal["roi", "image"] | None = getattr(model, "mask_frame", None)
        if self.frame not in (None, "roi", "image"):
            raise JobFailedError(f"{name}: mask_frame is {self.frame!r}, not 'roi' or 'image'")

    def batch_key(self, height: int, width: int) -> tuple[int, int]:
        """Return the size: only images of one size share a batch."""
        return height, width

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Return detections above the threshold of each image (height, width, 3) uint8.

        Raises JobFailedError where the model's results break its interface, ValueError where they have the
        right form but impossible numbers: that may be one image's fault.
        """
        with arithmetic(self.device, "fp32"):
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
        scores, labels, boxes, masks = (
            self._array(answer, key) for key in ("scores", "labels", "boxes", "masks")
        )
        n, (height, width) = len(scores), image.shape[:2]
        if n == 0:  # whatever their other dimensions are
            boxes, masks = np.zeros((0, 4)), np.zeros((0, 1, height, width), bool)
        frame = self.frame or ("image" if masks.shape[2:] == (height, width) else "roi")
        self._expect(scores.shape == (n,), "scores: (n,)", scores)
        self._expect(labels.shape == (n,) and labels.dtype.kind in "iu", "labels: (n,), integers", labels)
        self._expect(boxes.shape == (n, 4), "boxes: (n, 4)", boxes)
        if not np.isfinite(scores).all():
            raise ValueError("a score is not finite")
        if not _are_boxes(boxes):
            raise ValueError("a box is not finite, or not x0 <= x1, y0 <= y1")
        if frame == "image":
            self._expect(masks.shape == (n, 1, height, width), f"masks: (n, 1, {height}, {width})", masks)
        else:
            self._expect(masks.shape == (n, 1, *masks.shape[-1:] * 2), "masks: (n, 1, m, m)", masks)
            masks = masks.astype(np.float32)
        keep = scores > self.score_threshold
        return Detections(
            boxes=boxes[keep].astype(np.float32),
            scores=scores[keep].astype(np.float32),
            labels=labels[keep].astype(np.int64),
            masks=masks[keep, 0],
            frame=frame,
        )

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


def _are_boxes(boxes: NDArray[Any]) -> bool:
    ordered = (boxes[:, :2] <= boxes[:, 2:]).all()
    return bool(ordered and (np.abs(boxes) < MOST_PIXELS).all())


def _kind(answer: Any) -> str:
    if isinstance(answer, Mapping):
        return f"keys {', '.join(map(str, answer))}"
    return f"{type(answer).__name__}" + (f" of {len(answer)}" if isinstance(answer, Sequence) else "")
