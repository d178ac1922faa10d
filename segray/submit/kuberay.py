"""Submit a job to Kubernetes: a ConfigMap with the settings, and a KubeRay RayJob with its own cluster."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from typing import Any

from segray.errors import ExitCode, JobFailedError, SettingsError
from segray.submit.job_package import SETTINGS, Order
from segray.submit.settings import SubmitSettings
from segray.submit.shell import AGAIN, CommandError, as_yaml, asked, say

FOLDER = "/etc/segray"
"""Folder of the settings in the head's container."""
_POLL_S = 5.0

HEADER = """\
# Made by `segray submit --kuberay --dry-run`; by hand: kubectl apply -f FILE. Image: jobs/cluster/Dockerfile.
# Exit codes of segray: 1 is retried in the same pods, {retries} times. If that does not help, or the head's
# pod is lost, KubeRay starts the whole job again, {retries} times, and it continues where it stopped; also
# after 2 (settings), 3 (too many rejects) and 5 (refused), which fail again within seconds and need a
# person. 4 (nothing to do) is success. Attempts may overlap: the lease in the output lets one of them write.
"""


def manifest(submit: SubmitSettings, order: Order) -> str:
    """Return both objects as YAML. Raises SettingsError where the settings do not fit a ConfigMap."""
    text = "---\n".join(map(as_yaml, [config_map(submit, order), ray_job(submit, order)]))
    return HEADER.format(retries=submit.retries) + text


def check_size(order: Order) -> None:
    """Raise SettingsError where the settings do not fit into a ConfigMap, or need local files."""
    if order.files:
        raise SettingsError("KubeRay cannot send files: put them into a bucket or into the image")
    if len(order.settings) > 900_000:
        raise SettingsError(
            "the settings are too large for a ConfigMap; use a manifest instead of listing each file"
        )


def _name(submit: SubmitSettings, order: Order) -> str:
    return submit.name or f"{order.verb}-{order.digest[:6]}"


def metadata(submit: SubmitSettings, name: str, order: Order) -> dict[str, Any]:
    """Return the metadata of an object of that name."""
    namespace = {} if submit.namespace is None else {"namespace": submit.namespace}
    labels = {"app.kubernetes.io/name": "segray", "app.kubernetes.io/component": order.verb}
    return {"name": name, **namespace, "labels": labels, "annotations": {"segray": order.digest}}


def config_map(submit: SubmitSettings, order: Order, run: str | None = None) -> dict[str, Any]:
    """Return a ConfigMap with the settings and the script that runs segray (default: retry after exit 1).

    Raises SettingsError where the settings do not fit into it.
    """
    check_size(order)
    again = AGAIN.format(verb=order.verb, settings=f"{FOLDER}/{SETTINGS}", retries=submit.retries)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(submit, f"{_name(submit, order)}-settings", order),
        "data": {SETTINGS: order.settings, "run.sh": again if run is None else run},
    }


def ray_job(submit: SubmitSettings, order: Order) -> dict[str, Any]:
    """Return the RayJob, which reads that ConfigMap."""
    settings = f"{_name(submit, order)}-settings"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata(submit, _name(submit, order), order),
        "spec": {
            "entrypoint": f"sh {FOLDER}/run.sh",
            "submissionMode": "K8sJobMode",
            "backoffLimit": submit.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60,
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},
                    "template": pod(submit, "ray-head", {"cpu": 2, "memory": "8Gi"}, settings),
                },
                "workerGroupSpecs": [_workers(submit)],
            },
        },
    }


def _workers(submit: SubmitSettings) -> dict[str, Any]:
    size: dict[str, Any] = {"cpu": submit.cpus, "memory": f"{submit.memory_gib}Gi"}
    if submit.gpus:
        size["nvidia.com/gpu"] = submit.gpus
    return {
        "groupName": "workers",
        "replicas": submit.nodes,
        "minReplicas": submit.nodes,
        "maxReplicas": submit.nodes,
        "rayStartParams": {},
        "template": pod(submit, "ray-worker", size),
    }


def pod(
    submit: SubmitSettings, name: str, size: dict[str, Any], settings: str | None = None
) -> dict[str, Any]:
    """Return a pod template; settings: name of the ConfigMap, for the head, on which the driver runs."""
    container: dict[str, Any] = {
        "name": name,
        "image": submit.image,
        "resources": {"requests": size, "limits": size},
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    if name == "ray-head":
        container["env"] = [{"name": "SEGRAY_RAY__NODES", "value": str(submit.nodes + 1)}]
    if submit.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": submit.secret}}]
    spec: dict[str, Any] = {"containers": [container]}
    if submit.service_account is not None:
        spec["serviceAccountName"] = submit.service_account
    if settings is not None:
        container["volumeMounts"] = [{"name": "settings", "mountPath": FOLDER, "readOnly": True}]
        spec["volumes"] = [{"name": "settings", "configMap": {"name": settings}}]
    return {"spec": spec}


def send(submit: SubmitSettings, order: Order) -> int:
    """Apply the manifest, or find the RayJob of that name; follow it and return its exit code.

    Raises SettingsError where kubectl is missing or fails, JobFailedError where the job is lost.
    """
    text, name = manifest(submit, order), _name(submit, order)
    try:
        _begin(submit, order, name, text)
    except CommandError as error:
        raise SettingsError(f"kuberay: kubectl failed: {error}") from error
    stop = " ".join(_command(submit, "delete", "rayjob", name))
    if submit.detach:
        follow = " ".join(_command(submit, "logs", "--follow", f"job/{name}"))
        say(f"to follow it: {follow}; to stop it: {stop}")
        return ExitCode.DONE
    try:
        return _followed(submit, name)
    except KeyboardInterrupt:
        say(f"{name} continues; the same command follows it; to stop it: {stop}")
        return ExitCode.INTERRUPTED


def _begin(submit: SubmitSettings, order: Order, name: str, text: str) -> None:
    """Apply the manifest unless its RayJob is running; replace one that has ended.

    Raises CommandError where kubectl fails, SettingsError where the RayJob of that name is another job.
    """
    there = _found(submit, name)
    if there is not None and there["metadata"].get("annotations", {}).get("segray") != order.digest:
        raise SettingsError(f"name: the RayJob {name} has other settings; choose another --name")
    if there is not None and not _is_over(there):
        say(f"{name} is running already; following it")
        return
    if there is not None:
        asked(_command(submit, "delete", "rayjob", name))  # one that has ended starts again under its name
    asked(_command(submit, "apply", "--filename", "-"), text)
    say(f"{name} is applied")


def _followed(submit: SubmitSettings, name: str) -> int:
    """Wait for the end of the job while `kubectl` prints its log; return its exit code.

    Raises JobFailedError where the job is deleted, fails without an exit code, or Kubernetes does not answer.
    """
    shown, lost = "", None
    printed = Counter[str]()
    """Printed log lines of each start of the job: a new connection sends the log from its start."""
    while True:
        try:
            job, lost = _found(submit, name), None
        except CommandError as error:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > submit.patience_s:
                raise JobFailedError(f"Kubernetes does not answer: {error}; {name} may be running") from error
            time.sleep(_POLL_S)
            continue
        if job is None:
            raise JobFailedError(
                f"{name} was deleted; what is committed is safe, submit it again to continue"
            )
        status = job.get("status", {})
        if _is_over(job):
            return _code(name, status)
        state = status.get("jobDeploymentStatus") or "Initializing"
        if state != shown:
            say(f"{name}: {state}")
            shown = state
        if state == "Running":
            start = str(status.get("jobId"))
            printed[start] = _print_log(submit, name, printed[start])
        time.sleep(_POLL_S)


def _print_log(submit: SubmitSettings, name: str, skip: int) -> int:
    """Print the log until the pod or the connection ends; return the number of lines printed."""
    number = 0
    command = _command(submit, "logs", "--follow", f"job/{name}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number, line in enumerate(process.stdout, 1):
            if number > skip:
                sys.stdout.write(line)
                sys.stdout.flush()
    return max(skip, number)


def _is_over(job: dict[str, Any]) -> bool:
    return job.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed")


def _code(name: str, status: dict[str, Any]) -> int:
    """Return the exit code, which only Ray's message has. Raises JobFailedError without one."""
    if status.get("jobStatus") == "SUCCEEDED":
        return ExitCode.DONE
    message = str(status.get("message", ""))
    if (found := re.search(r"exit code:? (\d+)", message)) is not None:
        return int(found[1])
    raise JobFailedError(
        f"{name} failed: {message or status.get('reason') or 'unknown reason'}; what is committed is safe, "
        "submit it again to continue"
    )


def _found(submit: SubmitSettings, name: str) -> dict[str, Any] | None:
    """Return the RayJob of that name; None where there is none. Raises CommandError where kubectl fails."""
    output = asked(_command(submit, "get", "rayjob", name, "--ignore-not-found", "--output", "json"))
    found: dict[str, Any] | None = json.loads(output) if output else None
    return found


def _command(submit: SubmitSettings, *words: str) -> list[str]:
    return ["kubectl", *(["--namespace", submit.namespace] if submit.namespace else []), *words]
