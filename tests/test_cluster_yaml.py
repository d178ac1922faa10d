"""`cluster.yaml` by the rules of Ray's autoscaler and of AWS, and what it installs and starts."""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import botocore.loaders
import pytest
import yaml
from botocore.exceptions import ParamValidationError
from botocore.model import ServiceModel
from botocore.validate import ParamValidator
from jsonschema import ValidationError

ROOT = Path(__file__).parents[1]
FILE = ROOT / "cluster.yaml"
OTHERS = ("gcp", "azure")


def of(provider: str, folder: Path) -> dict[str, Any]:
    """The file for that provider, by the command that stands in it."""
    if provider == "aws":
        return yaml.safe_load(FILE.read_text())  # type: ignore[no-any-return]
    line = re.search(r"^#   (sed .*)$", FILE.read_text(), re.MULTILINE)
    assert line is not None
    command = line[1].replace("gcp", provider)
    shutil.copy(FILE, folder)
    subprocess.run(command, shell=True, check=True, cwd=folder)
    return yaml.safe_load((folder / f"{provider}.yaml").read_text())  # type: ignore[no-any-return]


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` does; returns what it makes of it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def misspelt(config: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """Each key of a part of it with a letter too many, in a copy of it all."""
    part = config
    for name in path:
        part = part[name]
    for key in part:
        wrong = copy.deepcopy(config)
        inner = wrong
        for name in path:
            inner = inner[name]
        inner[f"{key}x"] = inner.pop(key)
        yield key, wrong


@pytest.mark.parametrize("provider", ["aws", *OTHERS])
def test_ray_takes_it(provider: str, tmp_path: Path) -> None:
    config = of(provider, tmp_path)
    prepared = validate(config)
    kinds = prepared["available_node_types"]
    assert config["provider"]["type"] == provider
    assert prepared["head_node_type"] == "head"
    assert kinds["head"]["resources"] == {"CPU": 0}
    workers = [kinds[name] for name in kinds if name != "head"]
    assert {kind["min_workers"] for kind in workers} == {0}
    assert sum(kind["max_workers"] for kind in workers) == prepared["max_workers"]
    assert kinds["gpu_spot"]["priority"] > kinds["gpu"]["priority"]
    spot = re.compile("spot|preemptible", re.IGNORECASE)
    assert [name for name in kinds if spot.search(str(kinds[name]["node_config"]))] == ["cpu", "gpu_spot"]
    assert len(prepared["setup_commands"]) == 2
    assert prepared["head_setup_commands"][:2] == prepared["setup_commands"]
    assert len(prepared["head_setup_commands"]) == 3
    assert not any(left in f"{config}" for left in ("# gcp", "# azure", "# aws"))


def test_a_misspelt_name_is_refused(tmp_path: Path) -> None:
    config = of("aws", tmp_path)
    validate(config)
    tried = list[tuple[str, ...]]()
    for path in ((), ("auth",), *(("available_node_types", name) for name in config["available_node_types"])):
        for key, wrong in misspelt(config, *path):
            with pytest.raises((ValidationError, ValueError, KeyError, RuntimeError)):
                validate(wrong)
            tried.append((*path, key))
    assert len(tried) >= 30, tried


def test_aws_takes_the_machines(tmp_path: Path) -> None:
    """By the model of its API that botocore has; nothing is sent."""
    loader = botocore.loaders.create_loader()
    model = ServiceModel(loader.load_service_model("ec2", "service-2"))
    shape = model.operation_model("RunInstances").input_shape
    config = of("aws", tmp_path)

    def check(node: dict[str, Any]) -> None:
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node}, shape)
        if report.has_errors():
            raise ParamValidationError(report=report.generate_report())

    for name, kind in config["available_node_types"].items():
        check(kind["node_config"])
        assert kind["node_config"]["SecurityGroupIds"], f"Ray would make one that is open, for {name}"
        assert kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
        for key, wrong in misspelt(config, "available_node_types", name, "node_config"):
            assert key in kind["node_config"]
            with pytest.raises(ParamValidationError):
                check(wrong["available_node_types"][name]["node_config"])


@pytest.mark.parametrize("provider", ["aws", *OTHERS])
def test_what_it_starts(provider: str, tmp_path: Path) -> None:
    """Ray knows each option; there is a token, and the dashboard is on loopback."""
    from ray.scripts.scripts import cli

    config = of(provider, tmp_path)
    started = 0
    for where in ("head", "worker"):
        for line in config[f"{where}_start_ray_commands"]:
            words = shlex.split(line.replace("$RAY_HEAD_IP", "10.0.0.1"))
            at = words.index("~/segray/.venv/bin/ray")
            command = cli.commands[words[at + 1]]
            command.make_context(words[at + 1], words[at + 2 :])
            if words[at + 1] == "start":
                started += 1
                assert "RAY_AUTH_MODE=token" in words[:at]
                assert ("--head" in words) == (where == "head")
                assert where == "worker" or words[words.index("--dashboard-host") + 1] == "127.0.0.1"
    assert started == 2
    assert "0.0.0.0" not in yaml.safe_dump(config)
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"


def test_what_it_installs(tmp_path: Path) -> None:
    """In a home folder where nothing is: the lock's Ray and this Python, and `segray`."""
    config = of("aws", tmp_path)
    for name in ("pyproject.toml", "uv.lock", "README.md", "LICENSE"):
        (tmp_path / "segray").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "segray")
    shutil.copytree(ROOT / "segray", tmp_path / "segray/segray", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")
    }
    kept = {"UV_CACHE_DIR": ("cache", "dir"), "UV_PYTHON_INSTALL_DIR": ("python", "dir")}
    for name, words in kept.items():  # what this machine has fetched
        told = subprocess.run(["uv", *words], check=True, capture_output=True, text=True)
        environment[name] = told.stdout.strip()
    configuration = os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config"))
    environment |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": configuration}
    for line in config["setup_commands"]:
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"--python {python} " in config["setup_commands"][1]
    program = (
        "import sys, ray, s3fs; from importlib.metadata import version;"
        "print(ray.__version__, '.'.join(map(str, sys.version_info[:2])), version('segray'))"
    )
    command = [str(tmp_path / "segray/.venv/bin/python"), "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [version("ray"), python, version("segray")]
    locked = re.search(r'^name = "ray"\nversion = "(.*)"$', (ROOT / "uv.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert version("ray") == locked[1]
    for name in ("ray", "segray"):
        assert os.access(tmp_path / f"segray/.venv/bin/{name}", os.X_OK)


@pytest.mark.parametrize("name", ["aws-head", "aws-storage"])
def test_rights_are_named_one_by_one(name: str) -> None:
    policy = json.loads((ROOT / f"jobs/cluster/{name}.json").read_text())
    for statement in policy["Statement"]:
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert re.fullmatch(r"(s3|ec2|ssm|iam):[A-Z]\w+", action)
        if name == "aws-storage":
            assert statement["Resource"].startswith("arn:aws:s3:::BUCKET")
