"""Airflow: a DAG with one task."""

from pathlib import Path

from segray.errors import SettingsError
from segray.schedule.plan import Plan
from segray.submit.shell import HERE_END, in_here_document, setup_lines

RAW, RAW_END = "{% raw %}", "{% endraw %}"
DAG = """\
{head}from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, CronTriggerTimetable

COMMAND = (
{command}
)

with DAG(
    dag_id={name!r},
    schedule=CronTriggerTimetable({cron!r}, timezone={zone!r}),
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["segray"],
):
    BashOperator(
        task_id={verb!r},
        bash_command=COMMAND,
        append_env=True,
        cwd={folder!r},
        skip_on_exit_code=4,
        retries={retries},
        retry_delay=timedelta(seconds=30),
    )
"""


def files(plan: Plan) -> dict[str, str]:
    """Return path -> content of the DAG. Raises SettingsError where a setting contains `endraw`."""
    settings, zone = in_here_document(plan.order.settings), plan.settings.time_zone or "UTC"
    run = f"exec segray {plan.order.verb} --config /dev/stdin <<'{HERE_END}'\n{settings}{HERE_END}\n"
    body = "".join(f"{line}\n" for line in setup_lines(plan.submit)) + run
    if "endraw" in body:
        raise SettingsError("a setting contains endraw, which would end the raw block of Airflow's template")
    lines = f"{RAW}{body}{RAW_END}"
    head = plan.comment(
        "Made by `segray schedule --as airflow`; put it into the DAGs folder. Airflow 3, with",
        "apache-airflow-providers-standard; segray must be in the PATH of the workers.",
        f"Exit codes of segray: 1, 130 and lost workers are retried, {plan.settings.retries} times, and",
        "continue where they stopped; so are 2 (settings), 3 (too many rejects) and 5 (refused), which fail",
        "again within seconds and need a person; 4 (nothing to do) skips the task, the run succeeds.",
        f"From --cron {plan.cron.typed!r}, in the time zone of {zone}.",
        "The environment is that of the workers.",
    )
    text = DAG.format(
        head=head,
        command="\n".join(f"    {line!r}" for line in lines.splitlines(keepends=True)),
        name=plan.name,
        cron=plan.cron.portable,
        zone=zone,
        verb=plan.order.verb,
        folder=str(Path.cwd()) if plan.settings.shared_filesystem else None,
        retries=plan.settings.retries,
    )
    return {plan.path(".py", "."): text}
