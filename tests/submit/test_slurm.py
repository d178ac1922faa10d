"""`segray submit --slurm`, on a real Slurm of two nodes."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.submit.slurm_cluster import Slurm, slurm_cluster
from tests.submit.test_ray_cluster import PHOTOS, ROOT, ended, slow_model, wait_for

SIZE = ("--slurm", "--shared-filesystem", "--nodes", "2", "--cpus", "1", "--memory-gib", "4")


@pytest.fixture(scope="module")
def slurm(request: pytest.FixtureRequest) -> Iterator[Slurm]:
    if request.config.getoption("without_slurm"):
        pytest.skip("--without-slurm")
    with slurm_cluster(2, 1) as cluster:
        yield cluster


Submit = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def submit(slurm: Slurm, tmp_path: Path) -> Submit:
    """Starts `segray submit` in `tmp_path`, where the job's log comes to lie."""

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "segray.cli", "submit", *words],
            cwd=tmp_path, env=slurm.environment | {"PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


def test_a_job_that_loses_a_node_is_done_in_the_end(slurm: Slurm, submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "slow_model.py").write_text(slow_model(tmp_path / "gate"))
    (tmp_path / "photos").mkdir()
    photos = sorted(PHOTOS.glob("*.png"))[:6]
    for photo in photos:
        shutil.copy(photo, tmp_path / "photos")
    model = ("--weights", "python:slow_model:make", "--batch-size", "1")
    words = (*SIZE, "--name", "labels", "annotate", "photos", "--output", "out", *model)
    process = submit(*words)
    wait_for(lambda: any((tmp_path / "out/_segray/staging").glob("*.parquet")))
    second = submit(*words)
    other = submit(*words, "--score-threshold", "0.7")
    assert second.stderr is not None
    assert "is queued already; following it" in second.stderr.readline()
    assert ended(other)[0] == 2
    slurm.lose("n1")  # the driver's
    slurm.start("n1")
    (tmp_path / "gate").touch()
    wait_for(lambda: "PENDING" in slurm.run("squeue", "--noheader", "--format=%T"))
    (job,) = slurm.run("squeue", "--noheader", "--format=%i").splitlines()
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # else after two minutes
    code, out, err = ended(process)
    assert code == 0, out + err
    assert ended(second)[0] == 0
    assert "Restarts=1" in slurm.run("scontrol", "--oneliner", "show", "job", job)
    uris = pq.read_table(tmp_path / "out/images")["uri"].to_pylist()
    assert sorted(Path(uri).name for uri in uris) == [photo.name for photo in photos]
    assert pq.read_table(tmp_path / "out/instances").num_rows == len(photos)


def test_exit_codes_come_back(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "photos").mkdir()
    shutil.copy(next(PHOTOS.glob("*.png")), tmp_path / "photos")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.json").write_text("{}")  # somebody else's
    one = (*SIZE[:2], *SIZE[4:])
    assert ended(submit(*one, "annotate", "nothing", "--output", "none"))[0] == 0  # nothing to do
    code, out, _ = ended(submit(*one, "annotate", "photos", "--output", "out", "--weights", "nuclei-small"))
    assert code == 2
    assert "that segray did not write" in out
    code, _, err = ended(submit(*one, "--partition", "nowhere", "annotate", "photos", "--output", "out"))
    assert code == 2
    assert "slurm: sbatch rejects the job: " in err


def test_a_misspelt_option_is_refused(slurm: Slurm, tmp_path: Path) -> None:
    """By sbatch itself; every option that the script may have."""
    words = (*SIZE, "--partition", "all", "--account", "lab", "--gpus", "1", "--dry-run")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "segray.cli", "submit", *words, "annotate", "photos", "--output", "out"],
        env=slurm.environment | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    script = done.stdout.replace("#SBATCH --gpus-per-node=1\n", "")  # these nodes have none

    def tested(text: str) -> subprocess.CompletedProcess[str]:
        command = ["sbatch", "--test-only"]
        return subprocess.run(command, input=text, env=slurm.environment, capture_output=True, text=True)

    assert tested(script).returncode == 0, tested(script).stderr
    options = re.findall(r"^#SBATCH --[a-z-]+", script, re.MULTILINE)
    assert len(options) >= 12
    for option in options:
        refused = tested(script.replace(option, f"{option}x", 1))
        assert refused.returncode != 0
        assert "unrecognized option" in refused.stderr
