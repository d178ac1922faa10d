"""What `retrain` passes on to training, scoring and labelling: checked, understood and never shown."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from segray.errors import NothingToDoError, SettingsError
from segray.retrain.data import listed, train_settings
from segray.retrain.settings import RetrainSettings
from segray.settings import printable
from tests.data.test_label_listing import image, instance, write
from tests.train.squares import squares

BASE: dict[str, Any] = {"data": "d", "registry": "r", "model": "m", "output": "o"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train": {"footprints": "f.gpkg", "arch": "unet"}}, "train.footprints: set by retrain itself"),
        ({"score": {"include": ["*.png"]}}, "score.include: set by retrain itself"),
        ({"score": {"keep_columns": ["camera"]}}, "score.keep_columns: set by retrain itself"),
        ({"start": "scratch", "train": {"freeze": ["backbone"]}}, "random weights would never be trained"),
        ({"train": {"pretrained": True}}, "train.pretrained: the challenger starts from the champion"),
    ],
)
def test_wrong_parts_are_told(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RetrainSettings(**BASE, **given)


def test_layers_are_frozen_from_the_first_champion_on() -> None:
    settings = RetrainSettings(
        **BASE, train={"freeze": ["backbone"], "freeze_epochs": 2, "pretrained": False}
    )
    assert train_settings(settings, "d", "o").freeze == []
    later = train_settings(settings, "d", "o", "nuclei-small")
    assert (later.freeze, later.freeze_epochs, later.start_from) == (["backbone"], 2, "nuclei-small")


def test_text_from_a_file_is_understood_as_numbers() -> None:
    settings = RetrainSettings(
        **BASE,
        train={"max_pixels": "1000"},
        label={"sources": ["s"], "output": "l", "score_threshold": "0.3"},
    )
    assert (settings.max_pixels, settings.kept_score) == (1000, 0.3)
    assert (RetrainSettings(**BASE).max_pixels, RetrainSettings(**BASE).kept_score) == (100_000_000, 0.5)


def test_no_secret_is_shown() -> None:
    label = {"sources": ["s3://KEY:hidden@b/x"], "output": "s3://b/o?X-Amz-Signature=hidden"}
    shown = printable(
        RetrainSettings(**BASE, label=label, notify=["https://user:hidden@host/x", "mail hidden"])
    )
    assert "s3://b/x" in shown
    for secret in ("hidden", "notify", "*"):
        assert secret not in shown


def test_what_is_of_instance_models_is_refused_for_semantic_ones(tmp_path: Path) -> None:
    """After the promotion it would be too late to say so."""
    squares(tmp_path, "train", 2, 0)
    base = {**BASE, "data": str(tmp_path), "train": {"arch": "unet"}}
    label = {"sources": ["s"], "output": "l"}
    settings = RetrainSettings(**base, score={"tile": 512}, label=label, min_score=0.5)
    with pytest.raises(SettingsError) as refused:
        listed(settings, None)
    assert [line.partition(":")[0] for line in refused.value.lines] == ["score", "label", "min_score"]
    assert len(listed(RetrainSettings(**base), None).pairs.pairs) == 2


def test_labels_that_nobody_corrected_yet_are_nothing_to_do(tmp_path: Path) -> None:
    """Exit 4, which a scheduler takes for success; 2 would call a person every hour."""
    write(tmp_path, [image("a")], [instance("a", 0, 0.9)])
    settings = RetrainSettings(**{**BASE, "data": str(tmp_path), "train": {"arch": "compact-maskrcnn"}})
    with pytest.raises(NothingToDoError, match="no instance was drawn or confirmed by a person"):
        listed(settings, None)
