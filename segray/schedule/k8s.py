"""Kubernetes: a CronJob whose pod runs segray with a local Ray."""

from typing import Any

from segray.schedule.plan import Plan
from segray.submit.job_package import SETTINGS
from segray.submit.kuberay import FOLDER, config_map, metadata, pod
from segray.submit.shell import END, ONCE, as_yaml

CONTAINER = "segray"


def files(plan: Plan) -> dict[str, str]:
    """Return path -> content of the CronJob and its ConfigMap."""
    run = ONCE.format(verb=plan.order.verb, settings=f"{FOLDER}/{SETTINGS}") + END
    job = cron_job(plan, plan.submit.retries, _pod(plan), pod_failure_policy=_POLICY)
    head = plan.comment(
        "Made by `segray schedule --as k8s`; then: kubectl apply -f FILE. Image: jobs/cluster/Dockerfile.",
        f"Exit codes of segray: 1 and 130 start another pod, up to {plan.submit.retries} times, which",
        "continues where it stopped; a drained node does not count. 2 (settings), 3 (too many rejects) and",
        "5 (refused) fail the Job at once and need a person; 4 (nothing to do) is success: run.sh turns it",
        "into 0. While a run is active, the next one is skipped.",
        zone_line(plan),
        "The environment comes from the Secret of --secret, or --service-account has the rights.",
    )
    objects = [config_map(plan.submit, plan.order, run), job]
    return {plan.path(".yaml", "."): head + "---\n".join(map(as_yaml, objects))}


_POLICY = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [2, 3, 5]},
        },
    ]
}


def cron_job(
    plan: Plan, retries: int, pod_template: dict[str, Any], pod_failure_policy: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the CronJob object that starts pods of this template; retries: how many of them may fail."""
    zone = plan.settings.time_zone
    job: dict[str, Any] = {"backoffLimit": retries}
    if pod_failure_policy is not None:
        job["podFailurePolicy"] = pod_failure_policy
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": metadata(plan.submit, plan.name, plan.order),
        "spec": {
            "schedule": plan.cron.portable,
            **({} if zone is None else {"timeZone": zone}),
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {"spec": {**job, "template": pod_template}},
        },
    }


def zone_line(plan: Plan) -> str:
    """Return a comment line with the cron expression and its time zone."""
    whose = plan.settings.time_zone or "kube-controller-manager, usually UTC"
    return f"From --cron {plan.cron.typed!r}, in the time zone of {whose}."


def _pod(plan: Plan) -> dict[str, Any]:
    submit = plan.submit
    size: dict[str, Any] = {"cpu": submit.cpus, "memory": f"{submit.memory_gib}Gi"}
    if submit.gpus:
        size["nvidia.com/gpu"] = submit.gpus
    template = pod(submit, CONTAINER, size, f"{plan.name}-settings")
    spec = template["spec"]
    (container,) = spec["containers"]
    container["command"] = ["sh", f"{FOLDER}/run.sh"]
    container["volumeMounts"].append({"name": "shared-memory", "mountPath": "/dev/shm"})
    spec["volumes"].append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})  # for Ray
    spec["restartPolicy"] = "Never"
    return template
