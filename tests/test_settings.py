"""Flags, environment, file, defaults; and everything that is wrong told at once."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic_settings import BaseSettings

from segray.annotate.settings import AnnotateSettings
from segray.command_line import load_settings
from segray.comparison.settings import CompareSettings
from segray.errors import SettingsError
from segray.evaluate.settings import EvaluateSettings
from segray.panoptic.settings import PanopticSettings
from segray.predict.settings import PredictSettings
from segray.retrain.settings import RetrainSettings
from segray.selection.settings import SelectSettings
from segray.settings import printable
from segray.train.settings import TrainSettings


def load(*arguments: str) -> AnnotateSettings:
    return load_settings(AnnotateSettings, arguments, "segray annotate")


def problems(*arguments: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(*arguments)
    return list(caught.value.lines)


def test_what_a_file_turns_on_a_flag_turns_off(tmp_path: Path) -> None:
    file = tmp_path / "annotate.yaml"
    file.write_text("sources: [a]\noutput: o\nretry_rejected: true\nlocation: false\n")
    assert load("--config", str(file)).retry_rejected
    changed = load("--config", str(file), "--no-retry-rejected", "--location")
    assert (changed.retry_rejected, changed.location) == (False, True)


def test_flags_beat_environment_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "annotate.yaml"
    file.write_text(
        "sources: [from-file]\noutput: o\nscore-threshold: 0.1\nactors: 3\nmax_pixels: 7\n"
        "storage: {s3: {key: file, region: there}}\n"
    )
    monkeypatch.setenv("SEGRAY_SCORE_THRESHOLD", "0.2")
    monkeypatch.setenv("SEGRAY_ACTORS", "4")
    monkeypatch.setenv("SEGRAY_STORAGE__S3__KEY", "environment")
    settings = load("--config", str(file), "--score-threshold", "0.3", "--storage.timeout-s", "5")
    assert settings.sources == [str(Path.cwd() / "from-file")]
    assert (settings.score_threshold, settings.actors, settings.max_pixels) == (0.3, 4, 7)
    assert settings.max_rejects == 0.0
    assert settings.storage.s3.key is not None
    assert (settings.storage.s3.key.get_secret_value(), settings.storage.s3.region) == (
        "environment",
        "there",
    )
    assert settings.storage.timeout_s == 5


def test_a_source_is_taken_as_it_is_typed() -> None:
    names = ("photos,2024", "[ab].jpg", "true", "2024", "a b", "back\\slash", "s3://bucket/a,b")
    sources = load(*names, "--output", "o").sources
    assert sources == [name if "://" in name else str(Path.cwd() / name) for name in names]
    assert load('["a", "b,c"]', "--output", "o").sources == [str(Path.cwd() / name) for name in ("a", "b,c")]
    (line,) = problems('6" disks', "--output", "o")
    assert line.startswith("sources: ")
    assert "--config file" in line


def test_the_environment_may_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("output: o\n")
    monkeypatch.setenv("SEGRAY_CONFIG", str(tmp_path / "a.yaml"))
    assert load("x").output == str(Path.cwd() / "o")


TRAINED = ("--data", "d", "--output", "o")


def test_the_environment_beats_the_file_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("epochs: 48\naugment: {rotation: 3}\n")
    monkeypatch.setenv("SEGRAY_EPOCHS", "1")
    monkeypatch.setenv("SEGRAY_AUGMENT__ROTATION", "4")
    options = (*TRAINED, "--config", f"{tmp_path}/a.yaml")
    settings = load_settings(TrainSettings, options, "segray train")
    assert (settings.epochs, settings.augment.rotation) == (1, 4)
    assert load_settings(TrainSettings, (*options, "--epochs", "2"), "segray train").epochs == 2


def test_one_environment_serves_every_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another verb knows is no mistake; what none knows still is."""
    for name, value in {
        "EPOCHS": "1",
        "AUGMENT__ROTATION": "4",
        "TTA": "flip",
        "SPLIT": "val",
        "ACTORS": "3",
    }.items():
        monkeypatch.setenv(f"SEGRAY_{name}", value)
    assert load("x", "--output", "o").actors == 3
    assert load_settings(TrainSettings, TRAINED, "segray train").epochs == 1
    scored = ("--predictions", "p", "--labels", "l", "--output", "o")
    assert load_settings(EvaluateSettings, scored, "segray evaluate").split == "val"
    monkeypatch.setenv("SEGRAY_EPOCS", "1")
    assert "SEGRAY_EPOCS: unknown setting in the environment; did you mean epochs?" in problems("x")


SETTING = re.compile(r"# ( *\w+: .*)|# ( *\w+:)$")


@pytest.mark.parametrize(
    "kind",
    [AnnotateSettings, PredictSettings, EvaluateSettings, CompareSettings, PanopticSettings, SelectSettings],
)
def test_the_file_to_copy_holds_every_setting_and_its_default(kind: type[BaseSettings]) -> None:
    """What is commented out and not marked as an example is the default."""
    verb = kind.__name__.removesuffix("Settings").lower()
    lines = (Path(__file__).parents[1] / f"jobs/{verb}.yaml").read_text().splitlines()[5:]
    bare = [SETTING.sub(lambda found: found[1] or found[2], line) for line in lines]
    whole = yaml.safe_load("\n".join(bare))
    fields = kind.model_fields
    assert whole.keys() - {"ray"} == fields.keys() - {"config", "print_config", "dry_run", "ray"}
    for nested in {"storage", "ray", "crf", "sam"} & whole.keys():
        found = type(fields[nested].default).model_validate(whole[nested])  # unknown names are refused
        assert nested not in ("crf", "sam") or found == fields[nested].default
    usual = [
        name
        for name, old in zip((line.split(":")[0] for line in bare), lines, strict=True)
        if name in fields and old.startswith(f"# {name}: ") and "# example" not in old
    ]
    assert {name: whole[name] for name in usual} == {name: fields[name].default for name in usual}
    assert len(usual) > 3


def test_sources_may_stand_anywhere() -> None:
    settings = load("--output", "o", "a", "--retry-rejected", "b")
    assert settings.sources == [str(Path.cwd() / name) for name in "ab"]
    assert settings.retry_rejected


def test_every_problem_is_told_at_once_with_dotted_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.yaml").write_text("storage: {s3: {regoin: x}}\nwieghts: y\n")
    monkeypatch.setenv("SEGRAY_ACTRS", "1")
    told = problems("--config", f"{tmp_path}/a.yaml", "--batch-sise=4", "--actors", "0", "--no-such")
    text = "\n".join(told)
    for expected in (
        "--batch-sise: unknown flag; did you mean batch-size?",
        "--no-such: unknown flag",
        "SEGRAY_ACTRS: unknown setting in the environment; did you mean actors?",
        "storage.s3.regoin: unknown setting; did you mean region?",
        "wieghts: unknown setting; did you mean weights?",
        "actors: Input should be greater than or equal to 1 (given: '0')",
        "output: is required",
        "sources: is required",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cannot read"), ("a: [", "is not YAML"), ("- a", "must hold"), (b"\xff\xfe\x00", "is not YAML")],
)
def test_a_missing_or_broken_file_is_an_error(tmp_path: Path, content: str | bytes | None, told: str) -> None:
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert any(line.startswith("config: ") and told in line for line in problems("x", "--config", str(path)))


def test_what_is_printed_reads_back_and_keeps_secrets() -> None:
    settings = load("a", "--output", "o", "--storage.s3.secret", "hush", "--actors", "2")
    text = printable(settings)
    assert "hush" not in text + repr(settings)
    assert "actors: 2" in text


def test_printed_settings_are_a_config_file(tmp_path: Path) -> None:
    settings = load("a", "--output", "o", "--actors", "2", "--ray.object-store-mib", "256")
    (tmp_path / "a.yaml").write_text(printable(settings))
    assert load("--config", str(tmp_path / "a.yaml")) == settings.model_copy(
        update={"config": tmp_path / "a.yaml"}
    )


def test_no_secret_is_told_whatever_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("storage: {s3: {secret: 123456789, region: [hush]}}\n")
    told = problems("x", "--config", f"{tmp_path}/a.yaml", "--storage.s3.secret-key=hush", "--output", "o")
    assert len(told) > 2
    assert "123456789" not in "".join(told)
    assert "hush" not in "".join(told)
    settings = load("https://me:hush@host/a.csv?sig=hush", "--output", "s3://k:hush@bucket/o")
    assert "hush" not in printable(settings)


def test_actors_must_make_sense() -> None:
    run = ("x", "--output", "o")
    assert "settings: min_actors (4) is above actors (2)" in problems(
        *run, "--actors", "2", "--min-actors", "4"
    )
    assert any(line.startswith("gpus_per_actor: ") for line in problems(*run, "--gpus-per-actor", "1.5"))


def test_the_file_of_retraining_to_copy_holds_every_setting() -> None:
    """What is commented out names settings, too; what is not is the default, but for `train`."""
    lines = (Path(__file__).parents[1] / "jobs/retrain.yaml").read_text().splitlines()[5:]
    there = yaml.safe_load("\n".join(lines))
    named = {line.removeprefix("# ").split(":")[0] for line in lines if SETTING.match(line)} | there.keys()
    common = {"config", "print_config", "dry_run", "ray", "storage", "log_format", "metrics_port"}
    assert RetrainSettings.model_fields.keys() - common == named & RetrainSettings.model_fields.keys()
    settings = RetrainSettings(data="d", registry="r", model="m", output="o", **there)
    fields = RetrainSettings.model_fields
    assert all(getattr(settings, name) == fields[name].default for name in there.keys() - {"train"})
