"""What `segray submit --dry-run` prints is valid in its own world, and a misspelt name in it is not."""

import copy
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from segray.annotate.settings import AnnotateSettings
from segray.command_line import load_settings
from segray.submit import kuberay, sky, slurm
from segray.submit.job_package import order_of
from segray.submit.settings import SubmitSettings

ROOT = Path(__file__).parents[2]
SCHEMA = Path(__file__).parents[1] / "data/kuberay/RayJob.json"
ALL = {
    "slurm": ("--gpus", "2", "--partition", "gpu", "--account", "lab", "--setup", "module load cuda"),
    "kuberay": ("--gpus", "1", "--namespace", "vision", "--secret", "storage", "--service-account", "reader"),
    "sky": ("--gpus", "1", "--infra", "aws/us-east-1", "--spot"),
}
"""Every option that a file depends on."""
EXAMPLES = {"slurm": "slurm.sh", "kuberay": "rayjob.yaml", "sky": "sky.yaml"}
"""In `jobs/cluster`."""
VALIDATORS = ("kubernetes-validate==1.37.0", "skypilot==0.14.1")
"""Fetched into an environment of their own: SkyPilot fits no other library, the first has 108 MB."""
VALIDATE = """
import json, sys
import jsonschema, kubernetes_validate
from sky.utils import schemas

def told(kind, document):
    try:
        if kind == "sky":
            jsonschema.validate(document, schemas.get_task_schema())
            for part in [document["resources"]]:
                jsonschema.validate(part, schemas.get_resources_schema())
        else:
            kubernetes_validate.validate(document, "1.34", strict=True)
    except Exception as error:  # KeyError where there is no apiVersion
        return repr(error).splitlines()[0]
    return ""

json.dump([told(*each) for each in json.load(sys.stdin)], sys.stdout)
"""
WORDS = ["s3://BUCKET/photos", "--output", "s3://BUCKET/labels"]
MAKERS = {"slurm": slurm.script, "kuberay": kuberay.manifest, "sky": sky.task}


def made(where: str, *options: str) -> str:
    settings = load_settings(SubmitSettings, [f"--{where}", *options], "segray submit")
    job = load_settings(AnnotateSettings, WORDS, "segray annotate")
    return MAKERS[where](settings, order_of("annotate", job, settings))


@pytest.mark.parametrize("where", EXAMPLES)
def test_the_examples_are_what_submit_prints(where: str) -> None:
    file, options = f"jobs/cluster/{EXAMPLES[where]}", ("--name", "labels", "--nodes", "2", "--gpus", "1")
    again = f"segray submit --{where} {' '.join(options)} --dry-run annotate {' '.join(WORDS)} > {file}"
    assert (ROOT / file).read_text() == made(where, *options), again


def misspelt(part: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the keys of a document are."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield (*at, key)
            yield from misspelt(value, (*at, key))
    elif isinstance(part, list):
        for number, value in enumerate(part):
            yield from misspelt(value, (*at, number))


def with_a_slip(document: Any, at: tuple[str | int, ...]) -> Any:
    """A copy in which that key has a letter too many."""
    wrong = copy.deepcopy(document)
    part = wrong
    for step in at[:-1]:
        part = part[step]
    part[f"{at[-1]}x"] = part.pop(at[-1])
    return wrong


FREE = {"secrets", "accelerators", "labels", "annotations", "data", "rayStartParams", "requests", "limits"}
"""Below these, names are the user's own."""


def slips(document: Any) -> list[tuple[tuple[str | int, ...], Any]]:
    """Each copy of a document with one misspelt key."""
    return [(at, with_a_slip(document, at)) for at in misspelt(document) if FREE.isdisjoint(at[:-1])]


@pytest.mark.parametrize("options", [(), ALL["kuberay"]])
def test_kuberay_takes_the_job(options: tuple[str, ...]) -> None:
    """By its own definition, closed: the API server drops a name that it does not know without a word."""
    schema = json.loads(SCHEMA.read_text())
    _, job = yaml.safe_load_all(made("kuberay", *options))
    jsonschema.validate(job, schema, cls=jsonschema.Draft7Validator)
    wrong = slips(job)
    assert len(wrong) > 40
    validator = jsonschema.Draft7Validator(schema)
    assert [at for at, document in wrong if validator.is_valid(document)] == []


def test_kubernetes_and_skypilot_take_the_rest() -> None:
    """By the schemas that they themselves ship."""
    right, wrong = list[tuple[str, Any]](), list[tuple[str, Any]]()
    for where in ("kuberay", "sky"):
        for options in ((), ALL[where]):
            document = next(iter(yaml.safe_load_all(made(where, *options))))
            right.append((where, document))
            wrong += [(where, each) for _, each in slips(document)]
    command = ["uv", "run", "--isolated", "--no-project", *(f"--with={each}" for each in VALIDATORS)]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")
    }
    done = subprocess.run(
        [*command, "python", "-c", VALIDATE], input=json.dumps([*right, *wrong]),
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said[: len(right)] == [""] * len(right)
    assert len(wrong) > 20
    taken = [document for (_, document), told in zip(wrong, said[len(right) :], strict=True) if not told]
    assert taken == []


def test_the_pods_mount_what_they_read() -> None:
    settings, job = yaml.safe_load_all(made("kuberay", "--nodes", "2"))
    spec = job["spec"]["rayClusterSpec"]
    head = spec["headGroupSpec"]["template"]["spec"]
    (mount,) = head["containers"][0]["volumeMounts"]
    assert job["spec"]["entrypoint"] == f"sh {mount['mountPath']}/run.sh"
    assert f"--config {mount['mountPath']}/segray-job.yaml" in settings["data"]["run.sh"]
    assert head["volumes"] == [{"name": mount["name"], "configMap": {"name": settings["metadata"]["name"]}}]
    assert head["containers"][0]["env"] == [{"name": "SEGRAY_RAY__NODES", "value": "3"}]


CODES = {"0": (0, 1), "1 0": (0, 2), "1 1 1 1": (1, 4), "1 130": (130, 2)} | {
    f"{code}": (code * (code != 4), 1) for code in (2, 3, 4, 5)
}
"""With which `segray` ends, one after the other -> (the code of the job, how often it was started)."""


@pytest.mark.parametrize("codes", CODES)
def test_exit_codes_are_mapped_once(codes: str, tmp_path: Path) -> None:
    settings, _ = yaml.safe_load_all(made("kuberay"))
    (tmp_path / "segray").write_text(
        '#!/bin/sh\necho "$@" >> ran\nset -- $CODES\nshift $(($(wc -l < ran) - 1))\nexit $1\n'
    )
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    for name in ("segray", "sleep"):
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", settings["data"]["run.sh"]],
        cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin", "CODES": codes},
    )  # fmt: skip
    starts = (tmp_path / "ran").read_text().count("annotate --config")
    assert (done.returncode, starts) == CODES[codes]


@pytest.mark.parametrize("where", ["slurm", "sky"])
@pytest.mark.parametrize("name", ["plain", "all"])
def test_the_shell_takes_the_scripts(where: str, name: str) -> None:
    text = made(where, *(ALL[where] if name == "all" else ()))
    scripts = [text] if where == "slurm" else [yaml.safe_load(text)[part] for part in ("setup", "run")]
    for script in scripts:
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, "")
    if name == "all":
        for option in ALL[where]:
            assert option.startswith("--") or option in text
