"""Every row of `segray models` is trained, saved, loaded and used, on pieces of real microscope images.

All of it is what the commands run, in this process: the task of `train`, its loop, `load_weights`, and the
predictor of `predict` or `annotate`; only Ray, which distributes them, is left out. A row that is not in
`NARROW` is tried as it is.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from segray.annotate.settings import AnnotateSettings
from segray.annotate.task import Annotate
from segray.data.dataset import Data, assign_splits
from segray.data.scan import FIGURES, figures
from segray.data.splits import SplitRule
from segray.models.architectures import ARCHITECTURES, Architecture
from segray.output.folder import Output
from segray.output.names import METRICS, MODEL
from segray.predict.settings import PredictSettings
from segray.predict.task import Predict
from segray.storage import StorageSettings
from segray.train.loop import Loop
from segray.train.sampler import order_of, share_of
from segray.train.settings import TrainSettings
from segray.train.tasks import TrainingTask, kind_of
from tests.bulk.pictures import decoded, picture_row
from tests.models.pieces import SIDE, SPLITS, write_pieces

OF_IMAGES = [row for row in ARCHITECTURES if row.task != "volume"]
"""The others are tried in `tests/volumes/test_networks.py`."""
EPOCHS = 2
PROPOSALS = 16
THIN = {"decoder_channels": [16, 16, 8, 8, 4]}
TINY_SWIN: dict[str, Any] = {
    "embed_width": 8, "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "window": 4, "width": 32, "queries": 8,
    "decoder_heads": 2, "feedforward": 32, "pixel_decoder_layers": 1, "decoder_layers": 2, "points": 64,
}  # fmt: skip
NARROW: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {"width": 4, "depth": 3}),
    "unet:ENCODER": ("unet:resnet18", THIN),
    "unetplusplus:ENCODER": ("unetplusplus:resnet18", THIN),
    "deeplabv3:ENCODER": ("deeplabv3:resnet18", {"decoder_channels": 16}),
    "deeplabv3plus:ENCODER": ("deeplabv3plus:resnet18", {"decoder_channels": 16}),
    "pspnet:ENCODER": ("pspnet:resnet18", {"psp_out_channels": 16}),
    "fpn:ENCODER": ("fpn:resnet18", {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}),
    "linknet:ENCODER": ("linknet:resnet18", {}),
    "manet:ENCODER": ("manet:resnet18", THIN | {"decoder_pab_channels": 8}),
    "upernet:ENCODER": ("upernet:resnet18", {"decoder_channels": 16}),
    "segformer:ENCODER": ("segformer:mit_b0", {"decoder_segmentation_channels": 16}),
    "dpt:ENCODER": (
        "dpt:tu-vit_tiny_patch16_224",
        {"decoder_intermediate_channels": [8, 8, 8, 8], "decoder_fusion_channels": 8},
    ),
    "fcn:ENCODER": ("fcn:resnet50", {}),
    "segnet": ("segnet", {"width": 8}),
    "attention_unet": ("attention_unet", {"width": 4, "depth": 3}),
    "transunet": (
        "transunet",
        {"encoder": "resnet18", "width": 24, "layers": 2, "heads": 3, "mlp": 48, "grid": 4},
    ),
    "hrnet:ENCODER": ("hrnet:w18_small", {}),
    "mask2former": ("mask2former", TINY_SWIN),
    "mask2former-semantic": ("mask2former-semantic", TINY_SWIN),
    "compact-maskrcnn": ("compact-maskrcnn", {"widths": [8, 16, 24, 32], "fpn_width": 16, "box_width": 32}),
    "maskrcnn:ENCODER": (
        "maskrcnn:efficientnet-lite0",
        {"fpn_width": 16, "head_norm": "batch", "anchor_sizes": [8, 16, 32, 64], "proposals": PROPOSALS,
         "regions_per_image": PROPOSALS, "box_width": 32, "mask_widths": [16]},
    ),
    "solov2:ENCODER": (
        "solov2:mobilenetv3_small_050",
        {"fpn_width": 16, "grids": [8, 8, 6, 4, 4], "head_width": 16, "head_depth": 1, "mask_width": 8,
         "kernel_width": 8, "least_score": 0.001, "candidates": 20},
    ),
}  # fmt: skip
"""Name of a row -> a value of `--arch` and settings that make it small."""
SMALL = {
    "epochs": EPOCHS, "batch_size": 2, "size": SIDE, "augment": {"preset": "off"}, "precision": "fp32",
    "lr": 1e-4,
}  # fmt: skip
FOR_INSTANCES = {"min_size": SIDE, "max_size": SIDE}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pieces of real images; not to be changed."""
    return write_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module")
def read() -> dict[str, Any]:
    """What was read of the pairs: the same for every row of a task."""
    return {}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings_for(row: Architecture, data: Path, output: Path) -> TrainSettings:
    arch, settings = NARROW.get(row.name, (row.arch, {}))
    common: dict[str, Any] = SMALL | {"arch": arch, "arch_settings": settings, "output": str(output)}
    if row.task == "instance":
        more: dict[str, Any] = FOR_INSTANCES | {"root": str(data / "images")}
        return TrainSettings(data=str(data / "instances.json"), **common, **more)
    return TrainSettings(data=str(data), **common)


class Feed:
    """The pairs, read once for all rows of a task, in the order in which `train`'s loaders give them."""

    def __init__(self, task: TrainingTask, listed: Any, read: dict[str, Any]) -> None:
        kind, reading = type(task).__name__, task.reading()
        if kind not in read:
            read[kind] = reading.reader().read(listed.pairs)
        self.examples = dict(zip((pair.item for pair in listed.pairs), read[kind], strict=True))
        rows = [figures(each, reading.counts) for each in read[kind]]
        rule = SplitRule.of(listed.pairs, 0)
        table = pa.Table.from_pylist(rows, FIGURES)
        self.data: Data = assign_splits(listed, table, rule, look_alikes="off")
        pairs = list(zip(self.data.pairs, self.data.splits, strict=True))
        self.trained, self.scored = ([p for p, s in pairs if s == split] for split in ("train", "val"))
        self.transform = task.transform(self.data)

    def batches(self, settings: TrainSettings) -> Iterator[Any]:
        """What a worker that is alone gets, epoch after epoch."""
        for epoch in range(settings.epochs):
            order = order_of(len(self.trained), settings.seed, epoch)
            for batch in share_of(order, settings.batch_size, 0, 1):
                pairs = [self.trained[index] for index in batch]
                found = [(p, self.transform.training(self.examples[p.item], epoch, p.item)) for p in pairs]
                yield self.transform.collate([(pair.name, arrays) for pair, arrays in found])
            for pair in self.scored:
                yield self.transform.collate([(pair.name, self.transform.scoring(self.examples[pair.item]))])


def fewer_proposals(model: Any) -> None:
    """Let a two-stage detector look at few regions: the second stage of a thousand takes 20 s."""
    if isinstance(model, GeneralizedRCNN):
        for limits in (model.rpn._pre_nms_top_n, model.rpn._post_nms_top_n):
            limits.update(training=PROPOSALS, testing=PROPOSALS)
        model.roi_heads.fg_bg_sampler.batch_size_per_image = PROPOSALS


class Brief(Loop):
    """Without curves, TensorBoard's events and checkpoints, which take longer than the training here."""

    def _draw_history(self) -> None:
        pass

    def _save(self) -> None:
        pass


@pytest.mark.parametrize("row", OF_IMAGES, ids=lambda row: row.name)
def test_it_is_trained_saved_loaded_and_used(
    row: Architecture, data: Path, read: dict[str, Any], tmp_path: Path
) -> None:
    settings = settings_for(row, data, tmp_path / "out")
    kind = kind_of(settings)
    listed = kind.list_data(settings)
    task = kind.of(settings, listed)
    feed = Feed(task, listed, read)
    training = task.recipe(feed.data, "fp32").training(torch.device("cpu"))
    fewer_proposals(training.model)
    first = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    store = Output(settings.output, StorageSettings())
    shown = [feed.transform.collate([("shown", feed.transform.scoring(read[kind.__name__][0]))])]
    Brief(training, store, 0, 1e9, shown).run(feed.batches(settings), len(feed.trained), len(feed.scored))

    lines = [json.loads(line) for line in (store.read(METRICS) or b"").splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(np.isfinite(line["train_loss"]) and line[task.best] is not None for line in lines)
    assert SPLITS.count("train") == len(feed.trained)
    moved = {name for name, tensor in training.model.state_dict().items() if not tensor.equal(first[name])}
    trained = {name for name, each in training.model.named_parameters() if each.requires_grad}
    assert len(moved & trained) > 0.5 * len(trained)
    used = predicted if row.task == "semantic" else annotated
    used(tmp_path / "out" / MODEL, feed, tmp_path)


def predicted(weights: Path, feed: Feed, folder: Path) -> None:
    """The model step of `predict`: its map is the argmax of the file's network, in low precision nearly."""
    settings = PredictSettings(sources=["-"], weights=str(weights), output=str(folder / "maps"))
    task = Predict(settings)
    model = task.load()
    assert model.card is not None
    pixels = feed.examples[feed.scored[0].item].pixels[:50]  # not a multiple of any stride
    found = {}
    for precision in ("fp32", "bf16"):
        done = task.predictor(model, "cpu", precision, 1, 1).predict(decoded(picture_row("a", pixels)))
        assert done["status"].to_pylist() == ["annotated"], done["error"].to_pylist()
        found[precision] = np.asarray(Image.open(io.BytesIO((folder / "maps/labels/a.png").read_bytes())))
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in (model.mean, model.std))
    with torch.inference_mode():
        normal = (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std
        logits = model.module(normal[None].contiguous(memory_format=torch.channels_last))[0]
    assert logits.shape == (1, 50, SIDE)
    for precision, share in (("fp32", 1e-4), ("bf16", 0.1)):
        unsure = logits[0].abs() < share * logits.abs().max()
        assert ((found[precision] == (logits[0] > 0).numpy()) | unsure.numpy()).all(), precision


def annotated(weights: Path, feed: Feed, folder: Path) -> None:
    """The model step of `annotate`, at a threshold that lets all detections pass."""
    settings = AnnotateSettings(
        sources=["-"], weights=str(weights), output=str(folder / "found"), score_threshold=0.0
    )
    task = Annotate(settings)
    model = task.load()
    assert model.categories == {1: "nucleus"}
    fewer_proposals(model.module)
    pixels = feed.examples[feed.scored[0].item].pixels
    done = task.predictor(model, "cpu", "fp32", 1, 1).predict(decoded(picture_row("a", pixels)))
    assert done["status"].to_pylist() == ["annotated"], done["error"].to_pylist()
    (found,) = done["found"].to_pylist()
    assert len(found) == done["instances"][0].as_py()
    assert all(each["segmentation"]["size"] == [SIDE, SIDE] for each in found)
