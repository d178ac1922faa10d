"""What training takes over from a model: weights by class name, architecture, frozen layers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from segray.cli import main
from segray.command_line import load_settings
from segray.errors import SettingsError
from segray.models.modelfile import ModelCard, SemanticCard, build_model, load_model_file, model_bytes
from segray.models.semantic import build_semantic
from segray.models.start_weights import Start, begin_with, fitted, load_start
from segray.storage import StorageSettings
from segray.train.settings import TrainSettings
from segray.train.warm_start import check_frozen, frozen_in, started
from tests.train.cells import write_cells
from tests.train.squares import lines
from tests.train.test_instances_job import ARCH, train

CARD = ModelCard(
    "compact-maskrcnn", json.loads(ARCH), {3: "tree", 8: "house"}, (0.5,) * 3, (0.2,) * 3, 96, 96
)
HEAD = "roi_heads.box_predictor.cls_score.weight"
BOXES = "roi_heads.box_predictor.bbox_pred.weight"
MASKS = "roi_heads.mask_predictor.mask_fcn_logits.weight"


@pytest.fixture(scope="module")
def start() -> Start:
    torch.manual_seed(5)
    state = build_model(CARD).state_dict()
    labels = (None, "tree", "house")
    return Start("a.pt", "d", CARD.arch, CARD.arch_settings, labels, (0.5,) * 3, (0.2,) * 3, dict(state))


def network(categories: dict[int, str]) -> Any:
    torch.manual_seed(6)
    return build_model(replace(CARD, categories=categories))


def begun(start: Start, categories: dict[int, str]) -> tuple[Any, Any]:
    """(As it would be without a start, with it)."""

    def build(outputs: int) -> Any:
        return network(dict.fromkeys(range(1, outputs), ""))

    names = [name for _, name in sorted(categories.items())]
    state = fitted(start, ["\0background", *names], build, len(names) + 1)
    own, other = network(categories), network(categories)
    begin_with(other, state)
    return own, other


def test_classes_keep_their_weights_by_name_and_new_ones_begin_anew(start: Start) -> None:
    own, other = begun(start, {1: "house", 2: "car", 9: "tree"})
    before, after, theirs = own.state_dict(), other.state_dict(), start.state
    for here, there in ((0, 0), (1, 2), (3, 1)):  # background, house, tree
        assert torch.equal(after[HEAD][here], theirs[HEAD][there])
        assert torch.equal(after[MASKS][here], theirs[MASKS][there])
        assert torch.equal(after[BOXES][4 * here : 4 * here + 4], theirs[BOXES][4 * there : 4 * there + 4])
    assert torch.equal(after[HEAD][2], before[HEAD][2])
    assert not torch.equal(before[HEAD][2], theirs[HEAD][2])
    rest = [name for name in theirs if "predictor" not in name]
    assert len(rest) > 20
    assert all(torch.equal(after[name], theirs[name]) for name in rest)


def test_the_same_number_of_other_classes_is_not_the_same_head(start: Start) -> None:
    _, other = begun(start, {3: "house", 8: "tree"})
    assert torch.equal(other.state_dict()[HEAD][1], start.state[HEAD][2])
    assert torch.equal(other.state_dict()[HEAD][2], start.state[HEAD][1])


def test_another_architecture_is_refused(start: Start) -> None:
    other = replace(CARD, arch_settings={**CARD.arch_settings, "fpn_width": 32})

    def build(outputs: int) -> Any:
        return build_model(replace(other, categories=dict.fromkeys(range(1, outputs), "")))

    with pytest.raises(
        SettingsError, match=r"a.pt: its weights do not fit the architecture: .* and \d+ more"
    ):
        fitted(start, ["", "tree", "house"], build, 3)


def test_a_semantic_model_is_begun_with(tmp_path: Path) -> None:
    settings = {"width": 8, "depth": 2}
    from segray.models.architectures import complete_settings

    complete = complete_settings("unet", settings)
    names = ("sky", "road", "tree")
    card = SemanticCard("unet", complete, 3, names, (0.4,) * 3, (0.3,) * 3, 64, "crop")
    torch.manual_seed(1)
    weights = build_model(card).state_dict()
    (tmp_path / "m.pt").write_bytes(model_bytes(card, weights))
    found = load_start(str(tmp_path / "m.pt"), StorageSettings())
    assert (found.arch, found.arch_settings, found.labels) == ("unet", complete, names)
    state = fitted(found, ("tree", "sky"), lambda n: build_semantic("unet", 3, n, complete, False), 2)
    torch.manual_seed(2)
    network = build_semantic("unet", 3, 2, complete, False)
    begin_with(network, state)
    heads = [name for name, tensor in network.state_dict().items() if tensor.shape != weights[name].shape]
    assert heads
    for name in heads:
        assert torch.equal(network.state_dict()[name], weights[name][[2, 0]])


def test_the_architecture_comes_from_the_model(start: Start) -> None:
    settings = TrainSettings(data="d", output="o", start_from="a.pt", max_size=800)
    taken = started(settings, replace(start, sizes=(64, 128)))
    assert (taken.arch, taken.arch_settings, taken.min_size, taken.max_size) == (
        "compact-maskrcnn", CARD.arch_settings, 64, 800,
    )  # fmt: skip
    with pytest.raises(SettingsError, match=r"arch: a.pt is compact-maskrcnn, not unet; leave arch out"):
        started(TrainSettings(data="d", output="o", start_from="a.pt", arch="unet"), start)
    with pytest.raises(SettingsError, match=r"min_size: .* 900, above max_size \(800\)"):
        started(settings, replace(start, sizes=(900, 1200)))
    with pytest.raises(SettingsError, match="does not hold its architecture; set --arch"):
        started(settings, replace(start, arch=None))


def test_frozen_layers_are_found_by_name_and_wrong_names_are_told() -> None:
    model = network({1: "a"})
    frozen = frozen_in(model, ["backbone.body", "*box_head*"])
    names = {name for name, each in model.named_parameters() if any(each is one for one in frozen.parameters)}
    assert names
    assert all(name.startswith("backbone.body.") or "box_head" in name for name in names)
    assert any("box_head" in name for name in names)
    with pytest.raises(SettingsError, match="no layer backbon; did you mean backbone"):
        check_frozen(model, ["backbon"])
    with pytest.raises(SettingsError, match="nothing is left to train"):
        check_frozen(model, ["*"])


def test_a_recipe_that_is_pretrained_goes_on_from_a_model(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "jobs" / "people.yaml"
    given = ("--config", str(recipe), "--data", "cells", "--output", "out")
    assert load_settings(TrainSettings, list(given), "train").pretrained
    further = load_settings(TrainSettings, [*given, "--start-from", "nuclei-small"], "train")
    assert (further.start_from, further.pretrained) == ("nuclei-small", False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--freeze", "backbone"), "random weights would never be trained"),
        (("--start-from", "gone.pt"), "gone.pt: no such file"),
        (("--start-from", "coco-v3"), "did you mean coco-v2"),
        (("--start-from", "nuclei-small", "--arch", "unet"), "is maskrcnn:efficientnet-lite0, not unet"),
        (("--start-from", "nuclei-small", "--freeze", "spine"), "no layer spine"),
        (("--start-from", "nuclei-small", "--freeze-epochs", "2"), "set with freeze which layers"),
        (("--encoder-weights", "gone.pt"), "encoder_weights {here}/gone.pt: no such file"),
        (("--encoder-weights", "coco-v3"), "encoder_weights 'coco-v3': no such file"),
        (("--encoder-weights", "tests/"), "encoder_weights {here}/tests: a folder; name the file in it"),
        (("--encoder-weights", "nuclei-small"), "nuclei-small is no file"),
        (("--encoder-weights", "a.pt", "--pretrained"), "encoder_weights: pretrained has weights already"),
        (("--encoder-weights", "a.pt", "--start-from", "a.pt"), "start_from has weights already"),
        (("--encoder-lr-factor", "0"), "encoder_lr_factor"),
    ],
)
def test_wrong_starts_are_refused(
    tmp_path: Path, options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = write_cells(tmp_path / "cells", images=3)
    assert main(["train", "--data", str(cells), "--output", str(tmp_path / "out"), *options]) == 2
    assert words.format(here=Path.cwd()) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_begins_with_a_model_and_thaws(tmp_path: Path, ray_session: None) -> None:
    cells = write_cells(tmp_path / "cells", images=6)
    content = json.loads((cells / "instances.json").read_text())
    for image, split in zip(content["images"], ["train"] * 4 + ["val"] * 2, strict=True):
        image["split"] = split
    content["categories"] = [{"id": 4, "name": "nucleus"}]
    (cells / "instances.json").write_text(json.dumps(content))
    options = ("--start-from", "nuclei-small", "--freeze", "backbone", "--freeze-epochs", 1, "--lr", 0.001)
    small = (
        "--size",
        96,
        "--batch-size",
        2,
        "--loaders",
        1,
        "--precision",
        "fp32",
        "--augment.preset",
        "off",
    )
    command = [
        "train",
        "--data",
        cells,
        "--output",
        tmp_path / "out",
        *options,
        *small,
        "--schedule",
        "constant",
    ]
    assert main([*map(str, command), "--epochs", "1"]) == 0
    theirs = load_start("nuclei-small", StorageSettings()).state
    ours = load_model_file(tmp_path / "out/model.pt")
    assert ours.card.arch == "maskrcnn:efficientnet-lite0"
    assert ours.card.image_mean == load_start("nuclei-small", StorageSettings()).mean
    body = [name for name in theirs if name.startswith("backbone.")]
    state = ours.module.state_dict()
    assert all(torch.equal(state[name].half(), theirs[name].half()) for name in body)
    assert not torch.equal(state[HEAD].half(), theirs[HEAD].half())
    assert lines(tmp_path / "out")[0]["ap50"] > 0.2  # random weights find nothing after two steps
    assert main([*map(str, command), "--epochs", "2"]) == 0
    kept = torch.load(tmp_path / "out/checkpoints/last.pt", weights_only=True)["training"]["model"]
    assert any(not torch.equal(kept[name].half(), theirs[name].half()) for name in body)
    assert main([*map(str, command), "--epochs", "2", "--freeze", "rpn"]) == 2


def test_a_frozen_layer_is_not_trained_by_the_whole_training(tmp_path: Path, ray_session: None) -> None:
    cells = write_cells(tmp_path / "cells", images=8)
    assert train(cells, tmp_path / "first", "--epochs", 1) == 0
    again = ("--start-from", tmp_path / "first/model.pt", "--freeze", "backbone", "--weight-decay", 0.5)
    assert train(cells, tmp_path / "second", *again, "--epochs", 1) == 0
    first, second = (
        load_model_file(tmp_path / name / "model.pt").module.state_dict() for name in ("first", "second")
    )
    body = [name for name in first if name.startswith("backbone.")]
    assert all(torch.equal(first[name], second[name]) for name in body)
    assert not torch.equal(first[HEAD], second[HEAD])
