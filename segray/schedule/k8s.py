"""Kubernetes: a CronJob whose pod is segray itself, with a Ray of its own."""

from typing import Any

from segray.schedule.plan import Plan
from segray.submit.kuberay import FOLDER, config_map, metadata, pod
from segray.submit.order import SETTINGS
from segray.submit.shell import END, ONCE, as_yaml

CONTAINER = "segray"


def files(plan: Plan) -> dict[str, str]:
    """Path -> content."""
    run = ONCE.format(verb=plan.order.verb, settings=f"{FOLDER}/{SETTINGS}") + END
    job = cron_job(plan, plan.submit.retries, _pod(plan), pod_failure_policy=_POLICY)
    head = plan.comment(
        "Made by `segray schedule --as k8s`; then: kubectl apply -f FILE. Image: jobs/cluster/Dockerfile.",
        f"Exit codes of segray: 1 and 130 start another pod, up to {plan.submit.retries} times, which goes",
        "on where it stopped; a node that is drained does not count. 2 (settings), 3 (too many rejects) and",
        "5 (refused) fail the Job at once and need a person; 4 (nothing to do) is success: run.sh makes 0",
        "of it. While a run is at work, the next one is left out.",
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
    """The object that starts such pods; retries: how many of them may fail."""
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
    """Which time zone it is."""
    whose = plan.settings.time_zone or "kube-controller-manager, which mostly is UTC"
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
    spec["volumes"].append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})  # else 64 MB, for Ray
    spec["restartPolicy"] = "Never"
    return template
