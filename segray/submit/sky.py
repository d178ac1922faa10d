"""Submit a managed job to a cloud by SkyPilot, which finds machines, replaces preempted ones, ends them."""

import os
import secrets
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from segray.errors import ExitCode, JobFailedError, SettingsError
from segray.submit.job_package import Order
from segray.submit.settings import SubmitSettings
from segray.submit.shell import AGAIN, as_yaml, in_here_document, say

HEADER = """\
# Made by `segray submit --sky --dry-run`; by hand, in this project's folder, which is sent:
#   sky jobs launch --secret RAY_AUTH_TOKEN=$(openssl rand -hex 32) THIS-FILE
# Exit codes of segray: 1 is retried on the same machines, {retries} times; lost machines are recovered;
# 2 (settings), 3 (too many rejects), 5 (refused) end the job and need a person; 4 (nothing to do) is success.
"""
SETUP = """\
which uv || test -x ~/.local/bin/uv || python3 -m pip install --user uv
export PATH=~/.local/bin:$PATH
uv sync --frozen --python 3.11 --extra s3 --extra gcs --extra azure
"""
RUN = """\
export PATH=$PWD/.venv/bin:$PATH RAY_AUTH_MODE=token
cat > /tmp/segray-job.yaml <<'END-OF-SETTINGS'
{settings}END-OF-SETTINGS
first=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
options="--block --disable-usage-stats --dashboard-agent-listen-port=0"
if [ "$SKYPILOT_NODE_RANK" -gt 0 ]; then
  ray start --address="$first:6390" $options || true  # it ends with the first node's
  exit 0
fi
if [ "$SKYPILOT_NUM_NODES" -gt 1 ]; then  # a Ray next to SkyPilot's own
  ray start --head --node-ip-address="$first" --port=6390 --include-dashboard=false --temp-dir=/tmp/segray \\
    $options &
  trap "kill $!" EXIT
  export SEGRAY_RAY__ADDRESS=$first:6390 SEGRAY_RAY__NODES=$SKYPILOT_NUM_NODES
fi
"""


def task(submit: SubmitSettings, order: Order) -> str:
    """Return the task as YAML. Raises SettingsError where it would need local files."""
    if order.files:
        raise SettingsError("SkyPilot gets only the project: put files into a bucket")
    again = AGAIN.format(verb=order.verb, settings="/tmp/segray-job.yaml", retries=submit.retries)
    content = {
        "name": submit.name or order.verb,
        "workdir": ".",
        "num_nodes": submit.nodes,
        "resources": _resources(submit),
        "secrets": {"RAY_AUTH_TOKEN": ""},
        "setup": "\n".join([*submit.setup, SETUP]),
        "run": RUN.format(settings=in_here_document(order.settings)) + again,
    }
    return HEADER.format(retries=submit.retries) + as_yaml(content)


def _resources(submit: SubmitSettings) -> dict[str, Any]:
    size: dict[str, Any] = {
        "cpus": f"{submit.cpus}+",
        "memory": f"{submit.memory_gib}+",
        "disk_size": submit.disk_gib,
    }
    if submit.gpus:
        size["accelerators"] = {submit.gpu_type: submit.gpus}
    if submit.infra is not None:
        size["infra"] = submit.infra
    return size | {"use_spot": submit.spot}


def send(submit: SubmitSettings, order: Order) -> int:
    """Launch the managed job in this project's folder; SkyPilot prints its log. Return 0.

    Raises SettingsError where SkyPilot is missing, JobFailedError where the job fails: SkyPilot does not
    report the exit code of a job.
    """
    text = task(submit, order)
    if shutil.which("sky") is None:
        raise SettingsError(
            "sky: SkyPilot is not installed here; install it in its own environment, or use --dry-run's file"
        )
    if not _is_project(Path()):
        raise SettingsError("sky: run it in this project's folder, which is sent")
    with tempfile.TemporaryDirectory(prefix="segray-sky-") as folder:
        file = Path(folder, "task.yaml")
        file.write_text(text, encoding="utf-8")
        command = [
            "sky",
            "jobs",
            "launch",
            "--yes",
            "--secret",
            "RAY_AUTH_TOKEN",
            *["--detach-run"] * submit.detach,
        ]
        environment = os.environ | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        code = subprocess.run([*command, str(file)], env=environment).returncode
    if code:
        raise JobFailedError(f"sky jobs launch ended with {code}; see its log: sky jobs queue")
    say("done" if not submit.detach else "to follow it: sky jobs logs; to stop it: sky jobs cancel")
    return ExitCode.DONE


def _is_project(folder: Path) -> bool:
    try:
        about = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(about.get("project", {}).get("name") == "segray") and (folder / "uv.lock").is_file()
