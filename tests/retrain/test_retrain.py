"""`segray retrain` on a real Ray, as typed: first labels, better ones, worse ones, none, and a way back."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from segray.cli import main
from segray.drift.profile import Profile
from segray.drift.reading import profile_of
from segray.output.folder import Output
from segray.output.lease import Lease
from segray.registry.registry import Registry
from segray.retrain.holdout import Holdout
from segray.retrain.labels import from_bytes
from segray.storage import StorageSettings
from tests.retrain.cells import TRAIN, retrain, shuffle_labels, splits_of, write_config, write_labels

FIRST, MORE = 12, 18


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A folder after the first round, which made a poor champion; not to be changed."""
    folder = tmp_path_factory.mktemp("retrain") / "first"
    folder.mkdir()
    write_labels(folder / "cells", FIRST)
    write_config(folder, epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert retrain() == 0
    return folder


@pytest.fixture(scope="module")
def second(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After another one, with more labels and more epochs, which is better; not to be changed."""
    folder = tmp_path_factory.mktemp("retrain") / "second"
    shutil.copytree(first, folder)
    move(folder, first)
    write_labels(folder / "cells", MORE)
    label = {"sources": [str(folder / "cells/images")], "output": str(folder / "labelled")}
    write_config(folder, epochs=12, label=label)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert retrain("--notify", "tee told.json") == 0
    return folder


def move(folder: Path, before: Path) -> None:
    """Absolute addresses of a copied folder, as if it had been made there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in [*folder.glob("cells/*.json"), *folder.glob("rounds/**/*.json")]:
        path.write_text(path.read_text().replace(str(before), str(folder)))
    for path in [*folder.glob("rounds/**/snapshot.parquet"), folder / "rounds/holdout.parquet"]:
        table = pq.read_table(path)
        for name in ("address", "label_address"):
            if name in table.column_names:
                there = pa.array([each.replace(str(before), str(folder)) for each in table[name].to_pylist()])
                table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), there)
        pq.write_table(table, path)


def copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    target = tmp_path / "here"
    shutil.copytree(folder, target, copy_function=shutil.copy2)
    move(target, folder)
    monkeypatch.chdir(target)
    return target


def registry(folder: Path) -> Registry:
    return Registry(str(folder / "registry"), StorageSettings())


def last_record(folder: Path) -> Any:
    return json.loads((folder / "rounds/run.json").read_text())


def test_the_first_labels_make_a_champion(first: Path) -> None:
    record = last_record(first)
    assert (record["verb"], record["round"], record["promoted"]) == ("retrain", 1, True)
    aliases = registry(first).aliases("cells")
    assert aliases.champion == record["version"]
    assert [event.what for event in aliases.history] == ["promote"]
    (version,) = registry(first).versions("cells")
    folder = first / "registry/cells/versions" / version.digest
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.pt", "card.md", "run.json", "metrics.json", "snapshot.parquet", "report.html"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["holdout"]["images"] == FIRST // 2
    assert 0 < metrics["figures"]["ap"] < 1
    assert (first / "rounds/rounds/0001/report.html").read_text().count("<svg") > 1
    held = json.loads((first / "rounds/rounds/0001/labels.json").read_text())
    assert [image["split"] for image in held["images"]].count("test") == FIRST // 2


def test_better_labels_win(second: Path) -> None:
    record = last_record(second)
    assert (record["round"], record["promoted"]) == (2, True)
    assert record["data"]["new"] == MORE - FIRST
    assert record["holdout"]["images"] == MORE // 2
    aliases = registry(second).aliases("cells")
    assert (aliases.champion, aliases.previous) == (record["version"], record["champion_before"])
    run = registry(second).read_json("cells", record["version"], "run.json")
    assert run is not None
    assert run["settings"]["start_from"].endswith(f"#cells@{record['champion_before']}")
    told = json.loads((second / "told.json").read_text())
    assert (told["outcome"], told["exit_code"], told["version"]) == ("promoted", 0, record["version"])
    holdout = Holdout.read((second / "rounds/holdout.parquet").read_bytes())
    assert (holdout.version, holdout.looks) == (2, 1)
    used = {(run["version"], Path(run["output"]).name) for run in registry(second).runs("cells")}
    assert used == {
        (record["champion_before"], record["champion_before"]),  # over the holdout
        (record["version"], "labelled"),
    }
    labelled = json.loads((second / "labelled/run.json").read_text())
    assert labelled["identity"]["model"].endswith(f"#cells@{record['version']}")


def test_its_status(
    second: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(second)
    assert main(["status", "rounds"]) == 0
    told = capsys.readouterr().out
    assert "retrain, finished" in told
    assert f"2 of 2 rounds done; last round: promoted cells@{last_record(second)['version']}" in told


def test_nothing_new_is_exit_4(
    second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = copied(second, tmp_path, monkeypatch)
    for path in (here / "cells").rglob("*.png"):
        path.touch()  # other versions of the same pictures
    assert retrain("--notify", "tee told.json") == 4
    assert "0 new, 0 changed, 0 removed since the last round; min_new is 4" in capsys.readouterr().err
    assert json.loads((here / "told.json").read_text())["outcome"] == "nothing to do"
    assert not (here / "rounds/rounds/0003/round.json").exists()
    assert retrain("--dry-run") == 0
    assert "dry run: nothing was written" in capsys.readouterr().out


def test_shuffled_labels_are_refused_and_there_is_a_way_back(
    second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    pytestconfig: pytest.Config,
) -> None:  # fmt: skip
    """As often as `--shuffles` says."""
    here = copied(second, tmp_path, monkeypatch)
    champion = last_record(here)["version"]
    write_config(here, epochs=2, start="scratch")
    for trial in range(pytestconfig.getoption("--shuffles")):
        moved = shuffle_labels(here / "cells", trial)
        assert retrain() == 5
        record = last_record(here)
        assert record["promoted"] is False
        assert record["data"]["changed"] == moved
        aliases = registry(here).aliases("cells")
        assert (aliases.champion, aliases.challenger) == (champion, record["version"])
        assert aliases.history[-1].what == "refuse"
        assert "refused: cells@" in capsys.readouterr().out
        assert retrain() == 4  # a refusal is not tried again every hour
    words = ("registry", "promote", "cells@challenger", "--registry", "registry")
    assert main([*words]) == 5
    assert main([*words, "--force", "--why", "to see"]) == 0
    assert main(["registry", "rollback", "cells", "--registry", "registry"]) == 0
    assert registry(here).aliases("cells").champion == champion
    assert main(["registry", "verify", "--registry", "registry"]) == 0


def test_another_run_holds_the_lease(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = copied(first, tmp_path, monkeypatch)
    write_labels(here / "cells", MORE)
    with Lease(Output(str(here / "rounds"), StorageSettings())):
        assert retrain() == 4
    with Lease(Output(str(here / "rounds/rounds/0002/train"), StorageSettings())):
        assert retrain() == 4  # of a run that has lost the output, and still trains
    assert "is being written by another run" in capsys.readouterr().err


def test_a_champion_of_somebody_else_is_compared_before_it_is_replaced(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was promoted while the challenger was compared with the one before."""
    from segray.retrain import job, promotion

    here = copied(first, tmp_path, monkeypatch)
    write_labels(here / "cells", MORE)
    weights = str(Path(job.__file__).parents[1] / "models/bundled/nuclei-small.pt")
    assert main(["registry", "add", "cells", weights, "--registry", "registry"]) == 0
    other = registry(here).aliases("cells").challenger
    original = promotion.keep

    def keep(*arguments: Any) -> str:
        monkeypatch.setattr(job, "keep", original)
        assert main(["registry", "promote", f"cells@{other}", "--registry", "registry"]) == 0
        return original(*arguments)

    monkeypatch.setattr(job, "keep", keep)
    assert retrain() == 1
    assert f"the champion of cells is {other} by now" in capsys.readouterr().err
    assert not (here / "rounds/rounds/0002/decision.json").exists()
    assert retrain() in (0, 5)
    assert last_record(here)["champion_before"] == other


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "a/b"}, "use letters, digits"),
        ({"train": {"epoch": 3}}, "train.epoch: unknown setting"),
        ({"train": {"epochs": 0}}, "train.epochs: Input should be greater than or equal to 1"),
        ({"train": {"data": "x"}}, "train.data: set by retrain itself"),
        ({"score": {"weights": "x"}}, "score.weights: set by retrain itself"),
        ({"label": {"sources": ["x"]}}, "label.output: Field required"),
        ({"gate": {"floors": {"night": 0.5}}}, "set group_by, the column that names the groups"),
        ({"group_by": "camra"}, "has no camra"),
        ({"data": "gone"}, "gone/instances.json: the file is not there"),
        ({"train": {"arch": "unet"}, "registry": "elsewhere", "output": "new"}, "no label has its stem"),
        ({"registry": "retrain.yaml"}, "registry: "),
        ({"model": "other"}, "is of retrain of cells; use another --output"),
    ],
)
def test_wrong_settings_are_told_before_work_begins(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any], words: str,
) -> None:  # fmt: skip
    here = copied(first, tmp_path, monkeypatch)
    write_config(here, epochs=1, **changed)
    assert retrain() == 2
    assert words in capsys.readouterr().err


def test_a_picture_that_cannot_be_read_stops_the_round(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = copied(first, tmp_path, monkeypatch)
    write_labels(here / "cells", MORE)
    (here / "cells/images/cells-13.png").write_bytes(b"no picture")
    assert retrain() == 3
    told = capsys.readouterr().err
    assert "cells-13.png" in told
    assert "1 of 18 images cannot be read, more than max_rejects (0); nothing was decided" in told


def test_a_round_waits_for_drift(
    second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures as before: no drift; turned dark: drift, and the round looks for labels."""
    here = copied(second, tmp_path, monkeypatch)
    version = last_record(here)["version"]
    profile = here / "registry/cells/versions" / version / "profile.json"
    assert Profile.from_json(profile.read_bytes(), "kept").overall.images == MORE // 2
    for name, seed, share in (("before", 0, 1), ("same", 100, 1), ("dark", 200, 12)):
        (here / name).mkdir()
        for number in range(40):
            random = np.random.default_rng(seed + number)
            ground = np.uint8(random.integers(40, 200))
            pixels = (random.integers(0, 20, (32, 32, 3), np.uint8) + ground) // np.uint8(share)
            Image.fromarray(pixels).save(here / name / f"{number}.png")
        weights = ("--weights", "registry:registry#cells@champion")
        assert main(["annotate", name, *weights, "--output", f"{name}-night"]) == 0
    profile.write_text(profile_of("before-night", StorageSettings()).to_json())  # as of a larger holdout
    against = ("--against", "registry:registry#cells", "--min-images", "30", "--output", "drift")
    assert main(["drift", "same-night", *against]) == 0
    assert main(["drift", "dark-night", *against]) == 3
    capsys.readouterr()
    monkeypatch.setenv("SEGRAY_IF_DRIFT", "same-night")
    assert retrain() == 4
    assert "same-night did not drift from the champion's profile" in capsys.readouterr().err


def test_a_champion_of_segray_train_brings_what_it_learned_from(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its labels are no news, and none of its pictures is held out later but those that were."""
    monkeypatch.chdir(tmp_path)
    write_labels(tmp_path / "cells", FIRST)
    settings = {**TRAIN, "data": "cells", "output": "trained", "epochs": 1}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", "--config", "train.yaml"]) == 0
    assert main(["registry", "add", "cells", "trained", "--registry", "registry"]) == 0
    assert main(["registry", "promote", "cells@challenger", "--registry", "registry"]) == 0
    write_config(tmp_path, epochs=1)
    content = json.loads((tmp_path / "cells/instances.json").read_text())
    for image in content["images"]:
        del image["split"]
    (tmp_path / "cells/instances.json").write_text(json.dumps(content))
    assert retrain() == 4
    assert "0 new, 0 changed, 0 removed since the last round" in capsys.readouterr().err
    (version,) = registry(tmp_path).versions("cells")
    snapshot = from_bytes(registry(tmp_path).read("cells", version.digest, "snapshot.parquet"))
    assert snapshot is not None
    assert Counter(snapshot["split"].to_pylist()) == Counter(splits_of(FIRST))
    assert None not in snapshot["digest"].to_pylist()
