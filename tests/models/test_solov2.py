"""SOLOv2 against a second one, written plainly after its paper: one cell, one pair, one pixel at a time."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from segray.annotate.predictor import Predictor
from segray.masks.rle import encode_grid_masks
from segray.models import solov2
from segray.models.architectures import complete_settings
from segray.models.modelfile import ModelCard, build_model, load_model_file, model_bytes
from segray.models.solov2 import SOLOv2Settings, assign, coverage, matrix_nms
from segray.models.weights import LoadedModel
from tests.bulk.pictures import decoded, picture_row

NARROW = {
    "fpn_width": 16, "grids": (12, 10, 8, 6, 4),
    "scales": ((1, 24), (16, 48), (32, 96), (64, 192), (128, 512)),
    "head_width": 16, "head_depth": 2, "mask_width": 8, "kernel_width": 8, "least_score": 0.01,
}  # fmt: skip


def card(**settings: Any) -> ModelCard:
    arch = "solov2:mobilenetv3_small_050"
    complete = complete_settings(arch, NARROW | settings)
    return ModelCard(arch, complete, {1: "a", 2: "b"}, (0.5,) * 3, (0.25,) * 3, 64, 128)


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = build_model(card())
    nn.init.normal_(model.category.weight, std=0.5)
    nn.init.normal_(model.kernel.weight, std=0.5)
    return model


def plain_conv(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.0.weight"]
    x = functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
    groups = math.gcd(weight.shape[0], 32)
    parts = x.view(groups, -1)
    parts = (parts - parts.mean(1, keepdim=True)) / (parts.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    x = (
        parts.view(x.shape) * state[f"{name}.1.weight"][:, None, None]
        + state[f"{name}.1.bias"][:, None, None]
    )
    return x.clamp(min=0)


def plain_coordinates(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    more = torch.zeros(1, 2, height, width)
    for row in range(height):
        for col in range(width):
            more[0, 0, row, col] = -1 + 2 * col / (width - 1) if width > 1 else -1
            more[0, 1, row, col] = -1 + 2 * row / (height - 1) if height > 1 else -1
    return torch.cat([x, more], 1)


def grown(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def plain_mask_features(state: dict[str, Tensor], maps: list[Tensor]) -> Tensor:
    total = plain_conv(state, "masks.levels.0.0", maps[0])
    total = total + grown(plain_conv(state, "masks.levels.1.0", maps[1]))
    third = grown(plain_conv(state, "masks.levels.2.0", maps[2]))
    total = total + grown(plain_conv(state, "masks.levels.2.1", third))
    fourth = grown(plain_conv(state, "masks.levels.3.0", plain_coordinates(maps[3])))
    fourth = grown(plain_conv(state, "masks.levels.3.1", fourth))
    total = total + grown(plain_conv(state, "masks.levels.3.2", fourth))
    return plain_conv(state, "masks.out", total)[0]


def plain_nms(masks: list[Tensor], labels: list[int]) -> list[float]:
    """Matrix NMS as the loop of the paper: masks in descending order of scores."""

    def iou(i: int, j: int) -> float:
        union = int((masks[i] | masks[j]).sum())
        same = labels[i] == labels[j] and union > 0
        return int((masks[i] & masks[j]).sum()) / union if same else 0.0

    decays = []
    for j in range(len(masks)):
        decay = 1.0
        for i in range(j):
            most = max((iou(k, i) for k in range(i)), default=0.0)
            if iou(i, j) > 0:
                decay = min(decay, math.exp(-(iou(i, j) ** 2) / 0.5) / math.exp(-(most**2) / 0.5))
        decays.append(decay)
    return decays


def plain(model: Any, image: Tensor) -> list[tuple[float, int, Tensor]]:
    """Return score, label and probabilities of every detection of an image, from the best down."""
    state, chosen = dict(model.state_dict()), model.settings
    pixels = ((image - 0.5) / 0.25)[None]
    pyramid = list(
        model.backbone(functional.pad(pixels, (0, -image.shape[2] % 32, 0, -image.shape[1] % 32))).values()
    )
    features = plain_mask_features(state, pyramid[:4])
    cells: list[tuple[float, int, Tensor]] = []
    for level, side in zip(pyramid, chosen.grids, strict=True):
        grid = functional.interpolate(plain_coordinates(level), size=(side, side), mode="bilinear")
        kernels, scores = grid, grid[:, :-2]
        for number in range(chosen.head_depth):
            kernels = plain_conv(state, f"kernel_head.{number}", kernels)
            scores = plain_conv(state, f"category_head.{number}", scores)
        kernels = functional.conv2d(kernels, state["kernel.weight"], state["kernel.bias"], padding=1)[0]
        scores = functional.conv2d(scores, state["category.weight"], state["category.bias"], padding=1)[
            0
        ].sigmoid()
        for label in range(len(scores)):
            for row in range(side):
                for col in range(side):
                    before = scores[label, max(row - 1, 0) : row + 1, max(col - 1, 0) : col + 1]
                    score = float(scores[label, row, col])
                    if score > chosen.least_score and score >= float(before.max()):
                        cells.append((score, label + 1, kernels[:, row, col]))
    cells = sorted(cells, key=lambda each: -each[0])[: chosen.candidates]
    found = []
    for score, label, kernel in cells:
        mask = (kernel[:, None, None] * features).sum(0).sigmoid()
        if (mask > 0.5).any():
            found.append((score * float(mask[mask > 0.5].mean()), label, mask))
    found.sort(key=lambda each: -each[0])
    decays = plain_nms([mask > 0.5 for _, _, mask in found], [label for _, label, _ in found])
    decayed = [
        (score * decay, label, mask) for (score, label, mask), decay in zip(found, decays, strict=True)
    ]
    return sorted(decayed, key=lambda each: -each[0])[: chosen.detections_per_image]


def test_the_same_weights_give_the_same_output() -> None:
    model = network().eval()
    model.settings = SOLOv2Settings(**{**complete_settings("solov2:resnet50", NARROW), "candidates": 40})
    image = torch.rand(3, 64, 90, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        (found,), expected = model([image]), plain(model, image)
    assert len(expected) > 10
    assert len({label for _, label, _ in expected}) == 2
    assert found["labels"].tolist() == [label for _, label, _ in expected]
    torch.testing.assert_close(found["scores"], torch.tensor([score for score, _, _ in expected]))
    torch.testing.assert_close(found["masks"][:, 0], torch.stack([mask for _, _, mask in expected]))
    assert found["extent"].tolist() == [16, 22.5]


def test_matrix_nms_is_the_loop_of_the_paper() -> None:
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(30, 1, 3, 3, generator=random)
    masks = functional.interpolate(coarse, size=(12, 12), mode="bilinear")[:, 0] > 0.45
    labels = torch.randint(1, 3, (30,), generator=random)
    expected = plain_nms(list(masks), labels.tolist())
    assert min(expected) < 0.5 < max(expected[1:])
    torch.testing.assert_close(matrix_nms(masks, labels), torch.tensor(expected))


def disks(size: int, places: list[tuple[int, int, int]]) -> dict[str, Tensor]:
    """Return targets: disks at (row, col) with a radius, of alternating labels."""
    rows, cols = np.mgrid[:size, :size]
    masks = np.stack([(rows - r) ** 2 + (cols - c) ** 2 <= radius**2 for r, c, radius in places])
    boxes = [[c - radius, r - radius, c + radius, r + radius] for r, c, radius in places]
    labels = [1 + number % 2 for number in range(len(places))]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels),
        "masks": torch.from_numpy(masks.astype(np.uint8)),
    }


def test_cells_are_assigned_as_by_a_plain_loop() -> None:
    settings = SOLOv2Settings()
    places = [(100, 100, 60), (110, 95, 30), (20, 200, 15), (180, 60, 45), (128, 128, 120), (250, 250, 3)]
    target, size = disks(256, places), 256
    found = assign(target, (size, size), settings)
    for level, (side, (least, most)) in enumerate(zip(settings.grids, settings.scales, strict=True)):
        expected = np.zeros((side, side), int)
        owner_scale = np.full((side, side), np.inf)
        for label, (row, col, radius), mask in zip(
            target["labels"].tolist(), places, target["masks"], strict=True
        ):
            if not least <= 2 * radius <= most:
                continue
            ys, xs = np.nonzero(mask.numpy())
            assert (abs(ys.mean() - row), abs(xs.mean() - col)) < (3, 3)
            for y in range(side):
                for x in range(side):
                    near = all(
                        abs(cell - int(centre / size * side)) <= 1
                        and int((centre - 0.2 * radius) / size * side) <= cell
                        and cell <= int((centre + 0.2 * radius) / size * side)
                        for cell, centre in ((y, ys.mean()), (x, xs.mean()))
                    )
                    if near and radius < owner_scale[y, x]:
                        expected[y, x], owner_scale[y, x] = label, radius
        np.testing.assert_array_equal(found[level].category.numpy(), expected)
        owned = found[level].instance >= 0
        assert torch.equal(target["labels"][found[level].instance[owned]], found[level].category[owned])
    assert all(each.category.any() for each in found[:3])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_targets_and_nms_are_in_float32_under_autocast(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any, Any]] = []

    def watched(function: Any) -> Any:
        def call(*given: Any) -> Any:
            seen.append((function, given, function(*given)))
            return seen[-1][2]

        return call

    for function in (assign, matrix_nms):
        monkeypatch.setattr(solov2, function.__name__, watched(function))
    model = network()
    model.transform._skip_resize = True
    target = disks(960, [(64, 410, 30), (70, 924, 31)])
    target["masks"] = target["masks"][:, :128]
    image = torch.rand(3, 128, 960, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", kind):
        losses = model([image], [target])
    assert all(each.isfinite() and each.dtype == torch.float32 for each in losses.values())
    with torch.inference_mode(), torch.autocast("cpu", kind):
        model.eval()([image[:, :, :96]])
    (_, given, cells), (_, of_nms, factors) = seen
    for found, expected in zip(cells, assign(*given), strict=True):
        assert torch.equal(found.category, expected.category)
    assert len(factors) > 20
    assert torch.equal(factors, matrix_nms(*of_nms))


def test_targets_come_back_through_the_grid() -> None:
    target = disks(64, [(20, 20, 12), (50, 40, 7)])
    shares = coverage(target["masks"], 64, 64).numpy()
    counts = encode_grid_masks(shares, 64, 64).area
    for area, mask in zip(counts, target["masks"], strict=True):
        assert area == pytest.approx(int(mask.sum()), rel=0.1)


def test_it_learns_two_images_and_annotate_uses_it() -> None:
    torch.manual_seed(1)
    model = build_model(card(least_score=0.1))
    targets = [disks(64, [(20, 20, 12), (46, 44, 14)]), disks(64, [(32, 40, 16)])]
    images = [
        0.2 + 0.6 * (each["masks"] * each["labels"][:, None, None] / 2).amax(0).float().expand(3, -1, -1)
        for each in targets
    ]
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    losses = []
    for _ in range(60):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        assert all(each.grad is not None for each in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64),
    }
    model(images[:1], [empty])["mask"].backward()  # a gradient, for DDP, where there is no instance
    loaded = load_model_file(model_bytes(card(least_score=0.1), model.state_dict(), half=False))
    kept = LoadedModel("x", "file", loaded.module, {1: "a", 2: "b"}, (1, 2), loaded.digest, card=loaded.card)
    pixels = (images[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    for precision in ("fp32", "bf16"):
        step = Predictor(kept, "cpu", precision, 0.0, 1, threads=1)
        (row,) = step.predict(decoded(picture_row("x", pixels))).to_pylist()
        assert row["status"] == "annotated"
        assert all(each["segmentation"]["size"] == [64, 64] for each in row["found"])
