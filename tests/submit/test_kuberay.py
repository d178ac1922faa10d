"""`segray submit --kuberay` and `--sky` with stand-ins for `kubectl` and `sky`: no cluster of theirs is here.

The stand-ins know what these commands print and take; that Kubernetes takes the objects is in `test_files`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from segray.cli import main

KUBECTL = f"""#!{sys.executable}
import json, os, sys, yaml
from pathlib import Path
words = [word for word in sys.argv[1:]]
with open("called", "a") as file:
    print(*words, file=file)
job = Path("job.json")
if "apply" in words:
    _, found = yaml.safe_load_all(sys.stdin)
    job.write_text(json.dumps(found | {{"steps": json.loads(os.environ["STEPS"])}}))
elif "delete" in words:
    job.unlink()
elif "logs" in words:
    print("a line of the job")
    if open("called").read().count("logs") > 1:
        print("another one")
elif os.environ.get("AWAY") and open("called").read().count("get") == int(os.environ["AWAY"]):
    sys.exit("the server is away")
elif "get" in words and job.exists():
    found = json.loads(job.read_text())
    found["status"] = found["steps"][0]
    found["steps"] = found["steps"][1:] or found["steps"]
    job.write_text(json.dumps(found))
    print(json.dumps(found))
"""
SKY = f"""#!{sys.executable}
import os, sys, yaml
task = yaml.safe_load(open(sys.argv[-1]))
assert len(os.environ["RAY_AUTH_TOKEN"]) == 64 and "RAY_AUTH_TOKEN" in sys.argv
print("launched", task["name"], *sys.argv[1:-1])
sys.exit(int(os.environ.get("CODE", "0")))
"""
JOB = ("annotate", "s3://bucket/photos", "--output", "s3://bucket/labels")
SUBMIT = ("submit", "--kuberay", "--name", "labels")
BEGUN: list[dict[str, Any]] = [
    {},
    {"jobDeploymentStatus": "Initializing"},
    {"jobDeploymentStatus": "Running"},
]
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
REJECTED = {
    "jobDeploymentStatus": "Failed",
    "jobStatus": "FAILED",
    "message": "Job entrypoint command failed with exit code 3, last available logs …",
}
LOST = {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which they work."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"kubectl": KUBECTL, "sky": SKY}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("segray.submit.kuberay._POLL_S", 0.01)
    return tmp_path


@pytest.mark.parametrize(("end", "code"), [(DONE, 0), (REJECTED, 3), (LOST, 1)])
def test_a_job_is_followed_to_its_end(
    end: dict[str, Any],
    code: int,
    commands: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STEPS", json.dumps([*BEGUN, end]))
    assert main([*SUBMIT, *JOB]) == code
    out, err = capfd.readouterr()
    assert out == "a line of the job\n"
    assert "labels is applied" in err
    assert "labels: Running" in err
    assert ("DeadlineExceeded" in err) == (end is LOST)


def test_lines_are_printed_once_through_connections_that_break(
    commands: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = {"jobDeploymentStatus": "Running", "jobId": "labels-x1"}
    monkeypatch.setenv("STEPS", json.dumps([running, running, running, DONE]))
    monkeypatch.setenv("AWAY", "3")
    assert main([*SUBMIT, *JOB]) == 0
    assert capfd.readouterr().out == "a line of the job\nanother one\n"


def test_a_job_is_met_again_by_its_name(
    commands: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPS", json.dumps([*BEGUN, BEGUN[-1], DONE]))
    assert main([*SUBMIT, "--detach", "--namespace", "vision", *JOB]) == 0
    assert "kubectl --namespace vision logs --follow job/labels" in capfd.readouterr().err
    called = (commands / "called").read_text().splitlines()
    assert [line.split()[:3] for line in called] == [
        ["--namespace", "vision", verb] for verb in ("get", "apply")
    ]
    assert main([*SUBMIT, *JOB, "--score-threshold", "0.7"]) == 2
    assert "the RayJob labels has other settings" in capfd.readouterr().err
    assert main([*SUBMIT, *JOB]) == 0
    assert "labels is running already; following it" in capfd.readouterr().err
    assert main([*SUBMIT, *JOB]) == 0  # it has ended: once more
    assert "labels is applied" in capfd.readouterr().err
    assert sum("delete rayjob labels" in line for line in (commands / "called").read_text().splitlines()) == 1


def test_sky_launches_in_the_folder_of_the_project(
    commands: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = ("submit", "--sky", "--name", "labels")
    assert main([*submit, *JOB]) == 2
    assert "run it in this project's folder" in capfd.readouterr().err
    (commands / "uv.lock").touch()
    (commands / "pyproject.toml").write_text('[project]\nname = "segray"\n')
    assert main([*submit, "--detach", *JOB]) == 0
    out, err = capfd.readouterr()
    assert out == "launched labels jobs launch --yes --secret RAY_AUTH_TOKEN --detach-run\n"
    assert "sky jobs cancel" in err
    monkeypatch.setenv("CODE", "100")
    assert main([*submit, *JOB]) == 1
    assert "sky jobs launch ended with 100" in capfd.readouterr().err


@pytest.mark.parametrize("where", ["slurm", "kuberay", "sky"])
def test_where_there_is_no_such_command(
    where: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", f"--{where}", *JOB]) == 2
    assert "here; " in capfd.readouterr().err


def test_the_stand_in_reads_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SUBMIT, "--dry-run", *JOB]) == 0
    settings, job = yaml.safe_load_all(capsys.readouterr().out)
    assert (settings["kind"], job["kind"], job["metadata"]["name"]) == ("ConfigMap", "RayJob", "labels")
