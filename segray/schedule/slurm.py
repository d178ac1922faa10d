"""Slurm: a line of `scrontab` that submits the script of `segray submit --slurm`."""

import shlex
from pathlib import Path

from segray.schedule.plan import Plan, one_line
from segray.submit import slurm

FOLDER = "~/segray"
CLEAN = 'env -i HOME="$HOME" USER="$USER" PATH="$PATH" ${SLURM_CONF:+SLURM_CONF="$SLURM_CONF"}'
"""Clean environment: the Slurm variables of the small job, restarts above all, are not for the other job."""


def files(plan: Plan) -> dict[str, str]:
    """Return path -> content of the scrontab line and the sbatch script."""
    script = plan.path(".sh", FOLDER)
    given = plan.settings
    place = {"partition": given.partition, "account": given.account}
    options = {
        "job-name": f"{plan.name}-start",
        "time": "00:10:00",
        "mem": "100M",
        "output": f"{plan.name}-start-%j.log",
        **{name: value for name, value in place.items() if value is not None},
    }
    folder = str(Path.cwd()) if given.shared_filesystem else str(Path(script).parent)
    words = f"cd {_word(folder)} && {CLEAN} sbatch --dependency=singleton {_word(script)}"
    head = plan.comment(
        f"Made by `segray schedule --as slurm` from --cron {plan.cron.typed!r}; put it into `scrontab -e`.",
        "Needs ScronParameters=enable in slurm.conf. A small job submits the script, which waits until the",
        "last one of its name has ended. The time is that of slurmctld. Logs are in the folder of the line.",
        "Exit codes of segray: 1 and signals (lost nodes, time limit) requeue the script,",
        f"{given.retries} times; 2 (settings), 3 (too many rejects) and 5 (refused) need a person;",
        "4 (nothing to do) is success.",
        "The environment is that of the nodes.",
    )
    scron = "".join(f"#SCRON --{name}={value}\n" for name, value in options.items())
    line = one_line(f"{plan.cron.portable} {words}")
    text = slurm.script(plan.submit, plan.order)
    return {script: text, plan.path(".scrontab", FOLDER): f"{head}{scron}{line}\n"}


def _word(path: str) -> str:
    """Return a path quoted for the shell, which expands the home folder."""
    return path if path.startswith("~") else shlex.quote(path)
