"""SAM without prompts and with boxes, against transformers' own pipeline and plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as pillow
from pycocotools import mask as coco
from torch.nn.functional import interpolate

from segray.annotate.automatic_masks import Candidate, point_grid, stability, without_duplicates
from segray.annotate.predictor import Predictor
from segray.annotate.sam_detector import SamDetector, SamMasks
from segray.annotate.settings import SamSettings
from segray.masks.grids import GridFrame, axis
from segray.models.sam import SegmentAnything
from segray.models.weights import LoadedModel
from tests.bulk.pictures import Image, decoded, picture_row, smooth
from tests.sam_models import made

CPU = torch.device("cpu")
SETTINGS = {
    kind: SamSettings(points_per_side=6, predicted_iou=least, stability=0.6, nms_iou=0.95)
    for kind, least in (("sam", 0.05), ("sam2", 0.3))
}


@pytest.fixture(scope="module", params=["sam", "sam2"])
def model(request: pytest.FixtureRequest) -> SegmentAnything:
    return SegmentAnything(made(request.param), request.param)


@pytest.fixture(scope="module")
def image(model: SegmentAnything) -> Image:
    """Square for SAM 2: transformers' pipeline spreads its points over a part of other images."""
    return smooth(np.random.default_rng(0), 90, 90 if model.kind == "sam2" else 140)


def by_transformers(model: SegmentAnything, image: Image) -> tuple[list[Image], list[float]]:
    """Its pipeline for masks; its points differ by the rounding of the image's size alone."""
    from transformers import MaskGenerationPipeline

    settings = SETTINGS[model.kind]
    pipeline: Any = MaskGenerationPipeline
    generate = pipeline(model=model.network, image_processor=model._processor)
    found = generate(
        pillow.fromarray(image),
        points_per_crop=settings.points_per_side,
        points_per_batch=10,
        pred_iou_thresh=settings.predicted_iou,
        stability_score_thresh=settings.stability,
        crops_nms_thresh=settings.nms_iou,
    )
    return [np.asarray(mask, bool) for mask in found["masks"]], found["scores"].tolist()


def test_objects_are_those_of_transformers_pipeline(model: SegmentAnything, image: Image) -> None:
    masks, scores = by_transformers(model, image)
    detector = SamDetector(model, CPU, "fp32", 0.0, SETTINGS[model.kind])
    (found,) = detector.detect([image])
    assert 3 < len(masks) < 3 * 6**2, "else nothing is filtered, or everything"
    assert len(found.masks.counts) == len(masks)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    for counts, box, mask in zip(found.masks.counts, found.boxes, masks, strict=True):
        ours = coco.decode({"size": list(image.shape[:2]), "counts": counts})
        assert np.count_nonzero(ours != mask) <= 2  # rounding at the threshold
        rows, cols = np.flatnonzero(ours.any(1)), np.flatnonzero(ours.any(0))
        assert box.tolist() == [cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]


def test_points_lie_on_the_whole_image() -> None:
    points = point_grid(2, 100, 200)
    assert points.tolist() == [[50, 25], [150, 25], [50, 75], [150, 75]]
    wide = SegmentAnything(made("sam2"), "sam2")
    assert wide.resized(100, 200) == (64, 64)
    assert SegmentAnything(made("sam"), "sam").resized(100, 200) == (32, 64)


def test_stability_is_the_ratio_of_two_areas() -> None:
    logits = np.random.default_rng(1).normal(0, 2, (30, 40)).astype(np.float32)
    inner = outer = 0
    for value in logits.ravel():
        inner, outer = inner + int(value > 1), outer + int(value > -1)
    assert stability(logits, 1.0) == inner / outer
    assert stability(logits - 100, 1.0) == 0


def test_nms_is_greedy_from_the_best() -> None:
    """Against its definition in a plain loop, on boxes as the masks' (last row and column inclusive)."""
    rng = np.random.default_rng(2)
    corners = rng.integers(0, 40, (60, 2))
    boxes = np.concatenate([corners, corners + rng.integers(5, 30, (60, 2))], 1)
    found = [
        Candidate(float(score), tuple(map(int, box)), np.zeros(0, np.int64))  # type: ignore[arg-type]
        for score, box in zip(rng.permutation(60) / 60, boxes, strict=True)
    ]
    kept = list[Candidate]()
    for each in sorted(found, key=lambda one: -one.score):
        if all(iou(each.box, other.box) <= 0.3 for other in kept):
            kept.append(each)
    assert 5 < len(kept) < 50
    assert [each.box for each in without_duplicates(found, 0.3)] == [each.box for each in kept]


def iou(one: Any, other: Any) -> float:
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(width * height / (sum(areas) - width * height))


@pytest.mark.parametrize(("height", "width"), [(50, 70), (9, 200), (300, 16)])
def test_a_window_is_a_part_of_the_whole_image(height: int, width: int) -> None:
    """Directly, and by way of the padded square of SAM 1, against torch's resize of everything."""
    grid = np.random.default_rng(3).normal(-1, 1, (16, 16)).astype(np.float32)
    padded = round(64 * height / max(height, width)), round(64 * width / max(height, width))
    through = GridFrame(axis(16, height, (64, padded[0])), axis(16, width, (64, padded[1])))
    large = resized(grid, (64, 64))[: padded[0], : padded[1]]
    for frame, whole in (
        (GridFrame(axis(16, height), axis(16, width)), resized(grid, (height, width))),
        (through, resized(large, (height, width))),
    ):
        window = frame.window(grid, 0.8)
        assert window is not None
        rows = slice(window.row_start, window.row_start + window.values.shape[0])
        cols = slice(window.col_start, window.col_start + window.values.shape[1])
        np.testing.assert_allclose(window.values, whole[rows, cols], atol=1e-5)
        outside = np.ones(whole.shape, bool)
        outside[rows, cols] = False
        assert not (whole[outside] > 0.8).any()
        assert frame.window(grid, 100) is None


def resized(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    found = interpolate(torch.tensor(values)[None, None], size, mode="bilinear", align_corners=False)
    return np.asarray(found[0, 0])


def test_boxes_become_masks(model: SegmentAnything, image: Image) -> None:
    """Against the steps of transformers' documentation: processor, model, post_process_masks."""
    boxes = np.array([[5, 7, 60, 50], [20, 10, 88, 85], [0, 0, 30, 30]], np.float32)
    masks = SamMasks(model, CPU, "fp32").masks(image, boxes)
    processor = model._processor
    inputs = processor(images=[torch.tensor(image).permute(2, 0, 1)], return_tensors="pt")
    height, width = model.resized(*image.shape[:2])
    scale = torch.tensor([width / image.shape[1], height / image.shape[0]]).repeat(2)
    with torch.no_grad():
        found = model.network(
            inputs["pixel_values"],
            input_boxes=(torch.tensor(boxes) * scale)[None],
            multimask_output=False,
        )
    sizes = inputs["original_sizes"], inputs.get("reshaped_input_sizes")
    (whole,) = processor.post_process_masks(
        found.pred_masks, original_sizes=sizes[0], reshaped_input_sizes=sizes[1]
    )
    assert len(masks.counts) == 3
    for counts, mask in zip(masks.counts, whole[:, 0].numpy(), strict=True):
        ours = coco.decode({"size": list(image.shape[:2]), "counts": counts})
        assert np.count_nonzero(ours != mask) <= 2
    assert len(set(masks.counts)) == 3
    assert SamMasks(model, CPU, "fp32").masks(image, boxes[:0]).counts == []


class Boxes:
    """A detector of one's own with two boxes, and masks that nobody wants."""

    def __call__(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        boxes = torch.tensor([[5.0, 7, 60, 50], [20, 10, 88, 85]])
        masks = torch.zeros(2, 1, *images[0].shape[-2:])
        return [
            {
                "boxes": boxes,
                "labels": torch.tensor([2, 1]),
                "scores": torch.tensor([0.9, 0.7]),
                "masks": masks,
            }
        ]


def test_a_refiner_replaces_masks_and_keeps_the_rest(model: SegmentAnything, image: Image) -> None:
    sam = LoadedModel("sam", "sam", model, {1: "object"}, None, "1" * 64)
    plain = LoadedModel("test", "python", Boxes(), {1: "one", 2: "two"}, None, "0" * 64)
    refined = LoadedModel("test", "python", Boxes(), {1: "one", 2: "two"}, None, "0" * 64, refiner=sam)
    table = decoded(picture_row("0" * 32, image))
    (before,) = Predictor(plain, "cpu", "fp32", 0.5, 1).predict(table)["found"].to_pylist()
    (found,) = Predictor(refined, "cpu", "fp32", 0.5, 1).predict(table)["found"].to_pylist()
    assert before == []  # its own masks are empty
    kept = {(each["category"], round(each["score"], 3)): each for each in found}
    assert set(kept) == {("two", 0.9), ("one", 0.7)}
    direct = SamMasks(model, CPU, "fp32").masks(
        image, np.array([[5, 7, 60, 50], [20, 10, 88, 85]], np.float32)
    )
    assert {each["segmentation"]["counts"] for each in found} == set(direct.counts)
    np.testing.assert_allclose(kept["two", 0.9]["box"], [5, 7, 55, 43])
    assert kept["two", 0.9]["bbox"] == coco.toBbox(kept["two", 0.9]["segmentation"]).tolist()
