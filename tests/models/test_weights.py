"""What `--weights` may name, and what each mistake says."""

import hashlib
import os
import pickle
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from segray.errors import SettingsError
from segray.models import torchvision_files
from segray.models.catalog import NAMED_MODELS, bundled, named_model, show
from segray.models.maskrcnn import CompactSettings
from segray.models.modelfile import ModelCard, build_model
from segray.models.weights import load_weights, weights_kind
from segray.storage import StorageSettings
from tests.models.files import save_model_file
from tests.servers import Server

STORAGE = StorageSettings()
TINY = CompactSettings(
    stem_width=8, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), fpn_width=8, box_width=16, mask_widths=(8,)
)
CARD = ModelCard(
    arch="compact-maskrcnn",
    arch_settings=asdict(TINY),
    categories={7: "quay", 3: "boat"},
    image_mean=(0.1, 0.2, 0.3),
    image_std=(0.4, 0.5, 0.6),
    min_size=96,
    max_size=128,
    licence="CC0-1.0",
    source="made for a test",
)


def frozen_resnet(classes: int) -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), num_classes=classes).eval()


@pytest.fixture(scope="module")
def v1() -> MaskRCNN:
    return frozen_resnet(91)


@pytest.fixture(scope="module")
def v1_file(v1: MaskRCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training script's checkpoint: wrapped, with DistributedDataParallel's prefix, in half size."""
    path = tmp_path_factory.mktemp("weights") / "v1.pth"
    torch.save(
        {"model": {f"module.{key}": value.half() for key, value in v1.state_dict().items()}, "epoch": 3}, path
    )
    return path


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model_file(tmp_path / "m.pt", CARD, build_model(CARD).state_dict())
    return tmp_path / "m.pt"


def same_weights(one: MaskRCNN, other: MaskRCNN, atol: float = 0.0) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=atol, rtol=0) for key in a)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("coco-v2", "torchvision"),
        ("coco-v1", "torchvision"),
        ("nuclei-small", "bundled"),
        ("s3://bucket/model.pt", "file"),
        ("./weights", "file"),
        ("model.pth", "file"),
        ("python:package.module:factory", "python"),
    ],
)
def test_kinds(spec: str, kind: str) -> None:
    assert weights_kind(spec) == kind


def test_unknown_name_and_bad_factory() -> None:
    names = "coco-v2, coco-v1, nuclei-small, buildings-small, sam2-tiny, .*, sam3"
    with pytest.raises(
        SettingsError,
        match=f"'coco-v3': unknown name; did you mean coco-v2.*known names: {names}; also a path",
    ):
        weights_kind("coco-v3")
    for spec in ("python:module", "python:a:b:c", "python::f", "python:a-b:f", "python:"):
        with pytest.raises(SettingsError, match="python:module:factory"):
            weights_kind(spec)


def test_checkpoint_of_a_training_script(v1: MaskRCNN, v1_file: Path) -> None:
    loaded = load_weights(str(v1_file), STORAGE)
    assert same_weights(loaded.module, v1, atol=2e-3)
    assert not loaded.module.training
    frozen = [each for each in loaded.module.modules() if isinstance(each, FrozenBatchNorm2d)]
    assert {each.eps for each in frozen} == {0.0}, "as torchvision's own for COCO"
    assert (loaded.kind, loaded.category_ids) == ("file", None)
    assert loaded.digest == hashlib.sha256(v1_file.read_bytes()).hexdigest()
    assert (loaded.categories[1], loaded.categories[90], len(loaded.categories)) == (
        "person",
        "toothbrush",
        80,
    )


def test_published_weights_come_from_torch_s_cache(
    v1: MaskRCNN, v1_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    os.link(v1_file, folder / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth")
    loaded = load_weights("coco-v1", STORAGE)
    assert same_weights(loaded.module, v1, atol=2e-3)
    assert (loaded.name, loaded.kind, loaded.categories[44]) == ("coco-v1", "torchvision", "bottle")


def test_without_network_the_bundled_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("no_proxy", raising=False)
    started = time.monotonic()
    with pytest.raises(SettingsError, match="nuclei-small") as caught:
        load_weights("coco-v2", STORAGE)
    assert time.monotonic() - started < 20
    assert len(caught.value.lines) == 2
    assert (
        str(tmp_path / "hub" / "checkpoints" / "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth")
        in caught.value.lines[1]
    )
    assert capsys.readouterr() == ("", "")
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("build", [maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2])
def test_architecture_is_seen_from_the_keys(build: Any) -> None:
    """Trained from scratch, with torchvision's normal batch normalisation, three classes."""
    torch.manual_seed(1)
    model = build(weights=None, weights_backbone=None, num_classes=4).eval()
    rebuilt = torchvision_files.maskrcnn_from("x", model.state_dict())
    assert same_weights(rebuilt, model)
    assert [type(each) for each in rebuilt.modules()] == [type(each) for each in model.modules()]
    assert torchvision_files.categories_of(rebuilt) == {1: "1", 2: "2", 3: "3"}


def test_constants_of_the_catalog(v1: MaskRCNN) -> None:
    by_name = {model.name: model for model in NAMED_MODELS}
    assert by_name["coco-v1"].parameters == sum(each.numel() for each in v1.parameters())
    for name, weights in torchvision_files.PUBLISHED.items():
        assert by_name[name].parameters == weights.meta["num_params"]
        assert f"mask AP {weights.meta['_metrics']['COCO-val2017']['mask_map']}" in by_name[name].origin
        assert (
            by_name[name].arch
            == {"coco-v1": maskrcnn_resnet50_fpn, "coco-v2": maskrcnn_resnet50_fpn_v2}[name].__name__
        )
    assert named_model("coco-v3") is None
    assert show(as_json=True) == show(as_json=False) == 0


def test_bundled_models_are_as_the_catalog_says() -> None:
    for name in bundled():
        loaded, row = load_weights(name, STORAGE), named_model(name)
        assert row is not None
        assert loaded.card is not None
        assert (loaded.kind, loaded.card.licence) == ("bundled", row.licence)
        assert row.parameters == sum(each.numel() for each in loaded.module.parameters())
        assert row.categories == len(loaded.categories)


def test_model_file(model_file: Path) -> None:
    loaded = load_weights(str(model_file), STORAGE)
    assert (loaded.categories, loaded.category_ids) == ({3: "boat", 7: "quay"}, (3, 7))
    assert loaded.card is not None
    assert (loaded.card.licence, loaded.card.source) == ("CC0-1.0", "made for a test")
    again = pickle.loads(pickle.dumps(loaded))
    assert same_weights(again.module, loaded.module)
    assert (again.digest, again.category_ids, again.name) == (loaded.digest, (3, 7), str(model_file))


def test_model_file_from_a_bucket(model_file: Path, s3_server: Server) -> None:
    s3_server.put("test_weights/m.pt", model_file.read_bytes())
    url = s3_server.url("test_weights/m.pt")
    assert load_weights(url, s3_server.storage).digest == load_weights(str(model_file), STORAGE).digest
    with pytest.raises(SettingsError, match=f"weights {url}x: no such file"):
        load_weights(url + "x", s3_server.storage)


class Hostile:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.getcwd, ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "carries code or is not a file"),
        (b"", "damaged"),
        ({"weights": Hostile()}, "carries code"),
        ([1, 2], "holds a list"),
        ({}, "not torchvision's Mask R-CNN; its keys begin with none"),
        ({"state_dict": {"conv.weight": torch.zeros(1)}}, "begin with conv.weight"),
        ({"format": "segray-model/99", "state_dict": {}}, "segray model file"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(SettingsError, match=f"weights {path}: .*{message}") as caught:
        load_weights(str(path), STORAGE)
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_and_foreign_weights(model_file: Path, v1: MaskRCNN) -> None:
    model_file.write_bytes(model_file.read_bytes()[:-4000])
    with pytest.raises(SettingsError, match="damaged"):
        load_weights(str(model_file), STORAGE)
    with pytest.raises(SettingsError, match=r"no such file"):
        load_weights(str(model_file) + "x", STORAGE)
    state: dict[str, Tensor] = v1.state_dict()
    del state["backbone.body.conv1.weight"]
    with pytest.raises(
        SettingsError, match=r"maskrcnn_resnet50_fpn: Missing key.*backbone.body.conv1.weight"
    ):
        torchvision_files.maskrcnn_from("x", state)


FACTORIES = """
import torch
from torchvision.models.detection import MaskRCNN
from segray.models.modelfile import ModelCard, build_model

class Model:
    categories = {4: "four"}
    def __init__(self, digest):
        self.digest = digest
    def __call__(self, images):
        return []

def one(): return Model("a")
def same(): return Model("a")
def other(): return Model("b")
def fails(): raise ValueError("no luck\\nat all")
def number(): return 5
def linear():
    torch.manual_seed(0)
    return torch.nn.Linear(2, 2)
def linear_too():
    torch.manual_seed(1)
    return torch.nn.Linear(2, 2)
def random():
    return torch.nn.Linear(2, 2)
constant = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with modules of the user's own."""
    (tmp_path / "my_models.py").write_text(FACTORIES)
    (tmp_path / "my_broken.py").write_text("import package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    yield tmp_path
    for name in ("my_models", "my_broken"):
        sys.modules.pop(name, None)


def test_factories_and_their_digests(folder: Path) -> None:
    loaded = {
        name: load_weights(f"python:my_models:{name}", STORAGE)
        for name in ("one", "same", "other", "linear", "linear_too")
    }
    assert loaded["one"].categories == {4: "four"}
    assert loaded["one"].digest == loaded["same"].digest
    assert len({each.digest for each in loaded.values()}) == 4
    assert loaded["linear"].digest == load_weights("python:my_models:linear", STORAGE).digest
    assert not loaded["linear"].module.training


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("python:my_nothing:f", "cannot import module my_nothing: ModuleNotFoundError"),
        ("python:my_broken:f", "cannot import module my_broken: .*package_that_is_not_there"),
        ("python:my_models:missing", "module my_models has no function missing"),
        ("python:my_models:constant", "module my_models has no function constant"),
        ("python:my_models:fails", r"fails\(\) failed: ValueError: no luck$"),
        ("python:my_models:number", r"number\(\) returned a int"),
    ],
)
def test_factories_that_give_no_model(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"weights {spec}: {message}"):
        load_weights(spec, STORAGE)


def test_a_factory_s_model_is_imported_again_at_the_worker(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled = pickle.dumps(load_weights("python:my_models:one", STORAGE))
    different = pickle.dumps(load_weights("python:my_models:random", STORAGE))
    del sys.modules["my_models"]
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(folder)])
    assert pickle.loads(pickled).categories == {4: "four"}
    with pytest.raises(SettingsError, match="another model than before; seed its weights"):
        pickle.loads(different)
