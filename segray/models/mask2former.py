"""Mask2Former (Cheng et al. 2022, https://arxiv.org/abs/2112.01527) on a Swin, through transformers.

One network for instances and label maps: queries, each with a class and a mask of the whole image. Instances
are trained with the paper's matching and losses. A label map's class has the sum of its queries' masks,
weighted by the class's probability (the paper's semantic inference), trained by the loss of the pixels.
transformers is imported when a network is built. It always computes in float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from segray.errors import SettingsError
from segray.models.any_size import any_size

STRIDE = 32
_LEAST = 1e-6
"""Below it a class's share of a pixel counts as this, before its logarithm."""


@dataclass(frozen=True)
class Mask2FormerSettings:
    """Settings of the architecture; a model file stores all of them. The defaults are the paper's Swin-T."""

    embed_width: int = 96
    """Channels of the Swin's first stage; each further stage has twice as many."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    width: int = 256
    """Channels of pixel decoder, queries and masks."""
    decoder_heads: int = 8
    feedforward: int = 2048
    """Channels between the layers of a block of the decoder; the pixel decoder has half of them."""
    pixel_decoder_layers: int = 6
    decoder_layers: int = 9
    queries: int = 100
    points: int = 12544
    """Points of a mask that its loss is computed at; instances alone."""
    detections_per_image: int = 100


class BackgroundFirst(nn.Linear):
    """A linear layer whose last output has the first row of its weights.

    transformers has "no object" last, a model file has the background first, as `start_weights` expects.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs, the first one last."""
        return super().forward(input).roll(-1, dims=-1)


class Mask2FormerInstances(nn.Module):
    """Mask2Former with the interface of torchvision's detectors; masks are on a grid of stride 4."""

    mask_frame = "grid"

    def __init__(self, network: nn.Module, detections_per_image: int) -> None:
        super().__init__()
        self.network, self.detections_per_image = network, detections_per_image
        self.transform = GeneralizedRCNNTransform(800, 1333, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def forward(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None) -> Any:
        """Return losses in training, else a dict an image: `labels`, `scores`, `masks`, `extent`.

        images: float (3, height, width) in 0..1; targets: as torchvision's, `masks` uint8 (n, height, width).
        Scores are the class's probability times the mean probability in its mask, as in the paper.
        """
        batch, targets = self.transform(list(images), None if targets is None else list(map(dict, targets)))
        with torch.autocast(batch.tensors.device.type, enabled=False):
            if self.training:
                assert targets is not None
                return {"loss_queries": self._loss(batch.tensors.float(), targets)}
            found = self.network(pixel_values=batch.tensors.float())
        pixels = batch.tensors.shape[-2:]
        return [
            self._instances(classes, masks, size, pixels)
            for classes, masks, size in zip(
                found.class_queries_logits, found.masks_queries_logits, batch.image_sizes, strict=True
            )
        ]

    def _loss(self, pixels: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        height, width = pixels.shape[-2:]
        masks = [
            pad(
                each["masks"].float(), (0, width - each["masks"].shape[2], 0, height - each["masks"].shape[1])
            )
            for each in targets
        ]
        labels = [each["labels"] - 1 for each in targets]
        loss: Tensor = self.network(pixel_values=pixels, mask_labels=masks, class_labels=labels).loss
        return loss

    def _instances(
        self, class_logits: Tensor, masks: Tensor, size: tuple[int, int], pixels: Sequence[int]
    ) -> dict[str, Tensor]:
        """Return the instances of one image of (height, width) `size` in a padded one of `pixels`."""
        probability = class_logits.softmax(-1)[:, :-1]
        number = min(self.detections_per_image, probability.numel())
        scores, places = probability.flatten().topk(number)
        masks = masks[places // probability.shape[1]]
        inside = masks > 0
        mean = (masks.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        share = [masks.shape[-2] * size[0] / pixels[0], masks.shape[-1] * size[1] / pixels[1]]
        return {
            "labels": places % probability.shape[1] + 1,
            "scores": scores * mean,
            "masks": (masks + 0.5)[:, None],
            "extent": torch.tensor(share),
        }


class Mask2FormerMaps(nn.Module):
    """Mask2Former as a semantic network: float (n, bands, h, w) to logits (n, outputs, h, w)."""

    def __init__(self, network: nn.Module, outputs: int) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithm of each class's share; for one output the log-odds of class 1.

        Height and width are multiples of 32.
        """
        with torch.autocast(images.device.type, enabled=False):
            found = self.network(pixel_values=images.float())
            classes = found.class_queries_logits.softmax(-1)[..., :-1]
            shares = torch.einsum("nqc,nqhw->nchw", classes, found.masks_queries_logits.sigmoid())
            logits = shares.clamp(min=_LEAST).log()
            if self.outputs == 1:
                logits = logits[:, 1:] - logits[:, :1]
            return nn.functional.interpolate(
                logits, size=images.shape[-2:], mode="bilinear", align_corners=False
            )


def build_mask2former_instances(
    classes: int, settings: Mask2FormerSettings, pretrained: bool = False
) -> Mask2FormerInstances:
    """Build the instance network with random weights, in training mode; `classes`: without background.

    Raises SettingsError if pretrained, and without transformers.
    """
    _refuse("mask2former", pretrained)
    network = _network(classes, 3, settings)
    unused = network.model.pixel_level_module.encoder.swin.layernorm  # DDP would wait for its gradient
    unused.requires_grad_(False)
    return Mask2FormerInstances(network, settings.detections_per_image).train()


def build_mask2former_maps(
    arch: str, bands: int, outputs: int, settings: Mapping[str, Any], pretrained: bool
) -> nn.Module:
    """Build the semantic network, see `build_semantic`. Raises SettingsError as the instance network's."""
    _refuse(arch, pretrained)
    network = _network(max(outputs, 2), bands, Mask2FormerSettings(**settings))
    return any_size(Mask2FormerMaps(network, outputs), STRIDE).train()


def _refuse(arch: str, pretrained: bool) -> None:
    if pretrained:
        raise SettingsError(f"{arch}: no pretrained weights are known; train without pretrained")


def _network(classes: int, bands: int, settings: Mask2FormerSettings) -> Any:
    """Return transformers' network; its first weights follow the seed."""
    try:
        import scipy.optimize  # noqa: F401 - transformers matches queries and masks with it
        import transformers
    except ImportError as error:
        raise SettingsError(
            "mask2former needs transformers and SciPy; install segray with its extra `sam`"
        ) from error
    swin = {
        "model_type": "swin", "num_channels": bands, "embed_dim": settings.embed_width,
        "depths": list(settings.depths), "num_heads": list(settings.heads), "window_size": settings.window,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=swin,
        feature_size=settings.width,
        mask_feature_size=settings.width,
        hidden_dim=settings.width,
        num_attention_heads=settings.decoder_heads,
        dim_feedforward=settings.feedforward,
        encoder_feedforward_dim=settings.feedforward // 2,
        encoder_layers=settings.pixel_decoder_layers,
        decoder_layers=settings.decoder_layers + 1,  # the last one of theirs is the prediction alone
        num_queries=settings.queries,
        train_num_points=settings.points,
        num_labels=classes,  # type: ignore[call-arg]
    )
    network: Any = transformers.Mask2FormerForUniversalSegmentation(config)
    predictor = BackgroundFirst(settings.width, classes + 1)
    predictor.load_state_dict(network.class_predictor.state_dict())
    network.class_predictor = predictor
    weights = network.criterion.empty_weight
    network.criterion.register_buffer("empty_weight", weights, persistent=False)  # a setting, not learned
    return network
