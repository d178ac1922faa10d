"""Images so narrow that torchvision's resize leaves them no pixels: annotated, and scored in training."""

from typing import Any

import numpy as np
import pytest
import torch

from segray.annotate.predictor import Predictor
from segray.models.architectures import complete_settings
from segray.models.modelfile import ModelCard, load_model_file, model_bytes
from segray.models.weights import LoadedModel
from segray.train.build import recipe_fields
from segray.train.settings import TrainSettings
from segray.train.tasks.instance_training import InstanceRecipe
from tests.bulk.pictures import decoded, picture_row
from tests.models import test_mask2former, test_solov2

COMPACT = {"stem_width": 4, "widths": [4, 4, 4, 4], "depths": [1] * 4, "fpn_width": 4, "box_width": 8}
ARCHS = {
    "compact-maskrcnn": COMPACT,
    "solov2:mobilenetv3_small_050": test_solov2.NARROW,
    "mask2former": test_mask2former.NARROW,
}


@pytest.mark.parametrize("arch", ARCHS)
def test_a_very_narrow_image_is_used(arch: str) -> None:
    settings = complete_settings(arch, ARCHS[arch])
    card = ModelCard(arch, settings, {1: "a", 2: "b"}, (0.5,) * 3, (0.25,) * 3, 64, 128)
    fields: dict[str, Any] = recipe_fields(TrainSettings(data="x", output="y", arch=arch), 1, "fp32")
    training = InstanceRecipe(**fields, card=card).training(torch.device("cpu"))
    loaded = load_model_file(model_bytes(card, training.scored.state_dict(), half=False))
    kept = LoadedModel("x", "file", loaded.module, card.categories, (1, 2), loaded.digest, card=card)
    step = Predictor(kept, "cpu", "fp32", 0.0, 1, threads=1)
    for height, width in ((1, 800), (900, 1), (40, 60)):
        pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
        masks, labels, scores = training.predict(torch.from_numpy(pixels).permute(2, 0, 1))
        assert len(masks.counts) == len(labels) == len(scores)
        (row,) = step.predict(decoded(picture_row("x", pixels))).to_pylist()
        assert row["status"] == "annotated", row
        assert all(each["segmentation"]["size"] == [height, width] for each in row["found"])
