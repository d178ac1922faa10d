"""Objects that Kubernetes and KubeRay take by their own schemas, and no misspelt name in them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from segray.errors import ExitCode
from tests.schedule.made import fake_segray, isolated, written
from tests.submit.test_files import CODES, slips

SCHEMAS = Path(__file__).parents[1] / "data/kuberay"
VALIDATOR = ("kubernetes-validate==1.37.0",)
VALIDATE = """
import json, sys
import kubernetes_validate

def told(document):
    try:
        kubernetes_validate.validate(document, "1.34", strict=True)
    except Exception as error:  # KeyError where there is no apiVersion
        return repr(error).splitlines()[0]
    return ""

json.dump([told(each) for each in json.load(sys.stdin)], sys.stdout)
"""
POD = ("--gpus", "1", "--namespace", "vision", "--secret", "storage", "--service-account", "reader")
ALL = (*POD, "--time-zone", "Europe/Berlin", "--name", "nightly", "--image", "registry/segray:1")


def objects(folder: Path, scheduler: str, *options: str) -> dict[str, dict[str, Any]]:
    """Kind and name -> object."""
    text = written(folder / scheduler / str(len(options)), scheduler, *options)[".yaml"]
    return {f"{each['kind']} {each['metadata']['name']}": each for each in yaml.safe_load_all(text)}


def schema(kind: str) -> dict[str, Any]:
    """KubeRay's, closed: the API server drops a name that it does not know without a word."""
    job: dict[str, Any] = json.loads((SCHEMAS / "RayJob.json").read_text())
    if kind == "RayJob":
        return job
    found: dict[str, Any] = json.loads((SCHEMAS / "RayCronJob.json").read_text())
    found["properties"]["metadata"] = job["properties"]["metadata"]
    found["properties"]["spec"]["properties"]["jobTemplate"] = job["properties"]["spec"]
    return found


def test_kubernetes_takes_them_and_no_misspelt_name(tmp_path: Path) -> None:
    right = [
        each
        for scheduler in ("k8s", "kuberay")
        for options in ((), ALL)
        for each in objects(tmp_path, scheduler, *options).values()
    ]
    kinds = ["ConfigMap", "CronJob"] * 2
    kinds += ["ServiceAccount", "Role", "RoleBinding", "ConfigMap", "ConfigMap", "CronJob"] * 2
    assert [each["kind"] for each in right] == kinds
    wrong = [document for each in right for _, document in slips(each)]
    said = json.loads(isolated(VALIDATOR, VALIDATE, json.dumps([*right, *wrong])))
    assert said[: len(right)] == [""] * len(right)
    assert len(wrong) > 200
    assert [each for each, told in zip(wrong, said[len(right) :], strict=True) if not told] == []


@pytest.mark.parametrize("options", [(), ALL])
def test_kuberay_takes_them_and_no_misspelt_name(options: tuple[str, ...], tmp_path: Path) -> None:
    name = "nightly" if options else "annotate"
    made = objects(tmp_path, "kuberay", *options)
    job = yaml.safe_load(made[f"ConfigMap {name}-start"]["data"]["rayjob.yaml"])
    own = objects(tmp_path, "raycronjob", *options)[f"RayCronJob {name}"]
    for document in (job, own):
        validator = jsonschema.Draft7Validator(schema(document["kind"]))
        validator.validate(document)
        wrong = slips(document)
        assert len(wrong) > 40
        assert [at for at, each in wrong if validator.is_valid(each)] == []


@pytest.mark.parametrize("scheduler", ["k8s", "kuberay"])
def test_all_that_is_named_is_there(scheduler: str, tmp_path: Path) -> None:
    made = objects(tmp_path, scheduler, *ALL)
    spec = made["CronJob nightly"]["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0 3 * * *", "Europe/Berlin")
    assert spec["concurrencyPolicy"] == "Forbid"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounted = {
        f"{mount['mountPath']}/{name}": text
        for mount in container["volumeMounts"]
        for volume in pod["volumes"]
        if volume["name"] == mount["name"] and "configMap" in volume
        for name, text in made[f"ConfigMap {volume['configMap']['name']}"]["data"].items()
    }
    assert container["command"][0] == "sh"
    assert container["command"][1] in mounted
    assert all(each["metadata"]["namespace"] == "vision" for each in made.values())
    if scheduler == "k8s":
        assert "--config /etc/segray/segray-job.yaml" in mounted["/etc/segray/run.sh"]
        assert "/etc/segray/segray-job.yaml" in mounted
        return
    assert "--filename /etc/segray/rayjob.yaml" in mounted["/etc/segray/start.sh"]
    job = yaml.safe_load(mounted["/etc/segray/rayjob.yaml"])
    volumes = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert f"ConfigMap {volumes[0]['configMap']['name']}" in made
    (subject,) = made["RoleBinding nightly-start"]["subjects"]
    assert (subject["name"], subject["namespace"]) == (pod["serviceAccountName"], "vision")
    assert f"ServiceAccount {subject['name']}" in made
    assert made["RoleBinding nightly-start"]["roleRef"]["name"] == "nightly-start"
    assert "Role nightly-start" in made


def test_a_role_binding_names_a_namespace_without_one_given(tmp_path: Path) -> None:
    (subject,) = objects(tmp_path, "kuberay")["RoleBinding annotate-start"]["subjects"]
    assert subject["namespace"] == "default"


@pytest.mark.parametrize("code", ExitCode)
def test_what_becomes_of_the_pod(code: int, tmp_path: Path) -> None:
    """0 and 4 are success, 2, 3 and 5 end the Job, the rest is tried again."""
    made = objects(tmp_path, "k8s")
    script = made["ConfigMap annotate-settings"]["data"]["run.sh"]
    done = subprocess.run(
        ["sh", "-c", script.replace("/etc/segray/segray-job.yaml", "/dev/null")],
        env={"PATH": f"{fake_segray(tmp_path, code).parent}:/usr/bin:/bin"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    policy = made["CronJob annotate"]["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in policy] == ["Ignore", "FailJob"]
    fails = done.returncode in policy[1]["onExitCodes"]["values"]
    assert (done.returncode, fails) == {0: (0, False), 4: (0, False), 1: (1, False), 130: (130, False)}.get(
        code, (code, True)
    )
    template = made["CronJob annotate"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert policy[1]["onExitCodes"]["containerName"] == template["containers"][0]["name"]


STATES = {
    "": "delete create", "RayJob Complete": "delete create", "RayJob Failed": "delete create",
    "RayJob ": "", "RayJob Running": "", "RayJob Initializing": "",
}  # fmt: skip
"""What `kubectl get` prints -> what is done."""


@pytest.mark.parametrize("state", STATES)
def test_a_ray_job_at_work_is_left_alone(state: str, tmp_path: Path) -> None:
    script = objects(tmp_path, "kuberay")["ConfigMap annotate-start"]["data"]["start.sh"]
    (tmp_path / "kubectl").write_text(
        '#!/bin/sh\n[ $1 = get ] && printf "%s" "$STATE" || echo "$1" >> "$0.did"\n'
    )
    (tmp_path / "kubectl").chmod(0o755)
    (tmp_path / "kubectl.did").touch()
    path = f"{tmp_path}:/usr/bin:/bin"
    subprocess.run(["sh", "-c", script], env={"PATH": path, "STATE": state}, check=True)
    assert " ".join((tmp_path / "kubectl.did").read_text().split()) == STATES[state]


def test_exit_codes_of_the_ray_job_are_those_of_submit(tmp_path: Path) -> None:
    """Whose script `tests/submit/test_files.py` runs."""
    assert len(CODES) == 8
    script = objects(tmp_path, "raycronjob")["ConfigMap annotate-settings"]["data"]["run.sh"]
    assert script == objects(tmp_path, "kuberay")["ConfigMap annotate-settings"]["data"]["run.sh"]
    assert "[ $code = 1 ] && [ $tries -lt 3 ] || break" in script
