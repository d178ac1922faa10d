"""A job on Kubernetes: the settings as a ConfigMap, and KubeRay's RayJob, which starts a cluster for it."""

import json
import re
import subprocess
import time
from importlib.metadata import version
from typing import Any

from segray.errors import ExitCode, JobFailedError, SettingsError
from segray.submit.order import SETTINGS, Order
from segray.submit.settings import SubmitSettings
from segray.submit.shell import AGAIN, CommandError, as_yaml, asked, say

FOLDER = "/etc/segray"
"""Of the head's container: where the settings are."""
_LOOK_S = 5.0

HEADER = """\
# Made by `segray submit --kuberay --dry-run`; by hand: kubectl apply -f FILE. Image: jobs/cluster/Dockerfile.
# Exit codes of segray: 1 is tried again in the same pods, {retries} times. When that does not help, or the
# head's pod is lost, KubeRay starts the whole job again, {retries} times, and it goes on where it stopped;
# also after 2 (settings), 3 (too many rejects) and 5 (refused), which end as before within seconds and need a
# person. 4 (nothing to do) is success. Attempts may overlap: the lease in the output lets one of them write.
"""


def manifest(submit: SubmitSettings, order: Order) -> str:
    """Both objects, as YAML. Raises SettingsError where the settings cannot be sent so."""
    if order.files:
        raise SettingsError("KubeRay sends no files: put them into a bucket or into the image")
    if len(order.settings) > 900_000:
        raise SettingsError(
            "the settings are larger than what a ConfigMap holds; name a manifest, not each file"
        )
    objects = [_settings(submit, order), _ray_job(submit, order)]
    text = "---\n".join(map(as_yaml, objects))
    return HEADER.format(retries=submit.retries) + text


def _name(submit: SubmitSettings, order: Order) -> str:
    return submit.name or f"{order.verb}-{order.digest[:6]}"


def _metadata(submit: SubmitSettings, name: str, order: Order) -> dict[str, Any]:
    place = {} if submit.namespace is None else {"namespace": submit.namespace}
    labels = {"app.kubernetes.io/name": "segray", "app.kubernetes.io/component": order.verb}
    return {"name": name, **place, "labels": labels, "annotations": {"segray": order.digest}}


def _settings(submit: SubmitSettings, order: Order) -> dict[str, Any]:
    again = AGAIN.format(verb=order.verb, settings=f"{FOLDER}/{SETTINGS}", retries=submit.retries)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(submit, f"{_name(submit, order)}-settings", order),
        "data": {SETTINGS: order.settings, "run.sh": again},
    }


def _ray_job(submit: SubmitSettings, order: Order) -> dict[str, Any]:
    settings = f"{_name(submit, order)}-settings"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(submit, _name(submit, order), order),
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
                    "template": _pod(submit, "ray-head", {"cpu": 2, "memory": "8Gi"}, settings),
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
        "template": _pod(submit, "ray-worker", size),
    }


def _pod(
    submit: SubmitSettings, name: str, size: dict[str, Any], settings: str | None = None
) -> dict[str, Any]:
    """settings: the ConfigMap that the driver reads; it runs on the head."""
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

    Raises SettingsError where there is no kubectl or it refuses, JobFailedError where the job is lost.
    """
    text, name = manifest(submit, order), _name(submit, order)
    there = _found(submit, name)
    if there is not None and there["metadata"].get("annotations", {}).get("segray") != order.digest:
        raise SettingsError(f"name: the RayJob {name} has other settings; choose another --name")
    if there is not None and not _is_over(there):
        say(f"{name} is under way already; following it")
    else:
        if there is not None:
            _kubectl(submit, "delete", "rayjob", name)  # an ended one starts again under its name
        _kubectl(submit, "apply", "--filename", "-", text=text)
        say(f"{name} is applied")
    stop = f"kubectl delete rayjob {name}"
    if submit.detach:
        say(f"to follow it: kubectl logs --follow job/{name}; to stop it: {stop}")
        return ExitCode.DONE
    try:
        return _followed(submit, name)
    except KeyboardInterrupt:
        say(f"{name} goes on; the same command follows it; to stop it: {stop}")
        return ExitCode.INTERRUPTED


def _followed(submit: SubmitSettings, name: str) -> int:
    """Wait for the end of the job, its log printed by `kubectl`; returns its exit code."""
    shown = ""
    while True:
        job = _found(submit, name)
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
        if state == "Running":  # until the pod that follows the job's log ends, or is lost
            subprocess.run(_command(submit, "logs", "--follow", "--since=5s", f"job/{name}"))
        time.sleep(_LOOK_S)


def _is_over(job: dict[str, Any]) -> bool:
    return job.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed")


def _code(name: str, status: dict[str, Any]) -> int:
    """The status has the exit code in the words of Ray alone."""
    if status.get("jobStatus") == "SUCCEEDED":
        return ExitCode.DONE
    said = str(status.get("message", ""))
    if (found := re.search(r"exit code:? (\d+)", said)) is not None:
        return int(found[1])
    raise JobFailedError(
        f"{name} failed: {said or status.get('reason') or 'no reason is known'}; what is committed is safe, "
        "submit it again to continue"
    )


def _found(submit: SubmitSettings, name: str) -> dict[str, Any] | None:
    said = _kubectl(submit, "get", "rayjob", name, "--ignore-not-found", "--output", "json")
    return None if not said.strip() else json.loads(said)


def _command(submit: SubmitSettings, *words: str) -> list[str]:
    return ["kubectl", *(["--namespace", submit.namespace] if submit.namespace else []), *words]


def _kubectl(submit: SubmitSettings, *words: str, text: str | None = None) -> str:
    try:
        return asked(_command(submit, *words), text)
    except CommandError as error:
        raise SettingsError(f"kuberay: kubectl {words[0]}: {error}") from error
