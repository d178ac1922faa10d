"""Submit a batch job to Slurm: one self-contained script, sent with `sbatch` and followed to its end."""

import re
import sys
import time
from contextlib import suppress
from pathlib import Path

from segray.errors import ExitCode, JobFailedError, SettingsError
from segray.submit.job_package import Order
from segray.submit.settings import SubmitSettings
from segray.submit.shell import ONCE, CommandError, asked, in_here_document, say, setup_lines

_POLL_S = 2.0
"""Poll interval of the job and its log, in seconds."""
_OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "BOOT_FAIL", "NODE_FAIL"}

SCRIPT = """\
#!/bin/bash
# Made by `segray submit --slurm --dry-run`; by hand: sbatch FILE; again, it continues where it stopped.
# Exit codes of segray: 1 and signals (lost nodes, time limit) requeue it, {retries} times;
# 2 (settings), 3 (too many rejects), 5 (refused) need a person; 4 (nothing to do) is success.
#SBATCH --job-name={name}
#SBATCH --comment=segray:{digest}
#SBATCH --output={name}-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={cpus}
#SBATCH --mem={memory}G
{more}#SBATCH --time={time_limit}
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -u
unset "${{!SEGRAY_@}}"  # of the submitter: they would override the settings below
{setup}
settings=$(mktemp)
cat > "$settings" <<'END-OF-SETTINGS'
{settings}END-OF-SETTINGS

if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    # A Ray for this job only: its own ports, its own folders, a token that only this job knows.
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    address=$(srun --nodes=1 --ntasks=1 --nodelist="$first" hostname -I | cut -d' ' -f1)  # not a loopback one
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # since Slurm 22.05 it is not inherited
    port=$((20000 + SLURM_JOB_ID * 7 % 20000))
    common="--block --disable-usage-stats --dashboard-agent-listen-port=0 --num-cpus=$SLURM_CPUS_PER_TASK"
    log="{name}-$SLURM_JOB_ID-ray.log" folder="/tmp/segray-$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}"
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --nodes=1 --ntasks=1 --nodelist="$first" ray start --head --include-dashboard=false $common \\
        --node-ip-address="${{address:=127.0.0.1}}" --port="$port" --temp-dir="$folder" > "$log" 2>&1 &
    srun --nodes=$others --ntasks=$others --exclude="$first" ray start --address="$address:$port" $common \\
        >> "$log" 2>&1 &
    export SEGRAY_RAY__ADDRESS="$address:$port" SEGRAY_RAY__NODES=$SLURM_JOB_NUM_NODES
fi

{run}rm -f "$settings"
kill $(jobs -p) 2> /dev/null
wait
[ $code = 0 ] && [ -n "${{folder:-}}" ] && srun rm -rf "$folder"
case $code in
    4) code=0 ;;
    0 | 2 | 3 | 5) ;;
    *) if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {retries} ]; then
           echo "segray: exit $code; requeued"
           scontrol requeue "$SLURM_JOB_ID"
           sleep 60
       fi ;;
esac
exit $code
"""


def script(submit: SubmitSettings, order: Order) -> str:
    """Return the script for `sbatch`. Raises SettingsError where the settings cannot be in it."""
    if order.files:
        raise SettingsError("Slurm cannot send files: set --shared-filesystem if all nodes have them")
    more = {
        "--gpus-per-node": submit.gpus or None, "--partition": submit.partition, "--account": submit.account,
    }  # fmt: skip
    return SCRIPT.format(
        name=submit.name or order.verb,
        digest=order.digest,
        nodes=submit.nodes,
        cpus=submit.cpus,
        memory=submit.memory_gib,
        more="".join(f"#SBATCH {flag}={value}\n" for flag, value in more.items() if value is not None),
        time_limit=submit.time_limit,
        setup="\n".join(setup_lines(submit)),
        settings=in_here_document(order.settings),
        run=ONCE.format(verb=order.verb, settings='"$settings"'),
        retries=submit.retries,
    )


def send(submit: SubmitSettings, order: Order) -> int:
    """Submit the job, or find the pending or running one of that name; follow it and return its exit code.

    Raises SettingsError where Slurm is missing or rejects the job, JobFailedError where the job is lost.
    """
    text = script(submit, order)
    job = _under_way(submit, order)
    if job is None:
        try:
            job = asked(["sbatch", "--parsable"], text).partition(";")[0]
        except CommandError as error:
            raise SettingsError(f"slurm: sbatch rejects the job: {error}") from error
        say(f"job {job} is in the queue; its log: {_log(submit, order, job)}")
    if submit.detach:
        say(f"to stop it: scancel {job}")
        return ExitCode.DONE
    try:
        return _followed(job, submit)
    except KeyboardInterrupt:
        say(f"job {job} continues; to stop it: scancel {job}")
        return ExitCode.INTERRUPTED


def _log(submit: SubmitSettings, order: Order, job: str) -> Path:
    return Path(f"{submit.name or order.verb}-{job}.log").absolute()


def _under_way(submit: SubmitSettings, order: Order) -> str | None:
    """Return the queued job of that name, None without one. Raises SettingsError if it is another job."""
    if submit.name is None:
        return None
    for line in asked(
        ["squeue", "--me", "--noheader", f"--name={submit.name}", "--format=%i %k"]
    ).splitlines():
        job, _, comment = line.strip().partition(" ")
        if comment != f"segray:{order.digest}":
            raise SettingsError(f"name: job {job} has that name but other settings; choose another --name")
        say(f"job {job} is queued already; following it")
        return job
    return None


def _followed(job: str, submit: SubmitSettings) -> int:
    """Print the log as it grows; return the exit code of the job. Raises JobFailedError where it is lost."""
    printed, lost = 0, None
    while True:
        try:
            about = dict(re.findall(r"(\w+)=(\S*)", asked(["scontrol", "--oneliner", "show", "job", job])))
            lost = None
        except CommandError as error:
            lost = lost or time.monotonic()
            if "Invalid job id" in str(error) or time.monotonic() - lost > submit.patience_s:
                raise JobFailedError(f"Slurm does not answer for job {job}: {error}; see its log") from error
            time.sleep(_POLL_S)
            continue
        printed = _print_from(Path(about["StdOut"]), printed)
        if about["JobState"] in _OVER:
            return _code(job, about)
        time.sleep(_POLL_S)


def _print_from(log: Path, printed: int) -> int:
    """Print the new part of a log, if this machine has the file; return the number of bytes printed."""
    with suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(printed)
        data = file.read()
        sys.stdout.write(data.decode(errors="replace"))
        sys.stdout.flush()
        return printed + len(data)
    return printed


def _code(job: str, about: dict[str, str]) -> int:
    """Return the exit code of a job. Raises JobFailedError where it ended without one."""
    code, _, signal = about["ExitCode"].partition(":")
    if about["JobState"] != "COMPLETED" and (code, signal) != ("0", "0") and signal == "0":
        return int(code)
    if about["JobState"] == "COMPLETED":
        return ExitCode.DONE
    raise JobFailedError(
        f"job {job} ended as {about['JobState']} ({about.get('Reason', 'unknown reason')}); what is "
        "committed is safe, submit it again to continue"
    )
