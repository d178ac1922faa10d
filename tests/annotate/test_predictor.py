"""The model step against torchvision's own forward, and with models of one's own."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image as pillow
from pycocotools import mask as coco
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from segray.annotate.predictor import Predictor
from segray.annotate.settings import AnnotateSettings
from segray.annotate.task import Annotate
from segray.bulk.crash_counts import Attempts
from segray.bulk.identity import check_identity, identity_of
from segray.bulk.model_step import ModelStep
from segray.errors import JobFailedError, SettingsError
from segray.models.device import Precision, default_batch_size, resolve_device, resolve_precision
from segray.models.maskrcnn import CompactSettings, build_compact_maskrcnn
from segray.models.weights import LoadedModel, load_weights
from segray.schema import ANNOTATED
from segray.storage import StorageSettings
from tests.bulk.pictures import Image, decoded, failed_row, picture_row, smooth

PRECISIONS: tuple[tuple[Precision, float], ...] = (("fp32", 0.6), ("bf16", 0.5))
CATEGORIES = {1: "one", 2: "two", 3: "three"}


def loaded(module: Any, category_ids: tuple[int, ...] | None = None) -> LoadedModel:
    return LoadedModel("test", "python", module, CATEGORIES, category_ids, "0" * 64)


def predictor(module: Any, threshold: float = 0.5, batch_size: int = 1, precision: Any = "fp32") -> Predictor:
    return Predictor(loaded(module), "cpu", precision, threshold, batch_size, threads=1)


def excite(model: MaskRCNN, by: float) -> MaskRCNN:
    """Make random weights find something: scores, boxes and masks that differ from place to place."""
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(by)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(by)
        model.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(3 * by)
        model.rpn.head.cls_logits.weight.mul_(10 * by)
        model.rpn.head.bbox_pred.weight.mul_(by)
    return model.eval()


@pytest.fixture(scope="module")
def compact() -> MaskRCNN:
    torch.manual_seed(3)
    settings = CompactSettings(
        stem_width=16,
        widths=(24, 32, 48, 64),
        fpn_width=32,
        box_width=64,
        mask_widths=(32,),
        detections_per_image=60,
    )
    model = build_compact_maskrcnn(3, settings)
    model.transform.min_size, model.transform.max_size = (128,), 200
    return excite(model, 30)


@pytest.fixture(scope="module")
def resnet() -> MaskRCNN:
    """As coco-v1: ResNet-50 with frozen normalisation."""
    torch.manual_seed(1)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    model = MaskRCNN(backbone, num_classes=4, min_size=128, max_size=200, rpn_post_nms_top_n_test=100)
    for name, buffer in backbone.named_buffers():
        if name.endswith("bn3.weight"):
            buffer.mul_(0.2)  # random weights grow through 50 layers until every score is 0 or 1
    return excite(model, 10)


@pytest.fixture(scope="module")
def pictures() -> list[Image]:
    """Five images of three shapes inside the network."""
    rng = np.random.default_rng(0)
    return [smooth(rng, *size) for size in ((90, 150), (150, 90), (88, 150), (64, 64), (300, 230))]


@pytest.fixture(scope="module")
def nuclei() -> LoadedModel:
    return load_weights("nuclei-small", StorageSettings())


@pytest.fixture(scope="module")
def nuclei_pictures() -> list[Image]:
    """Two real images with 10 to 40 nuclei."""
    paths = sorted((Path(__file__).parents[1] / "data" / "nuclei" / "images").glob("*.png"))
    return [np.array(pillow.open(path).convert("RGB")) for path in paths[:2]]


def table_of(pictures: list[Image]) -> pa.Table:
    return decoded(*(picture_row(f"{number:032x}", image) for number, image in enumerate(pictures)))


def by_torchvision(model: MaskRCNN, image: Image, threshold: float) -> dict[str, Any]:
    """Its own forward, with masks of the whole image, filtered by score afterwards, ordered like our ids."""
    with torch.inference_mode():
        answer = model([torch.tensor(image).permute(2, 0, 1).float() / 255])[0]
    keep = answer["scores"] > threshold
    full = (answer["masks"][keep, 0] > 0.5).numpy()
    segmentation: list[Any] = [coco.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in full]
    found = {
        "score": answer["scores"][keep].tolist(),
        "category_id": answer["labels"][keep].tolist(),
        "box": torch.cat([answer["boxes"][:, :2], answer["boxes"][:, 2:] - answer["boxes"][:, :2]], 1)[keep],
        "bbox": [coco.toBbox(each).tolist() for each in segmentation],
        "area": [int(coco.area(each)) for each in segmentation],
        "counts": [each["counts"].decode() for each in segmentation],
    }
    rank = sorted(
        (index for index, area in enumerate(found["area"]) if area > 0),
        key=lambda i: (
            *found["bbox"][i][1::-1],
            found["category_id"][i],
            found["area"][i],
            found["score"][i],
        ),
    )
    return {name: [column[index] for index in rank] for name, column in found.items()} | {"all": len(full)}


def assert_like_torchvision(model: MaskRCNN, row: dict[str, Any], image: Image, threshold: float) -> None:
    expected = by_torchvision(model, image, threshold)
    found = row["found"]
    assert len(found) == row["instances"] == len(expected["score"]) > 3
    assert row["empty_masks"] == expected["all"] - len(found)
    np.testing.assert_allclose([each["score"] for each in found], expected["score"], atol=1e-4)
    boxes = torch.stack(expected["box"])
    np.testing.assert_allclose([each["box"] for each in found], boxes, atol=1e-4, rtol=1e-5)
    for name in ("category_id", "bbox", "area"):
        assert [each[name] for each in found] == expected[name]
    assert [each["segmentation"]["counts"] for each in found] == expected["counts"]


@pytest.mark.parametrize("threshold", [0.05, 0.6])
def test_compact_equals_torchvision(compact: MaskRCNN, pictures: list[Image], threshold: float) -> None:
    compact.roi_heads.score_thresh = 0.05
    out = predictor(compact, threshold).predict(table_of(pictures))
    assert compact.roi_heads.score_thresh == 0.05, "the caller's model must stay as it was"
    for row, image in zip(out.to_pylist(), pictures, strict=True):
        assert_like_torchvision(compact, row, image, threshold)
    assert 0 < sum(out["instances"].to_pylist()) < 60 * len(pictures)


def test_resnet_equals_torchvision(resnet: MaskRCNN, pictures: list[Image]) -> None:
    out = predictor(resnet, 0.3).predict(table_of(pictures[:2]))
    for row, image in zip(out.to_pylist(), pictures, strict=False):
        assert_like_torchvision(resnet, row, image, 0.3)


def test_bundled_model_equals_torchvision(nuclei: LoadedModel, nuclei_pictures: list[Image]) -> None:
    out = Predictor(nuclei, "cpu", "fp32", 0.5, 1, threads=1).predict(table_of(nuclei_pictures)).to_pylist()
    for row, image in zip(out, nuclei_pictures, strict=True):
        assert_like_torchvision(nuclei.module, row, image, 0.5)
    assert {each["category"] for row in out for each in row["found"]} == {"nucleus"}


def test_bundled_model_finds_the_same_in_low_precision(
    nuclei: LoadedModel, nuclei_pictures: list[Image]
) -> None:
    """Of the instances with a clear score, each has its like: masks that agree, here 0.95 on average.

    What is lost is lost by rounding the weights alone; all of it costs 0.4 points of AP.
    """
    agreement = []
    high, low = (
        Predictor(nuclei, "cpu", precision, threshold, 1, threads=1).predict(table_of(nuclei_pictures))
        for precision, threshold in PRECISIONS
    )
    for exact, rough in zip(high.to_pylist(), low.to_pylist(), strict=True):
        masks, others = ([each["segmentation"] for each in row["found"]] for row in (exact, rough))
        agreement.append(coco.iou(masks, others, [0] * len(others)).max(axis=1))
    best = np.concatenate(agreement)
    assert best.mean() > 0.93
    assert np.quantile(best, 0.05) > 0.75


def test_batches_hold_one_shape_and_change_nothing(compact: MaskRCNN, pictures: list[Image]) -> None:
    """Rows of three shapes, in between an error and a control row; batches of 4 against batches of 1."""
    images = [*pictures, pictures[0][::-1].copy(), pictures[3][::-1].copy()]
    rows = table_of(images).to_pylist()
    rows.insert(1, failed_row("e" * 32, "corrupt", "bad"))
    rows.insert(3, {"uri": "file:///a.tar", "end": {"items": 1, "ignored": 0, "broken": False}})
    many, single = predictor(compact, batch_size=4), predictor(compact)
    seen: list[int] = []
    network: Any = many.detector.model
    network.backbone.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    together, alone = many.predict(decoded(*rows)), single.predict(decoded(*rows))
    assert sorted(seen) == [1, 1, 2, 3]
    assert together.schema.equals(ANNOTATED)
    assert together["image_id"].to_pylist() == [row.get("image_id") for row in rows]
    assert together["status"].to_pylist()[:4] == ["annotated", "rejected", "annotated", None]
    for one, other in zip(together.to_pylist(), alone.to_pylist(), strict=True):
        assert one["instances"] == other["instances"]
        for a, b in zip(one["found"], other["found"], strict=True):
            np.testing.assert_allclose(a["box"], b["box"], atol=1e-3)
            assert abs(a["score"] - b["score"]) < 1e-4
            assert coco.iou([a["segmentation"]], [b["segmentation"]], [0])[0, 0] > 0.98 or a["area"] < 20


def test_twice_the_same(compact: MaskRCNN, pictures: list[Image]) -> None:
    step = predictor(compact, batch_size=2)
    assert step.predict(table_of(pictures)).equals(step.predict(table_of(pictures)))


def test_low_precision_only_inside_the_networks(resnet: MaskRCNN, pictures: list[Image]) -> None:
    low = predictor(resnet, 0.3, precision="bf16")
    high = predictor(resnet, 0.3)
    kept: list[Any] = []
    for step in (low, high):
        model: Any = step.detector.model
        for part in (model.backbone, model.rpn.anchor_generator, model.rpn, model.roi_heads.box_predictor):
            part.register_forward_hook(lambda _m, _i, output: kept.append(output))
        assert step.predict(table_of(pictures[:1]))["status"].to_pylist() == ["annotated"]
    features, anchors, proposals, (logits, deltas), exact_features, exact_anchors = kept[:6]
    assert {each.dtype for each in features.values()} == {torch.bfloat16}
    assert {each.dtype for each in (*anchors, *proposals[0], logits, deltas)} == {torch.float32}
    assert torch.equal(anchors[0], exact_anchors[0])
    for name, exact in exact_features.items():
        error = (features[name].float() - exact).norm() / exact.norm()
        assert error < 0.05


def test_fewer_proposals(compact: MaskRCNN, pictures: list[Image]) -> None:
    """As torchvision's own model that was built so; and the caller's model stays as it was."""
    few = copy.deepcopy(compact)
    few.rpn._post_nms_top_n["testing"] = 20
    expected = predictor(few, 0.05).predict(table_of(pictures[:2]))
    step = Predictor(loaded(compact), "cpu", "fp32", 0.05, 1, threads=1, proposals=20)
    assert step.predict(table_of(pictures[:2])).equals(expected)
    assert not predictor(compact, 0.05).predict(table_of(pictures[:2])).equals(expected)


def test_proposals_belong_to_the_identity(compact: MaskRCNN) -> None:
    settings = AnnotateSettings.model_validate({"sources": ["x"], "output": "o", "proposals": 50})
    fewer = identity_of(Annotate(settings), loaded(compact), "fp32")
    plain = identity_of(Annotate(settings.model_copy(update={"proposals": None})), loaded(compact), "fp32")
    check_identity({key: value for key, value in plain.items() if key != "proposals"}, plain, "o")
    with pytest.raises(SettingsError, match="proposals: None there, 50 now"):
        check_identity(plain, fewer, "o")
    with pytest.raises(SettingsError, match="proposals: test is not torchvision's Mask R-CNN"):
        identity_of(Annotate(settings), loaded(OneSquare()), "fp32")


def test_a_narrow_image_before_changes_nothing(compact: MaskRCNN, pictures: list[Image]) -> None:
    """torchvision infers the scales of its maps from the first image it sees; of this one it gets 1/2."""
    narrow = np.zeros((8, 300, 3), np.uint8)
    step = predictor(compact, 0.05)
    step.predict(table_of([narrow]))
    alone = predictor(compact, 0.05).predict(table_of(pictures[:1]))
    assert step.predict(table_of(pictures[:1])).equals(alone)


def test_images_too_narrow_for_torchvision(compact: MaskRCNN) -> None:
    rng = np.random.default_rng(4)
    thin = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((1, 2000, 3), (3000, 2, 3), (1, 1, 3))]
    with pytest.raises(RuntimeError, match="size"):
        compact([torch.tensor(thin[0]).permute(2, 0, 1).float()])
    out = predictor(compact).predict(table_of(thin))
    assert out["status"].to_pylist() == ["annotated"] * 3


Answer = dict[str, Any]


class OneSquare:
    """A foreign model: one instance an image, its upper left quarter, in the frame it is told."""

    def __init__(
        self, frame: str = "image", change: Callable[[Answer], Answer] = lambda answer: answer
    ) -> None:
        self.frame, self.change = frame, change
        self.largest = 0

    def __call__(self, images: list[Tensor]) -> list[Answer]:
        self.largest = max(self.largest, len(images))
        return [self.change(self.answer(image)) for image in images]

    def answer(self, image: Tensor) -> Answer:
        assert image.dtype == torch.float32
        assert 0 <= image.min() <= image.max() <= 1
        height, width = image.shape[1:]
        mask = torch.zeros(1, 1, height, width)
        mask[..., : height // 2, : width // 2] = 0.9
        box = torch.tensor([[0.0, 0.0, width / 2, height / 2]])
        masks = mask if self.frame == "image" else torch.ones(1, 1, 28, 28)
        return {"boxes": box, "labels": torch.tensor([2]), "scores": torch.tensor([0.7]), "masks": masks}


@pytest.mark.parametrize("frame", ["image", "roi"])
def test_foreign_model(frame: str, pictures: list[Image]) -> None:
    rows = predictor(OneSquare(frame), batch_size=3).predict(table_of(pictures)).to_pylist()
    for row, image in zip(rows, pictures, strict=True):
        height, width, _ = image.shape
        (found,) = row["found"]
        assert (found["category_id"], found["category"]) == (2, "two")
        assert found["truncated"] or frame == "roi"  # a RoI mask fades out at its border
        assert found["box"] == [0, 0, width / 2, height / 2]
        exact = [0, 0, width // 2, height // 2]
        np.testing.assert_allclose(found["bbox"], exact, atol=0 if frame == "image" else 2)


def test_mask_frame_decides_where_the_sizes_are_equal() -> None:
    """Masks of 28 x 28 for an image of 28 x 28: of the image, unless the model says otherwise."""
    picture = np.zeros((28, 28, 3), np.uint8)
    model = OneSquare("roi")
    (image,) = predictor(model).predict(table_of([picture])).to_pylist()
    model.mask_frame = "roi"  # type: ignore[attr-defined]
    (roi,) = predictor(model).predict(table_of([picture])).to_pylist()
    assert image["found"][0]["area"] == 28 * 28
    assert 13 * 13 <= roi["found"][0]["area"] <= 15 * 15


class OnAGrid(OneSquare):
    """The same quarter on a grid of stride 4, whose last cells are padding; no boxes."""

    mask_frame = "grid"

    def answer(self, image: Tensor) -> Answer:
        height, width = image.shape[1:]
        rows, cols = height / 4, width / 4
        mask = torch.full((1, 1, math.ceil(rows) + 3, math.ceil(cols) + 5), 0.5)
        mask[..., : round(rows / 2), : round(cols / 2)] = 0.9
        answer = super().answer(image) | {"masks": mask, "extent": torch.tensor([rows, cols])}
        return {name: value for name, value in answer.items() if name != "boxes"}


def test_grid_masks_and_the_boxes_of_masks(pictures: list[Image]) -> None:
    for row, image in zip(
        predictor(OnAGrid()).predict(table_of(pictures)).to_pylist(), pictures, strict=True
    ):
        height, width, _ = image.shape
        (found,) = row["found"]
        for box in ("bbox", "box"):
            np.testing.assert_allclose(found[box], [0, 0, width / 2, height / 2], atol=4)


def test_foreign_model_below_the_threshold_and_without_instances(pictures: list[Image]) -> None:
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0),
        "scores": torch.zeros(0),
        "masks": torch.zeros(0),
    }
    assert predictor(OneSquare(), 0.7).predict(table_of(pictures))["instances"].to_pylist() == [0] * 5
    empty = predictor(
        OneSquare(change=lambda _answer: {**nothing, "labels": torch.zeros(0, dtype=torch.int64)})
    )
    assert empty.predict(table_of(pictures))["instances"].to_pylist() == [0] * 5


def changed(**values: Any) -> Callable[[Answer], Answer]:
    return lambda answer: {key: value for key, value in (answer | values).items() if value is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(masks=None), r"no tensor 'masks': keys boxes, labels, scores"),
        (changed(scores=[0.5]), r"no tensor 'scores'"),
        (lambda _answer: "nonsense", r"no tensor 'scores': str"),
        (changed(masks=torch.ones(1, 28, 28)), r"masks: \(n, 1, m, m\); it gave float32 \(1, 28, 28\)"),
        (changed(masks=torch.ones(2, 1, 28, 28)), r"masks: .* \(2, 1, 28, 28\)"),
        (changed(masks=torch.ones(1, 1, 20, 28)), r"masks: \(n, 1, m, m\)"),
        (changed(boxes=torch.ones(2, 4)), r"boxes: \(n, 4\)"),
        (changed(labels=torch.tensor([1.5])), r"labels: \(n,\), integers; it gave float32"),
    ],
)
def test_wrong_answers_are_told(change: Any, message: str, pictures: list[Image]) -> None:
    with pytest.raises(JobFailedError, match=f"test: .*{message}"):
        predictor(OneSquare(change=change)).predict(table_of(pictures[:1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(boxes=torch.tensor([[0.0, 0.0, float("nan"), 1.0]])), "a box is not finite"),
        (changed(boxes=torch.tensor([[0.0, 0.0, float("inf"), 1.0]])), "a box is not finite"),
        (changed(boxes=torch.tensor([[5.0, 0.0, 1.0, 1.0]])), "or not x0 <= x1"),
        (changed(scores=torch.tensor([float("nan")])), "a score is not finite"),
        (changed(scores=torch.tensor([float("-inf")])), "a score is not finite"),
    ],
)
def test_numbers_that_cannot_be_cost_their_picture(change: Any, message: str, pictures: list[Image]) -> None:
    """In the model step, which finds the picture among its neighbours."""

    class Rarely(OneSquare):
        def answer(self, image: Tensor) -> Answer:
            found = super().answer(image)
            return change(found) if image.mean() > 0.9 else found

    white = np.full_like(pictures[0], 255)
    step = ModelStep(lambda: predictor(Rarely(), batch_size=3), Attempts())
    rows = step(table_of([pictures[0], white, pictures[1]])).to_pylist()
    assert [row["status"] for row in rows] == ["annotated", "rejected", "annotated"]
    assert rows[1]["error_type"] == "crashed"
    assert message in rows[1]["error"]


class Narrow(OneSquare):
    """Has room for so many images at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def __call__(self, images: list[Tensor]) -> list[Answer]:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().__call__(images)


def test_out_of_memory_halves_the_batch(pictures: list[Image]) -> None:
    images = [pictures[0]] * 11
    model = Narrow(2)
    step = predictor(model, batch_size=8)
    assert step.predict(table_of(images)).equals(predictor(OneSquare()).predict(table_of(images)))
    assert step.batches.size == model.largest == 2
    out = predictor(Narrow(0), batch_size=4).predict(table_of(pictures[:2]))
    assert out["error_type"].to_pylist() == ["memory"] * 2
    assert "CUDA out of memory" in out["error"][0].as_py()


def test_labels_become_the_categories_of_the_model(compact: MaskRCNN, pictures: list[Image]) -> None:
    model = loaded(compact, category_ids=(10, 20, 30))
    out = Predictor(model, "cpu", "fp32", 0.05, 1, threads=1).predict(table_of(pictures[:1])).to_pylist()
    plain = predictor(compact, 0.05).predict(table_of(pictures[:1])).to_pylist()
    assert sorted(each["category_id"] for each in out[0]["found"]) == sorted(
        10 * each["category_id"] for each in plain[0]["found"]
    )


def test_device_and_precision() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda")
    assert resolve_precision("fp16", "cpu") == "fp16"
    assert resolve_precision("auto", "cpu") in ("fp32", "bf16")
    assert default_batch_size("cpu") == 1 < default_batch_size("cuda")
    with pytest.raises(SettingsError, match="device: 'gpu7'"):
        resolve_device("gpu7")
    with pytest.raises(SettingsError, match="precision: 'int8'"):
        resolve_precision("int8", "cpu")
