"""KubeRay: a CronJob that recreates the RayJob, or KubeRay's own RayCronJob."""

from typing import Any

from segray.schedule.k8s import cron_job, zone_line
from segray.schedule.plan import Plan
from segray.submit.kuberay import FOLDER, config_map, metadata, ray_job
from segray.submit.shell import as_yaml

START = """\
set -eu
what='jsonpath={{.kind}} {{.status.jobDeploymentStatus}}'
state=$(kubectl get rayjob {name} --ignore-not-found --output "$what")
case "$state" in
    "" | "RayJob Complete" | "RayJob Failed" | "RayJob ValidationFailed") ;;
    *) echo "segray: {name} is still running: $state"; exit 0 ;;
esac
kubectl delete rayjob {name} --ignore-not-found
kubectl create --filename {folder}/rayjob.yaml
"""
"""Shell script: recreate a RayJob that has ended under the same name, as `segray submit --kuberay` does."""
_CODES = (
    "Exit codes of segray: 1 is retried in the same pods, {retries} times. If that does not help, or the",
    "head's pod is lost, KubeRay starts the whole job again, {retries} times, and it continues where it",
    "stopped; also after 2 (settings), 3 (too many rejects) and 5 (refused), which fail again within",
    "seconds and need a person: see `kubectl get rayjob`. 4 (nothing to do) is success.",
)


def files(plan: Plan) -> dict[str, str]:
    """Return path -> content of a CronJob with its ConfigMap, account and role."""
    head = plan.comment(
        "Made by `segray schedule --as kuberay`; then: kubectl apply -f FILE.",
        "Image: jobs/cluster/Dockerfile.",
        *(line.format(retries=plan.submit.retries) for line in _CODES),
        "The CronJob recreates the RayJob; while the last one is running, it does nothing.",
        zone_line(plan),
        _ENVIRONMENT,
    )
    settings = config_map(plan.submit, plan.order)
    objects = [*_rights(plan), settings, _start_map(plan), cron_job(plan, 3, _pod(plan))]
    return {plan.path(".yaml", "."): head + "---\n".join(map(as_yaml, objects))}


def own_files(plan: Plan) -> dict[str, str]:
    """Return path -> content of a RayCronJob and its ConfigMap."""
    zone = plan.settings.time_zone
    whose = zone or "the operator, usually UTC"
    head = plan.comment(
        "Made by `segray schedule --as raycronjob`; then: kubectl apply -f FILE.",
        "Image: jobs/cluster/Dockerfile.",
        "RayCronJob is alpha in KubeRay 1.7 and off by default: the operator must run with the feature gate",
        "of that name. It has no concurrencyPolicy: runs may overlap; the lease lets one of them write.",
        *(line.format(retries=plan.submit.retries) for line in _CODES),
        f"From --cron {plan.cron.typed!r}, in the time zone of {whose}.",
        _ENVIRONMENT,
    )
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": metadata(plan.submit, plan.name, plan.order),
        "spec": {
            "schedule": plan.cron.portable,
            **({} if zone is None else {"timeZone": zone}),
            "jobTemplate": ray_job(plan.submit, plan.order)["spec"],
        },
    }
    objects = [config_map(plan.submit, plan.order), job]
    return {plan.path(".yaml", "."): head + "---\n".join(map(as_yaml, objects))}


_ENVIRONMENT = "The environment comes from the Secret of --secret, or --service-account has the rights."


def _start(plan: Plan) -> str:
    """Return the name of the CronJob that starts the RayJob."""
    return f"{plan.name}-start"


def _metadata(plan: Plan) -> dict[str, Any]:
    return metadata(plan.submit, _start(plan), plan.order)


def _rights(plan: Plan) -> list[dict[str, Any]]:
    """Return a ServiceAccount, Role and RoleBinding to create and delete RayJobs, and nothing else."""
    name, group = _start(plan), "rbac.authorization.k8s.io"
    verbs = ["get", "list", "watch", "create", "delete"]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(plan)},
        {
            "apiVersion": f"{group}/v1",
            "kind": "Role",
            "metadata": _metadata(plan),
            "rules": [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": verbs}],
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": _metadata(plan),
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": plan.submit.namespace}],
        },
    ]


def _start_map(plan: Plan) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(plan),
        "data": {
            "rayjob.yaml": as_yaml(ray_job(plan.submit, plan.order)),
            "start.sh": START.format(name=plan.name, folder=FOLDER),
        },
    }


def _pod(plan: Plan) -> dict[str, Any]:
    size = {"cpu": "100m", "memory": "256Mi"}
    container = {
        "name": "start",
        "image": plan.settings.kubectl_image,
        "command": ["sh", f"{FOLDER}/start.sh"],
        "resources": {"requests": size, "limits": size},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [{"name": "start", "mountPath": FOLDER, "readOnly": True}],
    }
    return {
        "spec": {
            "containers": [container],
            "serviceAccountName": _start(plan),
            "volumes": [{"name": "start", "configMap": {"name": _start(plan)}}],
            "restartPolicy": "Never",
        }
    }
