"""Which words are schedule's and which the verb's, and what is wrong with them, told at once."""

import json
from pathlib import Path

import pytest
import yaml

from segray.annotate.settings import AnnotateSettings
from segray.cli import main
from segray.evaluate.settings import EvaluateSettings
from segray.predict.settings import PredictSettings
from segray.retrain.settings import RetrainSettings
from segray.schedule.job import split
from segray.schedule.settings import SCHEDULERS, USED, ScheduleSettings
from segray.settings import CommonSettings
from segray.train.settings import TrainSettings
from segray.verbs import ON_DATA
from tests.schedule.made import REMOTE, written

OWN = ("--cron", "0 3 * * *", "--as")


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said of a command that is refused."""
    capsys.readouterr()
    assert main(["schedule", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize(
    "cls", [AnnotateSettings, TrainSettings, PredictSettings, EvaluateSettings, RetrainSettings]
)
def test_no_name_has_two_meanings(cls: type[CommonSettings]) -> None:
    both = set(ScheduleSettings.model_fields) & set(cls.model_fields)
    assert both == set(CommonSettings.model_fields)


@pytest.mark.parametrize(
    "words",
    [
        "--cron T --as systemd train --data d --name=n --config c --storage.attempts 3",
        "train --data d --cron T --config c --as systemd --name=n --storage.attempts 3",
        "--name=n train --as systemd --data d --config c --storage.attempts 3 --cron T",
    ],
)
def test_options_stand_anywhere(words: str) -> None:
    own, verb, rest = split(words.split())
    assert sorted(own) == ["--as", "--cron", "--name=n", "T", "systemd"]
    assert (verb, rest) == ("train", ["--data", "d", "--config", "c", "--storage.attempts", "3"])


def test_a_switch_takes_no_word_with_it() -> None:
    for switch in ("--shared-filesystem", "--no-shared-filesystem"):
        own, _, rest = split(["annotate", switch, "photos", "--print-config"])
        assert (own, rest) == ([switch], ["photos", "--print-config"])


def test_everything_wrong_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, "annotate", "--cron", "0 30 * * *", "--as", "sytemd", "--threshold", "2")
    for each in ("cron: its hour is invalid", "as: ", "--threshold", "output: is required"):
        assert each in said


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], f"one of {', '.join(ON_DATA)}"),
        ([*OWN, "k8s"], "say what is to be run"),
        ([*OWN, "k8s", "anotate", "x"], "did you mean annotate?"),
        ([*OWN, "k8s", "--storage.attempts", "3", *REMOTE], "an option of annotate; put it after annotate"),
        (["--as", "k8s", *REMOTE], "cron: is required"),
        (["--cron", "0 3 * * *", *REMOTE], "as: is required"),
        ([*OWN, "k8s", *REMOTE, "--crn", "x"], "did you mean cron?"),
        ([*OWN, "k8s", *REMOTE, "--dry-run"], "dry_run: a dry run is not scheduled"),
        ([*OWN, "k8s", *REMOTE, "--time-zone", "Europe/Berlni"], "did you mean Europe/Berlin?"),
        ([*OWN, "k8s", *REMOTE, "--time-zone", "Europe"], "no time zone of that name"),
        ([*OWN, "k8s", *REMOTE, "--time-zone", "../../etc/passwd"], "no time zone of that name"),
        ([*OWN, "slurm", *REMOTE, "--time-zone", "UTC"], "time_zone: not supported by --as slurm"),
        ([*OWN, "crontab", *REMOTE, "--image", "x"], "image: not supported by --as crontab"),
        ([*OWN, "k8s", *REMOTE, "--nodes", "2"], "nodes: not supported by --as k8s"),
        ([*OWN, "k8s", *REMOTE, "--name", "Nightly"], "lower-case"),
        ([*OWN, "k8s", "annotate", "photos", "--output", "s3://b/x"], "is on this machine only"),
        ([*OWN, "airflow", "annotate", "photos", "--output", "s3://b/x"], "is on this machine only"),
        ([*OWN, "slurm", *REMOTE, "--ray.address", "auto"], "ray.address: leave it out"),
        (["--cron", "0 3 */2 * 1", "--as", "k8s", *REMOTE], "only systemd and crontab support both"),
        (["--cron", "0 3 */2,3 * */2,1", "--as", "crontab", *REMOTE], "as lists of numbers with commas"),
        ([*OWN, "k8s", "annotate", "https://h/x?token=SECRET", "--output", "s3://b/y"], "which is not sent"),
    ],
)  # fmt: skip
def test_what_is_refused(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, *words)
    assert part in said
    assert "SECRET" not in said


def test_every_option_is_of_use_somewhere() -> None:
    assert set().union(*USED.values()) == set(ScheduleSettings.model_fields)
    assert set(USED) == set(SCHEDULERS)


def test_settings_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go into the text; those for another scheduler are no mistake, as one environment serves all."""
    for name, value in {"AS": "systemd", "CRON": "0 3 * * *", "IMAGE": "x", "BATCH_SIZE": "3"}.items():
        monkeypatch.setenv(f"SEGRAY_{name}", value)
    assert main(["schedule", *REMOTE, "--into", str(tmp_path)]) == 0
    assert yaml.safe_load((tmp_path / "annotate.yaml").read_text())["batch_size"] == 3


def test_settings_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "schedule.yaml").write_text("as: k8s\ncron: 0 3 * * *\nimage: registry/segray:1\n")
    (tmp_path / "job.yaml").write_text("sources: [s3://b/x]\noutput: s3://b/y\n")
    own = ("--config", str(tmp_path / "schedule.yaml"), "--into", str(tmp_path / "made"))
    assert main(["schedule", *own, "annotate", "--config", str(tmp_path / "job.yaml")]) == 0
    text = (tmp_path / "made/annotate.yaml").read_text()
    assert "image: registry/segray:1" in text
    assert "- s3://b/x" in text


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_secret_is_in_a_text(scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGRAY_STORAGE__S3__SECRET", "SECRET-1")
    job = (*REMOTE, "--storage.s3.key", "SECRET-2", "--storage.s3.endpoint-url", "http://minio:9000")
    text = "\n".join(written(tmp_path, scheduler, job=job).values())
    assert "SECRET-" not in text
    assert "# Left out because it is secret: storage.s3.key; set it in the environment as" in text
    assert "SEGRAY_STORAGE__S3__SECRET." in text
    assert "# Needs access to s3://: AWS_ACCESS_KEY_ID" in text
    assert "endpoint_url: http://minio:9000" in text or "endpoint_url: http://minio:9000" in json.dumps(text)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_it_is_printed_as_it_is_written(
    scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for where the files are to lie; of several, each with its name."""
    files = written(tmp_path, scheduler)
    capsys.readouterr()
    assert main(["schedule", *OWN, scheduler, *REMOTE]) == 0
    out = capsys.readouterr().out
    assert out.count("# file: ") == (len(files) if len(files) > 1 else 0)
    for suffix, text in files.items():
        assert text.splitlines()[-1] in out or str(tmp_path) in text, suffix
    if len(files) == 1:
        assert [out] == list(files.values())


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    said = told(capsys, *OWN, "k8s", *REMOTE, "--into", str(tmp_path / "file"))
    assert f"into: cannot write {tmp_path}/file/annotate.yaml" in said


@pytest.mark.parametrize("words", [["--help"], ["annotate", "--help"]])
def test_help_of_both(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["schedule", *words])
    assert ended.value.code == 0
    assert ("--score-threshold" if len(words) > 1 else "--time-zone") in capsys.readouterr().out
