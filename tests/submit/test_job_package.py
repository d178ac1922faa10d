"""What `segray submit` makes of a command, before anything is sent."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from pydantic import AfterValidator

from segray.address import absolute_address
from segray.annotate.settings import AnnotateSettings
from segray.cli import main
from segray.command_line import load_settings
from segray.comparison.settings import CompareSettings
from segray.errors import SettingsError
from segray.settings import WeightsAddress
from segray.submit import slurm
from segray.submit.job import split
from segray.submit.job_package import ADDRESSES, SETTINGS, Order, members, order_of
from segray.submit.settings import SubmitSettings
from segray.submit.shell import asked
from segray.verbs import ON_DATA, VERBS

RAY = ("--address", "http://head:8265")
REMOTE = ("s3://bucket/photos", "--output", "s3://bucket/labels")


def annotate(*arguments: str, submit: tuple[str, ...] = RAY) -> Order:
    settings = load_settings(AnnotateSettings, arguments, "segray annotate")
    return order_of("annotate", settings, load_settings(SubmitSettings, submit, "segray submit"))


def problems(*arguments: str, submit: tuple[str, ...] = RAY) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        annotate(*arguments, submit=submit)
    return list(caught.value.lines)


def is_address(annotation: Any) -> bool:
    """Whether a setting of that type names a file or a URL."""
    if get_origin(annotation) is Annotated:
        wanted = {absolute_address, *_functions(WeightsAddress)}
        return not wanted.isdisjoint(_functions(annotation)) or is_address(get_args(annotation)[0])
    return any(is_address(each) for each in get_args(annotation))


def _functions(annotation: Any) -> set[Any]:
    return {mark.func for mark in get_args(annotation)[1:] if isinstance(mark, AfterValidator)}


def test_every_setting_that_names_files_is_known() -> None:
    found = {
        name
        for cls in (VERBS[name].settings_class() for name in ON_DATA)
        for name, annotation in get_type_hints(cls, include_extras=True).items()
        if is_address(annotation)
    }
    assert found == set(ADDRESSES)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--slurm annotate a --output b", (["--slurm"], "annotate", ["a", "--output", "b"])),
        ("--name train --slurm train --data d", (["--name", "train", "--slurm"], "train", ["--data", "d"])),
        ("--name=x predict predict", (["--name=x"], "predict", ["predict"])),
        (
            "--dry-run --address http://h:1 evaluate",
            (["--dry-run", "--address", "http://h:1"], "evaluate", []),
        ),
        ("--slurm", (["--slurm"], "", [])),
        ("annotate --slurm", ([], "annotate", ["--slurm"])),
        ("--no-detach annotate", (["--no-detach"], "annotate", [])),
    ],
)
def test_what_stands_before_the_verb_is_for_submit(
    words: str, expected: tuple[list[str], str, list[str]]
) -> None:
    assert split(words.split()) == expected


def test_settings_in_force_are_sent_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGRAY_STORAGE__S3__SECRET", "the-secret-itself")
    order = annotate(*REMOTE, "--score-threshold", "0.7", "--storage.s3.endpoint-url", "http://minio:9000")
    assert yaml.safe_load(order.settings) == {
        "storage": {"s3": {"endpoint_url": "http://minio:9000"}},
        "sources": ["s3://bucket/photos"],
        "output": "s3://bucket/labels",
        "score_threshold": 0.7,
    }
    assert order.kept_back == ("storage.s3.secret",)
    assert "the-secret-itself" not in repr(order)
    again = load_settings(AnnotateSettings, ["--config", _file(order)], "segray annotate")
    assert again.score_threshold == 0.7


def _file(order: Order) -> str:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
        file.write(order.settings)
    return file.name


@pytest.mark.parametrize(
    "address",
    [
        "https://host/photo.jpg?token=abc",
        "s3://key:secret@bucket/a",
        "s3://b/a?X-Amz-Signature=1&X-Amz-Date=2",
    ],
)
def test_a_signed_address_is_not_sent(address: str) -> None:
    (line,) = problems(address, "--output", "s3://bucket/labels")
    assert line.startswith("sources: ")
    assert "not sent" in line
    assert not any(secret in line for secret in ("token=abc", "secret@", "Signature=1"))


def test_paths_of_this_machine_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    lines = problems(str(tmp_path), "--output", f"{tmp_path}/out", "--ray.address", "host:6379")
    assert [line.split(":")[0] for line in lines] == ["sources", "output", "ray.address"]
    assert "--shared-filesystem" in lines[0]
    assert "--package" in lines[0]
    assert "--package" not in lines[1]  # what a job writes there is lost with it
    shared = annotate(str(tmp_path), "--output", f"{tmp_path}/out", submit=(*RAY, "--shared-filesystem"))
    assert yaml.safe_load(shared.settings)["sources"] == [str(tmp_path)]


def test_files_of_the_package_are_named_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/photos.csv").write_text("uri\ns3://bucket/a.jpg\n")
    order = annotate(
        "lists/photos.csv", "--output", "s3://bucket/labels", submit=(*RAY, "--package", "lists")
    )
    assert yaml.safe_load(order.settings)["sources"] == ["photos.csv"]
    assert [name for name, _ in members(order.files)] == ["photos.csv"]
    (line,) = problems("other.csv", "--output", "s3://b/l", submit=(*RAY, "--package", "lists"))
    assert "other.csv is on this machine only" in line
    assert problems(*REMOTE, submit=(*RAY, "--package", "nowhere")) == [
        f"package: {tmp_path}/nowhere is not a folder"
    ]


def test_a_model_file_goes_with_the_job(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    order = annotate(*REMOTE, "--weights", f"{tmp_path}/model.pt")
    assert yaml.safe_load(order.settings)["weights"] == "weights/model.pt"
    assert [*members(order.files)] == [("weights/model.pt", tmp_path / "model.pt")]
    before = order.digest
    (tmp_path / "model.pt").write_bytes(b"other weights")
    assert annotate(*REMOTE, "--weights", f"{tmp_path}/model.pt").digest != before
    (line,) = problems(*REMOTE, "--weights", f"{tmp_path}/model.pt", submit=("--slurm",))
    assert line.startswith("weights: ")


def test_models_of_one_name_go_under_two(tmp_path: Path) -> None:
    """As those of several trainings, which `compare` takes."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pt").write_bytes(name.encode())
    models = [f"{tmp_path}/{name}/model.pt" for name in "aba"]
    given = ["--data", "s3://b/splits.csv", "--output", "s3://b/out", "--weights", ",".join(models)]
    settings = load_settings(CompareSettings, [*given, "--weights", "nuclei-small"], "segray compare")
    order = order_of("compare", settings, load_settings(SubmitSettings, RAY, "segray submit"))
    sent = yaml.safe_load(order.settings)["weights"]
    assert sent == ["weights/model.pt", "weights/2/model.pt", "weights/model.pt", "nuclei-small"]
    assert [path.read_bytes() for _, path in members(order.files)] == [b"b", b"a"]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("nope.pt", "weights nope.pt: no such file"),
        ("nuclei-smal", "did you mean nuclei-small?"),
        ("python:mymodel", "write python:module:factory"),
        ("python:sys:f", ""),
    ],
)
def test_weights_are_looked_at_here(
    weights: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if not said:
        assert annotate(*REMOTE, "--weights", weights).files == {}
        return
    (line,) = problems(*REMOTE, "--weights", weights)
    assert said in line.replace(f"{tmp_path}/", "")


def test_a_package_is_what_can_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing hidden, no credentials, no pipe; links once; and its other files make no other job of it."""
    package = tmp_path / "package"
    (package / "photos").mkdir(parents=True)
    for name in ("photos/a.jpg", ".env", "segray-job.yaml"):
        (package / name).touch()
    (package / ".aws").mkdir()
    (package / ".aws/credentials").touch()
    (package / "broken").symlink_to("/nonexistent")
    (package / "loop").symlink_to("..")
    os.mkfifo(package / "pipe")
    words = (f"{package}/photos", "--output", "s3://bucket/labels")
    order = annotate(*words, submit=(*RAY, "--package", str(package)))
    assert [name for name, _ in members(order.files)] == ["photos/a.jpg"]
    (package / "another.txt").touch()
    assert annotate(*words, submit=(*RAY, "--package", str(package))).digest == order.digest
    with (package / "huge.bin").open("wb") as file:
        file.truncate(600_000_000)
    (line,) = problems(*words, submit=(*RAY, "--package", str(package)))
    assert line.startswith("package: 600 MB are too much for Ray (500 MB); the largest file is huge.bin")


def test_settings_in_the_environment_do_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would win over what is sent, and may be secret: sbatch sends its own environment along."""
    monkeypatch.setenv("SEGRAY_STORAGE__S3__SECRET", "the-secret-itself")
    assert "the-secret-itself" not in asked(["env"])
    settings = load_settings(SubmitSettings, ["--slurm"], "segray submit")
    text = slurm.script(settings, annotate(*REMOTE, submit=("--slurm",)))
    (tmp_path / "segray").write_text("#!/bin/sh\nenv > seen\n")
    (tmp_path / "segray").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NUM_NODES": "1",
        "SEGRAY_SCORE_THRESHOLD": "0.9", "SEGRAY_STORAGE__S3__SECRET": "the-secret-itself",
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "SEGRAY_" not in (tmp_path / "seen").read_text()


def test_a_module_of_ones_own_goes_with_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_detector.py").write_text("raise RuntimeError('not to be imported here')\n")
    (tmp_path / "own_models/__pycache__").mkdir(parents=True)
    (tmp_path / "own_models/__init__.py").touch()
    (tmp_path / "own_models/__pycache__/x.pyc").touch()
    (tmp_path / "own_models/net.py").touch()
    assert [n for n, _ in members(annotate(*REMOTE, "--weights", "python:own_detector:make").files)] == [
        "own_detector.py"
    ]
    order = annotate(*REMOTE, "--weights", "python:own_models.net:make")
    assert [name for name, _ in members(order.files)] == ["own_models/__init__.py", "own_models/net.py"]
    assert annotate(*REMOTE, "--weights", "python:torchvision.models:resnet18").files == {}
    assert problems(*REMOTE, "--weights", "python:nowhere_to_be_found:make") == [
        "weights: there is no module nowhere_to_be_found on this machine"
    ]
    (line,) = problems(*REMOTE, "--weights", "python:own_detector:make", submit=("--slurm",))
    assert "own_detector is on this machine only" in line
    assert "own_detector" not in sys.modules


def test_a_dry_run_prints_the_request_and_sends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *RAY, "--name", "nightly", "--dry-run", "annotate", *REMOTE]) == 0
    request, settings = capsys.readouterr().out.split("---\n")
    assert json.loads(request) == {
        "POST": "http://head:8265/api/jobs/",
        "submission_id": "nightly",
        "entrypoint": f"segray annotate --config {SETTINGS}",
        "metadata": {"segray": annotate(*REMOTE).digest, "verb": "annotate"},
        "runtime_env": {"working_dir": [SETTINGS]},
    }
    assert yaml.safe_load(settings)["output"] == "s3://bucket/labels"


def test_what_stands_after_the_verb_is_the_verbs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config file too, also by the environment; a dry run of the job would else be a run."""
    (tmp_path / "annotate.yaml").write_text("sources: [s3://bucket/photos]\nscore_threshold: 0.7\n")
    monkeypatch.setenv("SEGRAY_CONFIG", f"{tmp_path}/annotate.yaml")
    assert main(["submit", "--slurm", "annotate", "--output", "s3://bucket/labels", "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["score_threshold"], printed["output"]) == (0.7, "s3://bucket/labels")
    assert main(["submit", "--slurm", "annotate", "--output", "s3://bucket/labels", "--dry-run"]) == 2
    assert "put --dry-run before the verb" in capsys.readouterr().err
    assert main(["submit", "--slurm", "--dry-run", "annotate", "--output", "s3://bucket/labels"]) == 0
    assert "score_threshold: 0.7" in capsys.readouterr().out


def test_an_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(36):
        (tmp_path / f"photos/{number}.jpg").touch()
    command = ["annotate", str(tmp_path / "photos"), "--output", f"{tmp_path}/out"]
    options = ["submit", "--slurm", "--shared-filesystem", "--dry-run"]
    assert main([*options, "--rate", "0.01", "--hourly-price", "3", *command]) == 0
    assert "36 images at 100.0 s/image: 1:00:00, 3.00 at 3 an hour" in capsys.readouterr().err
    (tmp_path / "before").mkdir()
    record = {"rates": {"images_per_s": 0.02, "items": 10}, "cost": {"total": 5.0}}
    (tmp_path / "before/run.json").write_text(json.dumps(record))
    assert main([*options, "--like", f"{tmp_path}/before", *command]) == 0
    assert (
        "36 images at 50.0 s/image: 0:30:00, 18.00 in the currency of the prices" in capsys.readouterr().err
    )
    (tmp_path / "before/run.json").write_text("{}")
    assert main([*options, "--like", f"{tmp_path}/before", *command]) == 2
    assert "like: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "set one of --address URL, --slurm, --kuberay, --sky"),
        (("--slurm", "--sky"), "given: --slurm and --sky"),
        (("--address", "head:8265"), "address: must be http(s)://HOST:PORT, without user and query"),
        (("--address", "http://user:pass@head:8265"), "address: must be http(s)://HOST:PORT"),
        (("--slurm", "--setup", 'export A="x'), "setup: "),
        (("--slurm", "anotate", "s3://b/x", "--output", "s3://b/y"), "did you mean annotate?"),
        (("--slurm", "--storage.timeout-s", "5", "annotate"), "an option of annotate; put it after annotate"),
        (
            ("--slurm", "annotate", "s3://b/x", "--output", "s3://b/y", "--nodes", "3"),
            "put it before the verb",
        ),
        (("--slurm", "--package", "."), "leave --package out"),
        (("--slurm", "--name", "Not a name"), "name"),
        (("--slurm",), "one of annotate, train, predict, evaluate"),
        (("--slurm", "annotate", "s3://b/x"), "output: is required"),
    ],
)
def test_wrong_commands(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *words]) == 2
    assert said in capsys.readouterr().err


def test_examples_of_the_help_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        line.split()[1:]
        for line in SubmitSettings.examples.splitlines()
        if line.lstrip().startswith("segray ")
    ]
    assert len(lines) >= 4
    for words in lines:
        own, verb, rest = split(words[1:])
        assert load_settings(SubmitSettings, own, "segray submit").where
        assert verb
        assert rest
