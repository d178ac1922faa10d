"""A real Slurm cluster of several nodes on loopback, from Debian's packages, without root services."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.debian import unpacked

PACKAGES = (
    *("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins"),
    *("munge", "libmunge2", "libhwloc15"),
)
START_S = 60.0
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
PluginDir={root}/usr/lib/x86_64-linux-gnu/slurm-wlm
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdTimeout=60
ReturnToService=2
KillWait=5
UnkillableStepTimeout=10
SchedulerParameters=sched_interval=2
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def install_slurm() -> Path:
    """The folder with Debian's Slurm. Raises RuntimeError where it cannot be had."""
    try:
        return unpacked("slurm", PACKAGES)
    except RuntimeError as error:
        raise RuntimeError(f"{error}; leave them out: --without-slurm") from error


@dataclass
class Slurm:
    """A cluster that runs; `environment` is that of a user who may use it."""

    folder: Path
    root: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """`slurmctld`, or the slurmd of a node."""
        binaries = self.root / "usr/sbin"
        words: list[str | Path] = [binaries / "slurmctld-wlm", "-D", "-i"]
        if name != "slurmctld":
            words = [binaries / "slurmd-wlm", "-D", "-N", name, "-d", binaries / "slurmstepd-wlm"]
        with (self.folder / f"{name}.out").open("ab") as log:
            quiet = ["sh", "-c", 'ulimit -c 0; exec "$@"', "sh"]  # a step whose node is lost dumps its core
            self.daemons[name] = subprocess.Popen(
                [*quiet, *words],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def lose(self, node: str) -> None:
        """The node's power fails; when it is started again, its disk is empty."""
        self.kill(node)
        shutil.rmtree(self.folder / f"spool-{node}", ignore_errors=True)
        self.run(
            "scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power"
        )  # found after a while

    def kill(self, node: str) -> None:
        """All processes of a node are gone at once."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        steps = self._of(node)
        for process in sorted(steps, key=lambda each: not each.name().startswith("slurmstepd")):
            with suppress(psutil.Error):
                process.kill()  # who would tell of the others' end first
        daemon.wait()

    def _of(self, node: str) -> set[psutil.Process]:
        """All that runs in jobs there, and Slurm's own processes that look after it."""
        found = set[psutil.Process]()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                there = process.environ()
                is_ours = there.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if is_ours and there.get("SLURMD_NODENAME") == node:
                    found |= {process, *(each for each in process.parents() if "slurmstepd" in each.name())}
        return found


@contextmanager
def slurm_cluster(nodes: int, cpus: int) -> Iterator[Slurm]:
    """So many idle nodes, n1 and on, of so many CPUs."""
    root = install_slurm()
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        (folder / "state").mkdir()
        ports = free_ports(nodes + 1)
        about = [
            f"NodeName=n{number + 1} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 "
            f"Port={ports[number]} CPUs={cpus} RealMemory=8000 State=UNKNOWN"
            for number in range(nodes)
        ]
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname(),
                port=ports[-1],
                user=getpass.getuser(),
                root=root,
                folder=folder,
                nodes="\n".join(about),
            )
        )
        binaries = [str(Path(sys.executable).parent), str(root / "usr/bin"), os.environ["PATH"]]
        libraries = [str(root / "usr/lib/x86_64-linux-gnu"), str(root / "usr/lib/x86_64-linux-gnu/slurm-wlm")]
        environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.pathsep.join(binaries),
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        }
        cluster = Slurm(folder, root, environment)
        try:
            for daemon in ("slurmctld", *(f"n{number + 1}" for number in range(nodes))):
                cluster.start(daemon)
            _wait_until_idle(cluster, nodes)
            yield cluster
        finally:
            for daemon in list(cluster.daemons):
                cluster.kill(daemon)


def _wait_until_idle(cluster: Slurm, nodes: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        said = ""
        with suppress(RuntimeError):
            said = cluster.run("sinfo", "--noheader", "--Node", "--format=%N %T")
            if said.count(" idle") == nodes:
                return
        if time.monotonic() > deadline:
            logs = "".join(path.read_text()[-2000:] for path in cluster.folder.glob("*.log"))
            raise RuntimeError(f"Slurm did not start: {said}\n{logs}")
        time.sleep(0.2)


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
