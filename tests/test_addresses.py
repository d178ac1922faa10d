"""Every address in the settings is absolute once it is read, whatever named it."""

from pathlib import Path

import pytest
import yaml

from segray.address import absolute_address
from segray.annotate.settings import AnnotateSettings
from segray.command_line import load_settings
from segray.evaluate.settings import EvaluateSettings
from segray.predict.settings import PredictSettings
from segray.settings import JobSettings, printable
from segray.train.settings import TrainSettings

URLS = ("s3://bucket/./a", "gs://b/a?x", "az://c@account/a", "https://user@host/a.csv?sig=1")
CASES: list[tuple[type[JobSettings], list[str]]] = [
    (AnnotateSettings, ["sources", "output", "weights"]),
    (PredictSettings, ["sources", "output", "weights"]),
    (TrainSettings, ["data", "output", "root"]),
    (TrainSettings, ["data", "output", "footprints"]),
    (EvaluateSettings, ["predictions", "labels", "output", "root"]),
    (EvaluateSettings, ["weights", "data", "output", "root"]),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "work/deep").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize(("kind", "names"), CASES)
@pytest.mark.parametrize("way", ["flags", "file", "environment"])
def test_every_address_of_every_verb(
    kind: type[JobSettings], names: list[str], way: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {name: [f"./{name}.pt"] if name == "sources" else f"./{name}.pt" for name in names}
    flags = [f"--{name}=./{name}.pt" for name in names if name != "sources"]
    flags += ["./sources.pt"] if "sources" in names else []
    if way == "file":
        (here / "work/a.yaml").write_text(yaml.safe_dump(given))
        flags = ["--config", "a.yaml"]
    if way == "environment":
        for name in names:
            monkeypatch.setenv(
                f"SEGRAY_{name.upper()}", '["./sources.pt"]' if name == "sources" else f"./{name}.pt"
            )
        flags = []
    settings = load_settings(kind, flags, "segray")
    for name in names:
        wanted = str(here / f"work/{name}.pt")
        assert getattr(settings, name) == ([wanted] if name == "sources" else wanted)
        assert yaml.safe_load(printable(settings))[name] == ([wanted] if name == "sources" else wanted)
    assert settings.config == (here / "work/a.yaml" if way == "file" else None)


def test_what_is_made_absolute_and_how(here: Path) -> None:
    work = here / "work"
    (work / "is%20there").mkdir()
    for given, wanted in {
        "a": work / "a",
        "./a/../b/": work / "b",
        "../x": here / "x",
        "~/x": here / "home/x",
        "/abs//x/": "/abs/x",
        "photos/**/*.jpg": work / "photos/**/*.jpg",
        "file://a/b": f"file://{work}/a/b",
        "file:///a/b": "file:///a/b",
        "FILE://~/b": f"FILE://{here}/home/b",
        "file:/a/b": "file:///a/b",
        "file://localhost/a/b": "file:///a/b",
        (work / "a b#ü?.csv").as_uri(): f"file://{work}/a b#ü?.csv",
        f"file://{work}/new%20folder": f"file://{work}/new folder",
        f"file://{work}/is%20there": f"file://{work}/is%20there",
        "a%20b": work / "a%20b",
        "C:/a": work / "C:/a",
        **{url: url for url in URLS},
    }.items():
        assert absolute_address(given) == str(wanted)
        assert absolute_address(str(wanted)) == str(wanted)
    with pytest.raises(ValueError, match="no home folder is known for ~nobody-of-that-name/x"):
        absolute_address("~nobody-of-that-name/x")
    for scheme in ("s3", "gs", "abfss", "https"):
        with pytest.raises(ValueError, match=f"{scheme}:/ has one slash; write {scheme}://"):
            absolute_address(f"{scheme}:/bucket/x")


def test_weights_may_be_names_files_and_factories(here: Path) -> None:
    (here / "work/bare").write_bytes(b"")
    for given, wanted in {
        "nuclei-small": "nuclei-small",
        "coco-v2": "coco-v2",
        "python:package.module:factory": "python:package.module:factory",
        "s3://b/m.pt": "s3://b/m.pt",
        "m.pt": str(here / "work/m.pt"),
        "bare": str(here / "work/bare"),
        "nuclei-smal": "nuclei-smal",  # told later, with what else is wrong
        "./x": str(here / "work/x"),
    }.items():
        run = ("a", "--output", "o", "--weights", given)
        assert load_settings(AnnotateSettings, run, "segray annotate").weights == wanted


def test_a_file_of_credentials_and_a_token_that_is_none(here: Path) -> None:
    (here / "work/key.json").write_text("{}")
    for given, wanted in {"key.json": str(here / "work/key.json"), "anon": "anon"}.items():
        settings = load_settings(
            AnnotateSettings, ["a", "--output", "o", "--storage.gcs.token", given], "segray annotate"
        )
        token = settings.storage.gcs.token
        assert token is not None
        assert token.get_secret_value() == wanted


def test_no_address_is_printed_with_its_credentials() -> None:
    """Footprints too, which a list of names once forgot."""
    secret = "https://me:hush@host/a.geojson?sig=hush"
    options = ["--data", secret, "--output", "s3://k:hush@b/o", "--footprints", secret]
    text = printable(load_settings(TrainSettings, options, "segray train"))
    assert "https://host/a.geojson" in text
    assert "hush" not in text
