"""The walk-through of `docs/cluster.md`, line by line, on a machine where nothing else runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from segray.submit.slurm import SCRIPT
from tests.submit.test_ray_cluster import PHOTOS, ROOT

PAGE = ROOT / "docs/cluster.md"
ALONE = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
"""`ray stop` reaches every Ray that it sees, and `ray start` leaves its address in /tmp/ray."""


def test_each_line_runs_as_it_is_typed(tmp_path: Path) -> None:
    first, second, needs_a_cluster = re.findall(
        r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert needs_a_cluster.splitlines() == [
        "ray job submit --address http://head:8265 --working-dir . -- python jobs/annotate.py "
        "--config jobs/annotate.yaml"
    ]
    (tmp_path / "photos").mkdir()
    for photo in sorted(PHOTOS.glob("*.png"))[:2]:
        shutil.copy(photo, tmp_path / "photos")
    Path("/tmp/ray").mkdir(exist_ok=True)
    script = f"set -eu\nmount -t tmpfs tmpfs /tmp/ray\n{first}{second}"
    environment = os.environ | {
        "HOME": str(tmp_path / "home"), "UV_PROJECT": str(ROOT), "UV_NO_SYNC": "1", "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    for name in [name for name in environment if name.startswith("RAY_")]:
        del environment[name]
    done = subprocess.run(
        [*ALONE, "bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "2 items: 2 annotated, 0 rejected" in done.stdout
    assert f"{tmp_path}/labels: annotate, finished" in done.stdout
    assert "sent first to http://127.0.0.1:8265" in done.stderr
    assert "sent first-2 to http://127.0.0.1:8265" in done.stderr
    assert "nothing to do, finished before" in done.stdout
    assert "2 images at 40.0 images/s" in done.stderr
    assert SCRIPT[:11] in done.stdout
    assert len(pd.read_parquet(tmp_path / "labels/images")) == 2
    assert shlex.split(first.splitlines()[-1]) == ["uv", "run", "ray", "stop"]
