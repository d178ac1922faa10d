"""The DAG in a real Airflow: imported, its command rendered and run; no misspelt name in it is taken."""

import ast
import json
import sysconfig
from pathlib import Path

import pytest
import yaml

from segray.cli import main
from segray.schedule.cron import cron
from tests.schedule.made import fake_segray, isolated, written
from tests.schedule.test_cron import EXPRESSIONS, FROM, STARTS, expected

AIRFLOW = ("apache-airflow-core==3.3.2", "apache-airflow-providers-standard==1.21.0")
LOOK = """
import ast, contextlib, json, sys

with contextlib.redirect_stdout(sys.stderr):  # where its log goes
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk.exceptions import AirflowException, AirflowSkipException
    from croniter import croniter
    from datetime import datetime

    asked = json.load(sys.stdin)
    bag = DagBag(asked["file"])
    assert not bag.import_errors, bag.import_errors
    (dag,) = bag.dags.values()
    (task,) = dag.tasks
    told = {
        "dag": [dag.dag_id, dag.catchup, dag.max_active_runs],
        "when": [dag.timetable.expression, str(dag.timetable.timezone)],
        "task": [task.task_id, list(task.skip_on_exit_code), task.retries],
    }
    task.bash_command = task.render_template(task.bash_command, {}, dag.get_template_env())
    told["ends"] = []
    for code in asked["codes"]:
        task.env = {"CODE": str(code)}
        try:
            task.execute({})
            told["ends"].append("done")
        except AirflowSkipException:
            told["ends"].append("skipped")
        except AirflowException:
            told["ends"].append("failed")

    text = open(asked["file"]).read()
    told["slips"] = told["taken"] = 0
    for number, node in enumerate(ast.walk(ast.parse(text))):
        tree = ast.parse(text)
        wrong = list(ast.walk(tree))[number]
        if isinstance(node, ast.keyword):
            wrong.arg += "x"
        elif isinstance(node, ast.alias):
            wrong.name += "x"
        elif isinstance(node, ast.ImportFrom):
            wrong.module += "x"
        else:
            continue
        told["slips"] += 1
        try:
            exec(compile(ast.unparse(tree), "wrong", "exec"), {})
            told["taken"] += 1
        except Exception:
            pass

    told["starts"] = []
    for expression in asked["expressions"]:
        times = croniter(expression, datetime.fromisoformat(asked["from"]))
        told["starts"].append([times.get_next(datetime).isoformat() for _ in range(asked["number"])])
json.dump(told, sys.stdout)
"""


def test_airflow_imports_and_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = ["s3://bucket/{{ ds }}/'it' \"5 %\" $HOME \\n", "s3://bucket/{% if %}{# no #}"]
    (tmp_path / "job.yaml").write_text(json.dumps({"sources": odd}))
    job = ("annotate", "--config", str(tmp_path / "job.yaml"), "--output", "s3://bucket/labels")
    options = ("--time-zone", "Europe/Berlin", "--retries", "2", "--name", "nightly")
    written(tmp_path / "dags", "airflow", *options, cron="0 3 * * 7", job=job)
    segray = fake_segray(tmp_path, 0)
    segray.write_text('#!/bin/sh\ncat "$3" > "$0.said"\nexit $CODE\n')
    portable = [cron(each).portable for each in EXPRESSIONS if not cron(each).both]
    asked = {
        "file": str(tmp_path / "dags/nightly.py"), "codes": [0, 1, 2, 3, 4, 5, 130],
        "expressions": portable, "from": FROM.isoformat(), "number": STARTS,
    }  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    told = json.loads(isolated(AIRFLOW, LOOK, json.dumps(asked), AIRFLOW_HOME=str(tmp_path / "airflow")))
    assert told["dag"] == ["nightly", False, 1]
    assert told["when"] == ["0 3 * * 0", "Europe/Berlin"]
    assert told["task"] == ["annotate", [4], 2]
    assert told["ends"] == ["done", "failed", "failed", "failed", "skipped", "failed", "failed"]
    assert yaml.safe_load((tmp_path / "segray.said").read_text())["sources"] == odd
    assert told["slips"] > 20
    assert told["taken"] == 0
    assert told["starts"] == [[each.isoformat() for each in expected(plain)] for plain in portable]


def test_where_the_workers_see_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its programs, its folder and its paths; the setup comes first."""
    monkeypatch.chdir(tmp_path)
    options = ("--shared-filesystem", "--setup", "module load cuda")
    text = written(tmp_path, "airflow", *options, job=("annotate", "photos", "--output", "labels"))[".py"]
    calls = {
        node.func.id: {each.arg: each.value for each in node.keywords}
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert ast.literal_eval(calls["BashOperator"]["cwd"]) == str(tmp_path)
    (command,) = (
        ast.literal_eval(node.value) for node in ast.parse(text).body if isinstance(node, ast.Assign)
    )
    first, second, third = command.removeprefix("{% raw %}").splitlines()[:3]
    assert first == f"export PATH={sysconfig.get_path('scripts')}:$PATH"
    assert second == "module load cuda"
    assert third.startswith("exec segray annotate --config /dev/stdin")
    assert f"- {tmp_path}/photos\n" in command


@pytest.mark.parametrize("name", ["s3://bucket/{% endraw %}", "END-OF-SETTINGS"])
def test_what_would_end_the_settings(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line of the settings that is just the end of the here-document cannot come from YAML's writer."""
    (tmp_path / "job.yaml").write_text(json.dumps({"sources": ["s3://b/x"], "exclude": [name, f"a\n{name}"]}))
    job = ("annotate", "--config", str(tmp_path / "job.yaml"), "--output", "s3://bucket/labels")
    code = main(["schedule", "--cron", "0 3 * * *", "--as", "airflow", *job])
    said = capsys.readouterr()
    if "endraw" in name:
        assert code == 2
        assert "contains endraw" in said.err
        return
    assert code == 0
    command = next(
        ast.literal_eval(each.value) for each in ast.parse(said.out).body if isinstance(each, ast.Assign)
    )
    assert command.splitlines().count("END-OF-SETTINGS") == 1
