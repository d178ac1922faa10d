"""`segray registry`, as typed; and its addresses as weights."""

import json
import re
import sys
from pathlib import Path

import pytest

from segray.cli import main
from tests.registry.models import write_model


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        write_model(tmp_path / f"{seed}.pt", seed)
    return tmp_path


def registry(*words: str) -> int:
    return main(["registry", *words, "--registry", "reg"])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    return found.out + found.err


def version_in(text: str) -> str:
    found = re.search(r"@([0-9a-f]{12})", text)
    assert found is not None
    return found[1]


def test_the_verb_as_typed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert registry("list") == 4
    assert registry("add", "roads", "1.pt", "--why", "first labels") == 0
    first = version_in(said(capsys))
    assert registry("promote", "roads") == 0
    assert registry("add", "roads", "2.pt") == 0
    second = version_in(capsys.readouterr().out)
    assert registry("promote", f"roads@{second}", "--why", "better") == 0
    assert registry("show", "roads") == 0
    told = said(capsys)
    assert f"promote  {first} -> {second}  (better)" in told
    assert registry("show", "roads@previous", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["version"], shown["aliases"]) == (first, ["previous"])
    assert registry("rollback", "roads") == 0
    assert registry("list", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert (row["champion"], row["previous"], row["challenger"]) == (first, second, None)
    assert registry("diff", f"roads@{first}", "roads@previous") == 0
    assert registry("verify") == 0
    assert "2 versions: every object is intact" in said(capsys)
    assert registry("gc", "roads", "--keep", "0") == 0
    assert "0 versions deleted" in said(capsys)
    (here / "reg/roads/versions" / first / "card.md").unlink()
    assert registry("verify", "roads") == 1
    assert f"roads@{first}: card.md is missing" in said(capsys)


def test_what_was_refused_is_promoted_by_force_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert registry("add", "roads", "1.pt") == 0
    version = version_in(said(capsys))
    path = here / "reg/roads/versions" / version / "metrics.json"
    path.write_text(json.dumps({"decision": {"promoted": False, "reasons": ["no gain"], "champion": "x"}}))
    assert registry("promote", "roads") == 5
    assert "no gain" in said(capsys)
    assert registry("promote", "roads", "--force") == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "words: is required"),
        (("lst",), 2, "'lst' is not one of list, show"),
        (("add", "roads"), 2, "usage: segray registry add MODEL FILE|RUN"),
        (("add", "roads", "gone.pt"), 2, "neither a model file nor a finished training"),
        (("add", "ro/ads", "1.pt"), 2, "use letters, digits"),
        (("add", "roads", "note.txt"), 2, "note.txt: refused, it carries code or is not a file"),
        (("show", "roads"), 4, "has no model roads; it is empty, or does not exist"),
        (("gc", "roads"), 4, "has no model roads"),
        (("list", "--keep", "1"), 2, "keep, older_than_days: only for gc"),
    ],
)
def test_wrong_words(
    here: Path, words: tuple[str, ...], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "note.txt").write_text("no model")
    assert registry(*words) == code
    assert told in said(capsys)
    assert not (here / "reg").exists()


def test_an_address_is_weights_and_the_run_is_known(
    here: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    (here / "photos").mkdir()
    Image.new("RGB", (64, 48), (90, 120, 60)).save(here / "photos/a.png")
    assert registry("add", "roads", "1.pt") == 0
    version = version_in(said(capsys))
    weights = ("--weights", "registry:reg#roads@challenger", "--output", "out")
    assert main(["predict", "photos", "--weights", "registry:reg#roads", "--output", "out"]) == 2
    assert "roads has no champion" in said(capsys)
    assert main(["predict", "photos", *weights]) == 0
    record = json.loads((here / "out/run.json").read_text())
    assert record["identity"]["model"] == f"registry://{here}/reg#roads@{version}"
    assert record["settings"]["weights"] == f"registry://{here}/reg#roads@challenger"
    said(capsys)
    assert registry("show", "roads", "--json") == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["version"], run["verb"], run["output"]) == (version, "predict", f"file://{here}/out")


def test_mlflow_shows_what_the_registry_has(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{here}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    versions = []
    for name in ("1.pt", "2.pt"):
        assert registry("add", "roads", name) == 0
        versions.append(version_in(said(capsys)))
        assert registry("promote", "roads") == 0
    assert registry("rollback", "roads") == 0
    client = MlflowClient()
    found = {each.tags["segray.version"]: each for each in client.search_model_versions("name='roads'")}
    assert sorted(found) == sorted(versions)
    assert found[versions[0]].source == f"{here}/reg/roads/versions/{versions[0]}/model.pt"
    aliases = {name: str(number) for name, number in client.get_registered_model("roads").aliases.items()}
    numbers = [str(found[version].version) for version in versions]
    assert aliases == {"champion": numbers[0], "previous": numbers[1]}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hidden@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert registry("rollback", "roads") == 0
    told = said(capsys)
    assert "is not registered in MLflow" in told
    assert "hidden" not in told


def test_mlflow_that_is_not_installed_is_told_before_anything_changes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert registry("add", "roads", "1.pt") == 2
    assert "mlflow is not installed" in said(capsys)
    assert registry("list") == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"registered": []}'),
        ("run.json", '{"registered": {"sha256": [1]}}'),
        ("run.json", '{"registered": {"sha256": {"model.pt": 4}}, "settings": 3}'),
        ("metrics.json", '{"figures": 3}'),
        ("metrics.json", '{"holdout": 3, "figures": {"ap": 0.5}}'),
        ("metrics.json", '{"decision": 4}'),
    ],
)
def test_a_damaged_version_is_told_whatever_is_asked(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    assert registry("add", "roads", "1.pt") == 0
    assert registry("promote", "roads") == 0
    version = version_in(said(capsys))
    (here / "reg/roads/versions" / version / name).write_text(content)
    for words in (("show", "roads"), ("show", f"roads@{version}"), ("verify",)):
        assert registry(*words) == 1
        assert name in said(capsys)
    assert registry("diff", "roads", "roads") == 1
    said(capsys)
