"""Mask AP of the bundled model: segray's model step, in both precisions, against torchvision's own forward.

Needs `--labelled FOLDER`, which holds `images/` and `instances.json` (COCO) of the images that the model's
card names; its test split is scored.
"""

from collections.abc import Iterator
from pathlib import Path

from jobs.benchmarks.measure import Figure, Options
from segray.annotate.predictor import Predictor
from segray.evaluate.average_precision import InstanceScores
from segray.masks.rle import encode_roi_masks
from segray.models import bundled_models
from segray.models.device import Precision
from segray.models.modelfile import load_model_file
from segray.models.weights import LoadedModel, load_weights
from segray.storage import StorageSettings
from segray.train.dataset import InstanceImage, load_coco, split_images
from segray.train.scoring import encode, score_model
from segray.train.transforms.instances import target_of

WEIGHTS = "nuclei-small"
GOAL = "<= 0.2"


def figures(options: Options) -> Iterator[Figure]:
    """The goal is a difference in points, of 100."""
    names: list[Precision] = ["fp32", "bf16"]
    if options.labelled is None:
        for precision in names:
            yield Figure(
                f"points of AP off torchvision's, {precision}", GOAL, [], ["needs --labelled FOLDER"]
            )
        return
    images = split_images(load_coco(options.labelled)[0], seed=0)["test"]
    images = images[:5] if options.quick else images
    model = load_model_file(Path(bundled_models()[WEIGHTS]))
    truth = score_model(model.module, model.card, images).compute()["ap"]
    loaded = load_weights(WEIGHTS, StorageSettings())
    for precision in names:
        ours = score_step(loaded, precision, images).compute()["ap"]
        told = f"{len(images)} test images: AP {100 * ours:.2f} against {100 * truth:.2f}"
        yield Figure(f"points of AP off torchvision's, {precision}", GOAL, [abs(ours - truth) * 100], [told])


def score_step(loaded: LoadedModel, precision: Precision, images: list[InstanceImage]) -> InstanceScores:
    """Truth and what `annotate`'s model step finds, above the model's own threshold."""
    threshold = float(loaded.module.roi_heads.score_thresh)
    predictor = Predictor(loaded, "cpu", precision, threshold, batch_size=1)
    scores = InstanceScores()
    for image in images:
        height, width = image.instances.shape
        scores.add_image(image.digest, (height, width))
        truth = target_of(image.instances, image.categories)
        for rle, category in zip(encode(truth["masks"]), truth["labels"].tolist(), strict=True):
            scores.add_truth(image.digest, rle, category)
        (found,) = predictor.detector.detect([image.pixels.permute(1, 2, 0).numpy()])
        masks = encode_roi_masks(found.masks, found.boxes, height, width)
        ids = predictor._category_ids(found.labels).tolist()
        for counts, category, score in zip(masks.counts, ids, found.scores.tolist(), strict=True):
            scores.add_prediction(image.digest, {"size": [height, width], "counts": counts}, category, score)
    return scores
