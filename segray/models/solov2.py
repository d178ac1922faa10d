"""SOLOv2 (Wang et al. 2020, https://arxiv.org/abs/2003.10152): masks by dynamic kernels, without boxes.

Each level of a feature pyramid is seen as a grid of S x S cells. The cell in which an instance's centre lies
predicts its category and a 1 x 1 kernel; the kernel over one map of mask features of the whole image, at
stride 4, gives the instance's mask. Formulas and constants are the paper's and its authors' code's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, pad
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import sigmoid_focal_loss

from segray.models.encoder_maskrcnn import EncoderPyramid
from segray.models.timm_encoder import Norm, timm_encoder

STRIDE = 4
"""Of the mask features, in pixels of the resized image."""
CENTRE = 0.2
"""Side of the region around the centre of mass, as a share of the box, whose cells are the instance's."""
DICE_WEIGHT = 3.0
SIGMA = 2.0
"""Of Matrix NMS: a mask is decayed by exp(-SIGMA * IoU^2)."""
_GROUPS = 32


@dataclass(frozen=True)
class SOLOv2Settings:
    """The architecture in plain numbers; a model file stores every one of them."""

    norm: Norm = "batch"
    """Norm of the encoder: frozen statistics suit small batches, but only with pretrained weights."""
    fpn_width: int = 256
    grids: tuple[int, ...] = (40, 36, 24, 16, 12)
    """S of each level, from stride 4 to 64."""
    scales: tuple[tuple[int, int], ...] = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    """Instances of each level, by the root of their box's area, in pixels of the resized image."""
    head_width: int = 512
    head_depth: int = 4
    mask_width: int = 128
    kernel_width: int = 256
    """Channels of the mask features, and numbers of a kernel."""
    candidates: int = 500
    """Cells of an image whose masks are computed."""
    least_score: float = 0.1
    """Category score from which a cell is a candidate."""
    detections_per_image: int = 100


@dataclass(frozen=True, slots=True)
class Targets:
    """What the cells of one level are to predict of an image."""

    category: Tensor
    """(S, S) int64; 0: background."""
    instance: Tensor
    """(S, S) int64 index of the instance; -1: none."""


def build_solov2(encoder: str, classes: int, settings: SOLOv2Settings, pretrained: bool = False) -> "SOLOv2":
    """Build the network in training mode, with random weights around the encoder (see `timm_encoder`).

    `classes` counts the categories without background. Raises ValueError for settings out of range,
    SettingsError for an encoder that does not fit and weights that are not to be had.
    """
    if len(settings.grids) != 5 or len(settings.scales) != 5:
        raise ValueError("grids and scales are of five levels")
    body = timm_encoder(encoder, settings.norm, pretrained=pretrained)
    return SOLOv2(EncoderPyramid(body, settings.fpn_width, has_norm=False, levels=5), classes, settings)


class SOLOv2(nn.Module):
    """The network, called as torchvision's detectors; see `ModelFile.module`."""

    mask_frame = "grid"

    def __init__(self, backbone: nn.Module, classes: int, settings: SOLOv2Settings) -> None:
        super().__init__()
        self.transform = GeneralizedRCNNTransform(800, 1333, [0.5] * 3, [0.5] * 3)
        self.backbone, self.settings = backbone, settings
        width, depth = settings.head_width, settings.head_depth
        self.category_head = _head(settings.fpn_width, width, depth)
        self.kernel_head = _head(settings.fpn_width + 2, width, depth)
        self.category = nn.Conv2d(width, classes, 3, padding=1)
        self.kernel = nn.Conv2d(width, settings.kernel_width, 3, padding=1)
        self.masks = MaskFeatures(settings.fpn_width, settings.mask_width, settings.kernel_width)
        for layer in (self.category, self.kernel):
            nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(self.kernel.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.category.bias, -math.log(99))  # type: ignore[arg-type]  # a probability of 0.01

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Return losses in training, else a dict an image: `labels`, `scores`, `masks`, `extent`.

        images: float (3, h, w) in 0..1; targets: `boxes`, `labels` and `masks` of each. Under autocast only
        the layers are in low precision: targets, losses, masks and Matrix NMS are computed in float32.
        """
        batch, targets = self.transform(images, targets)
        maps = list(self.backbone(batch.tensors).values())
        features = self.masks(maps[:4]).float()
        levels = [self._cells(each, side) for each, side in zip(maps, self.settings.grids, strict=True)]
        with torch.autocast(features.device.type, enabled=False):  # float16 cannot hold a sum of rows
            if self.training:
                assert targets is not None
                return self._losses(levels, features, targets)
            categories = torch.cat([_peaks(each.sigmoid()).flatten(2) for each, _ in levels], 2)
            kernels = torch.cat([each.flatten(2) for _, each in levels], 2)
            found = [self._found(*each) for each in zip(categories, kernels, features, strict=True)]
        for each, size in zip(found, batch.image_sizes, strict=True):
            each["extent"] = torch.tensor(size, dtype=torch.float32) / STRIDE
        return found

    def _cells(self, level: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes, side, side) and kernels (n, kernel_width, side, side) of a level."""
        size = (side, side)
        grid = interpolate(with_coordinates(level), size=size, mode="bilinear", align_corners=False)
        kernels = self.kernel(self.kernel_head(grid))
        return self.category(self.category_head(grid[:, :-2])).float(), kernels.float()

    def _losses(
        self, levels: Sequence[tuple[Tensor, Tensor]], features: Tensor, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the focal loss of the categories and the Dice loss of the masks, scalars."""
        height, width = (STRIDE * each for each in features.shape[2:])
        focal, dice, positives = [], [], 0
        for image, target in enumerate(targets):
            wanted = coverage(target["masks"], height, width)
            cells = assign(target, (height, width), self.settings)
            for (logits, kernels), cell in zip(levels, cells, strict=True):
                one_hot = torch.zeros_like(logits[image])
                there = cell.category > 0
                one_hot[cell.category[there] - 1, there.nonzero()[:, 0], there.nonzero()[:, 1]] = 1
                focal.append(sigmoid_focal_loss(logits[image], one_hot, alpha=0.25, gamma=2, reduction="sum"))
                if there.any():
                    masks = dynamic_masks(kernels[image][:, there].T, features[image])
                    dice.append(dice_loss(masks, wanted[cell.instance[there]]))
                    positives += int(there.sum())
        nothing = 0 * (features.sum() + sum(each.sum() for _, each in levels))  # all weights get a gradient
        return {
            "category": torch.stack(focal).sum() / (positives + 1),
            "mask": DICE_WEIGHT * torch.cat([*dice, nothing[None]]).sum() / max(positives, 1),
        }

    def _found(self, categories: Tensor, kernels: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Return the detections of an image: categories (classes, cells), kernels (kernel_width, cells)."""
        label, cell = (categories > self.settings.least_score).nonzero(as_tuple=True)
        scores = categories[label, cell]
        best = scores.argsort(descending=True)[: self.settings.candidates]
        label, cell, scores = label[best], cell[best], scores[best]
        masks = dynamic_masks(kernels[:, cell].T, features)
        inside = masks > 0.5
        area = inside.sum((1, 2))
        scores = scores * (masks * inside).sum((1, 2)) / area.clamp(min=1)  # how sure the mask itself is
        kept = (area > 0).nonzero()[:, 0]
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
        scores = scores[kept] * matrix_nms(inside[kept], label[kept])
        best = scores.argsort(descending=True)[: self.settings.detections_per_image]
        chosen = kept[best]
        return {"labels": label[chosen] + 1, "scores": scores[best], "masks": masks[chosen, None]}


class MaskFeatures(nn.Module):
    """The maps at strides 4 to 32, summed at stride 4: (n, width_out, h / 4, w / 4)."""

    def __init__(self, width_in: int, width: int, width_out: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList([nn.Sequential(_conv(width_in, width))])
        for level in (1, 2, 3):
            first = width_in + 2 * (level == 3)  # the coarsest level is told where it is
            self.levels.append(
                nn.Sequential(*(_conv(first if number == 0 else width, width) for number in range(level)))
            )
        self.out = _conv(width, width_out, kernel=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the sum; each convolution of a coarser level is followed by enlarging to twice the size."""
        total: Tensor = self.levels[0](maps[0])
        for level, (branch, each) in enumerate(zip(list(self.levels)[1:], maps[1:], strict=True), start=1):
            each = with_coordinates(each) if level == 3 else each
            for layer in branch:  # type: ignore[attr-defined]
                each = interpolate(layer(each), scale_factor=2, mode="bilinear", align_corners=False)
            total = total + each
        result: Tensor = self.out(total)
        return result


def with_coordinates(features: Tensor) -> Tensor:
    """Return the map (n, c, h, w) with two more channels: x and y of each place, from -1 to 1 (CoordConv)."""
    n, _, height, width = features.shape
    y, x = (
        torch.linspace(-1, 1, size, device=features.device, dtype=features.dtype) for size in (height, width)
    )
    more = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1])
    return torch.cat([features, more.expand(n, -1, -1, -1)], 1)


def dynamic_masks(kernels: Tensor, features: Tensor) -> Tensor:
    """Return probabilities (k, h, w): kernels (k, c), 1 x 1, over features (c, h, w)."""
    return torch.einsum("kc,chw->khw", kernels, features).sigmoid()


def dice_loss(masks: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 - 2 sum(p q) / (sum(p^2) + sum(q^2)) of each mask, (k,), from p and q, (k, h, w)."""
    p, q = masks.flatten(1), wanted.flatten(1)
    return 1 - 2 * (p * q).sum(1) / ((p * p).sum(1) + (q * q).sum(1) + 1e-4)


def coverage(masks: Tensor, height: int, width: int) -> Tensor:
    """Return which share of each cell of STRIDE pixels a mask covers: uint8 (n, h, w) to (n, rows, cols).

    height, width: of the padded image. The paper's targets are 0 and 1; shares keep instances of few cells.
    """
    rows, cols = height // STRIDE, width // STRIDE
    if len(masks) == 0:
        return torch.zeros(0, rows, cols, device=masks.device)
    whole = pad(masks.float(), (0, width - masks.shape[2], 0, height - masks.shape[1]))
    return avg_pool2d(whole[:, None], STRIDE)[:, 0]


def assign(target: dict[str, Tensor], size: tuple[int, int], settings: SOLOv2Settings) -> list[Targets]:
    """Return what the cells of each level are to predict: those that an instance's centre region touches.

    The region is CENTRE of its box, around its centre of mass, at most 3 x 3 cells (section 3.3). size: of
    the padded image. Of several instances a cell is the smallest one's.
    """
    boxes, masks = target["boxes"].float(), target["masks"].float()
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    scale = sides.prod(1).sqrt()
    centres = _centres(masks)
    found = []
    for grid, (least, most) in zip(settings.grids, settings.scales, strict=True):
        category = torch.zeros(grid, grid, dtype=torch.int64, device=boxes.device)
        instance = torch.full_like(category, -1)
        chosen = ((scale >= least) & (scale <= most)).nonzero()[:, 0]
        for index in chosen[scale[chosen].argsort(descending=True, stable=True)].tolist():
            rows, cols = (
                _span(float(centres[index, axis]), float(sides[index, 1 - axis]), size[axis], grid)
                for axis in (0, 1)
            )
            category[rows, cols] = target["labels"][index]
            instance[rows, cols] = index
        found.append(Targets(category, instance))
    return found


def matrix_nms(masks: Tensor, labels: Tensor) -> Tensor:
    """Return the factor of each score, (n,), from bool masks (n, h, w) in descending order of their scores.

    decay_j = min over i < j of the same label of f(IoU_ij) / f(max over k < i of IoU_ki), with the Gaussian
    f(x) = exp(-SIGMA x^2) (section 3.4, equation 4).
    """
    flat = masks.flatten(1).float()
    if len(flat) == 0:
        return flat.new_zeros(0)
    shared = flat @ flat.T
    area = flat.sum(1)
    iou = shared / (area[:, None] + area - shared).clamp(min=1)
    iou = (iou * (labels[:, None] == labels)).triu(diagonal=1)
    most = iou.max(0).values[:, None]
    decay = torch.exp(-SIGMA * (iou**2 - most**2))
    return torch.where(iou > 0, decay, 1.0).min(0).values


def _head(width_in: int, width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(_conv(width if number else width_in, width) for number in range(depth)))


def _conv(width_in: int, width: int, kernel: int = 3) -> nn.Sequential:
    norm = nn.GroupNorm(math.gcd(width, _GROUPS), width)
    conv = nn.Conv2d(width_in, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, norm, nn.ReLU(inplace=True))


def _peaks(scores: Tensor) -> Tensor:
    """Return the scores (n, classes, S, S), 0 where a neighbour above or to the left, or both, is higher."""
    highest = max_pool2d(scores, 2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (highest == scores)


def _centres(masks: Tensor) -> Tensor:
    """Return the centre of mass of each mask (n, h, w): row and column, (n, 2)."""
    total = masks.sum((1, 2)).clamp(min=1)
    places = [torch.arange(size, device=masks.device, dtype=torch.float32) for size in masks.shape[1:]]
    rows, cols = masks.sum(2) @ places[0], masks.sum(1) @ places[1]
    return torch.stack([rows, cols], 1) / total[:, None]


def _span(centre: float, side: float, size: int, grid: int) -> slice:
    """Return the cells along one axis."""
    cell = int(centre / size * grid)
    first, last = (int((centre + sign * CENTRE * side / 2) / size * grid) for sign in (-1, 1))
    return slice(max(first, cell - 1, 0), min(last, cell + 1, grid - 1) + 1)
