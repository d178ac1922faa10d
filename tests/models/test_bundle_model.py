"""`jobs/bundle_model.py`: the same weights, with a licence and a source, whatever it started from."""

import subprocess
import sys
from pathlib import Path

import torch

from segray.models import bundled_models
from segray.models.modelfile import ModelCard, load_model_file

SCRIPT = Path(__file__).parents[2] / "jobs/bundle_model.py"


def bundle(trained: Path, bundled: Path) -> "subprocess.CompletedProcess[str]":
    words = ("--licence", "CC0-1.0", "--source", "a test")
    command = [sys.executable, str(SCRIPT), str(trained), str(bundled), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_its_card_names_licence_and_source(tmp_path: Path) -> None:
    old, made = bundled_models()["nuclei-small"], tmp_path / "made.pt"
    done = bundle(old, made)
    assert done.returncode == 0, done.stderr
    before, after = load_model_file(old), load_model_file(made)
    assert isinstance(after.card, ModelCard)
    assert (after.card.licence, after.card.source) == ("CC0-1.0", "a test")
    assert after.card.categories == before.card.categories
    pairs = zip(before.module.state_dict().items(), after.module.state_dict().items(), strict=True)
    for (name, tensor), (other, same) in pairs:
        assert name == other
        assert torch.equal(tensor, same)
    assert f"{made.stat().st_size:,} bytes" in done.stdout
    assert after.digest in done.stdout
