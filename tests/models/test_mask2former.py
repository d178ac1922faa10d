"""Mask2Former: instances and label maps, trained, saved, loaded; its inference by a plain loop."""

from typing import Any

import pytest
import torch
from torch import Tensor

from segray.masks.rle import encode_grid_masks
from segray.models.mask2former import Mask2FormerInstances, Mask2FormerMaps
from segray.models.modelfile import ModelCard, SemanticCard, build_model, load_model_file, model_bytes

NARROW = {
    "embed_width": 8, "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "window": 4, "width": 64,
    "decoder_heads": 2, "feedforward": 64, "pixel_decoder_layers": 1, "decoder_layers": 2,
    "queries": 8, "points": 256, "detections_per_image": 5,
}  # fmt: skip
HALF = (0.5, 0.5, 0.5)
CARD = ModelCard("mask2former", NARROW, {3: "boat", 7: "quay"}, HALF, HALF, 64, 128)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return build_model(CARD)


def target(boxes: list[list[int]], height: int, width: int) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": corners, "labels": torch.arange(len(boxes)) % 2 + 1, "masks": masks}


def test_instances_are_learned_from_their_masks_also_where_an_image_has_none(model: Any) -> None:
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 96)]
    targets = [target([[4, 4, 30, 30], [20, 10, 60, 50]], 64, 64), target([], 64, 96)]
    optimiser = torch.optim.AdamW(model.train().parameters(), 1e-3)
    losses = []
    for _ in range(6):
        losses.append(model(images, targets)["loss_queries"])
        optimiser.zero_grad()
        losses[-1].backward()
        trained = [each for each in model.parameters() if each.requires_grad]
        assert all(each.grad is not None for each in trained), "DDP would wait for it"
        optimiser.step()
    assert losses[-1].item() < 0.9 * losses[0].item()


@torch.inference_mode()
def test_instances_by_the_paper_s_definition(model: Any) -> None:
    """Score: probability of the class times the mean probability inside the mask."""
    image = torch.rand(3, 48, 80)
    (found,) = model.eval()([image])
    assert isinstance(model, Mask2FormerInstances)
    batch, _ = model.transform([image])
    raw = model.network(pixel_values=batch.tensors)
    expected = []
    for classes, mask in zip(
        raw.class_queries_logits[0].softmax(-1), raw.masks_queries_logits[0], strict=True
    ):
        values = [value.sigmoid().item() for value in mask.flatten() if value > 0]
        for label in (1, 2):
            probability = classes[label - 1].item()
            expected.append((probability, label, probability * sum(values) / max(len(values), 1)))
    expected = sorted(expected, reverse=True)[:5]
    assert found["labels"].tolist() == [label for _, label, _ in expected]
    torch.testing.assert_close(found["scores"], torch.tensor([score for *_, score in expected]))
    rows, cols = found["masks"].shape[-2:]
    padded, inside = batch.tensors.shape[-2:], batch.image_sizes[0]
    assert (rows, cols) == (padded[0] // 4, padded[1] // 4)
    torch.testing.assert_close(found["extent"], torch.tensor([inside[0] / 4, inside[1] / 4]))
    extent = tuple(found["extent"].tolist())
    assert len(encode_grid_masks(found["masks"][:, 0].numpy(), 48, 80, extent).counts) == 5


@torch.inference_mode()
@pytest.mark.parametrize("outputs", [1, 3])
def test_label_maps_by_the_paper_s_definition(outputs: int) -> None:
    torch.manual_seed(1)
    names = tuple("abc"[: max(2, outputs)])
    network = build_model(
        SemanticCard("mask2former-semantic", NARROW, outputs, names, HALF, HALF, 64, "crop")
    ).eval()
    images = torch.rand(1, 3, 64, 32)
    logits = network(images)
    assert logits.shape == (1, outputs, 64, 32)
    assert isinstance(network.network, Mask2FormerMaps)
    raw = network.network.network(pixel_values=images)
    shares = torch.zeros(len(names), 16, 8)
    for classes, mask in zip(
        raw.class_queries_logits[0].softmax(-1), raw.masks_queries_logits[0], strict=True
    ):
        for number in range(len(names)):
            shares[number] += classes[number] * mask.sigmoid()
    logarithms = shares.log()
    expected = logarithms[1:] - logarithms[:1] if outputs == 1 else logarithms
    coarse = torch.nn.functional.interpolate(expected[None], (64, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, coarse, atol=1e-4, rtol=1e-4)
    assert network(torch.rand(2, 3, 33, 50)).shape == (2, outputs, 33, 50)


def test_the_first_row_of_the_classes_is_the_background(model: Any) -> None:
    """As of every instance model: then `--start-from` finds a class's weights by its name."""
    predictor = model.network.class_predictor
    queries = torch.rand(1, 4, 64)
    with torch.no_grad():
        plain = queries @ predictor.weight.T + predictor.bias
        assert torch.allclose(predictor(queries), plain[..., [1, 2, 0]], atol=1e-6)


def test_a_model_file_brings_it_back(model: Any) -> None:
    loaded = load_model_file(model_bytes(CARD, model.state_dict(), half=False))
    image = [torch.rand(3, 64, 64)]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(image), model.eval()(image))
    assert loaded.module.transform.min_size == (64,)
    assert not any("empty_weight" in name for name in model.state_dict())
