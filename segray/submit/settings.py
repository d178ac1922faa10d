"""`segray submit`: where a job goes, and what it gets there; all generated files are made from it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segray.address import Address, LocalFile
from segray.settings import CommonSettings

Where = Literal["address", "slurm", "kuberay", "sky"]

Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""What all of them take; room is left for `-2` and what KubeRay appends."""
Memory = Annotated[int, Field(ge=1)]


class ClusterJobSettings(CommonSettings):
    """What a job gets on a cluster, whoever starts it: this machine, or the cluster's own clock."""

    shared_filesystem: bool = Field(False, description="all nodes see the paths of this machine")
    nodes: int = Field(1, ge=1, description="machines that work (Slurm, KubeRay, SkyPilot)")
    cpus: int = Field(8, ge=1, description="CPUs of each")
    gpus: int = Field(0, ge=0, description="GPUs of each")
    memory_gib: int = Field(32, ge=1, description="memory of each")
    retries: int = Field(
        3, ge=0, description="how often the scheduler may start it again (exit code 1, lost nodes)"
    )
    time_limit: str = Field(
        "24:00:00",
        pattern=r"^(\d+-)?\d{1,2}:\d\d:\d\d$",
        description="Slurm's, [DAYS-]HH:MM:SS; queued again after it",
    )
    partition: str | None = Field(None, pattern=r"^[\w.,-]+$", description="Slurm's")
    account: str | None = Field(None, pattern=r"^[\w.-]+$", description="Slurm's")
    setup: list[str] = Field(
        [],
        description="shell lines that run first on each node, `module load cuda` (Slurm, SkyPilot, Airflow)",
    )
    image: str = Field(
        "segray:latest", pattern=r"^\S+$", description="Kubernetes: of jobs/cluster/Dockerfile"
    )
    namespace: str | None = Field(None, pattern=r"^[a-z0-9-]+$", description="Kubernetes'")
    secret: str | None = Field(
        None,
        pattern=r"^[a-z0-9.-]+$",
        description="Kubernetes: a Secret whose entries become environment variables",
    )
    service_account: str | None = Field(
        None, pattern=r"^[a-z0-9.-]+$", description="Kubernetes: whose rights on the storage the pods have"
    )


class SubmitSettings(ClusterJobSettings):
    """Send a job to a cluster, follow its log, and end with its exit code.

    What stands before VERB says where it runs; VERB and what follows is the command as it would be typed
    here: annotate, train, predict, evaluate or retrain. Its settings are checked before anything is sent.
    Credentials stay here: the nodes need rights of their own. The same --name again follows the job that
    runs, or, when that has ended, sends the next attempt, which goes on where it stopped.
    """

    basic = (
        *("address", "slurm", "kuberay", "sky", "name", "detach", "dry_run"),
        *CommonSettings.basic,
    )
    usage = "(--address URL | --slurm | --kuberay | --sky) [--name ID] [--detach] [--dry-run] VERB ..."
    examples = """examples:
  segray submit --address http://localhost:8265 annotate s3://bucket/photos --output s3://bucket/labels
  segray submit --address http://localhost:8265 --name nightly train --config train.yaml
  segray submit --slurm --nodes 4 --gpus 2 --shared-filesystem annotate /data/photos --output /data/labels
  segray submit --kuberay --image registry/segray:1 predict s3://b/scenes --weights s3://b/model.pt --output s3://b/maps

exit codes:
  the job's own: 0 done   1 failed, submit again to continue   2 bad settings   3 too many rejects
  4 nothing to do; 0 from a scheduler   130 detached by Ctrl-C, the job goes on"""

    address: str | None = Field(
        None,
        pattern=r"^https?://[^/@?\s]+/?$",
        description="job server of a Ray cluster, http://HOST:8265; its token: RAY_AUTH_TOKEN, or "
        "~/.ray/auth_token",
    )
    slurm: bool = Field(False, description="a batch job, by sbatch")
    kuberay: bool = Field(False, description="a RayJob on Kubernetes, by kubectl")
    sky: bool = Field(False, description="a managed job on a cloud, by SkyPilot's sky")
    name: Name | None = Field(
        None,
        description="of the job: the same again follows it instead of starting a second (default: VERB-…)",
    )
    detach: bool = Field(False, description="send it and come back at once")
    dry_run: bool = Field(False, description="print the request or the file, send nothing")

    package: LocalFile | None = Field(
        None, description="folder that is sent with the job (Ray): its files may be named in settings"
    )
    any_version: bool = Field(False, description="send it to a cluster of another Ray, Python or segray, too")
    patience_s: float = Field(600, ge=0, description="how long a connection that broke is tried again")

    gpu_type: str = Field("L4", pattern=r"^[A-Za-z0-9._-]+$", description="of SkyPilot's catalogue")
    disk_gib: int = Field(200, ge=1, description="disk of each (SkyPilot), for what does not fit in memory")
    infra: str | None = Field(
        None, pattern=r"^[\w./*-]+$", description="SkyPilot: aws/us-east-1, gcp, kubernetes"
    )
    spot: bool = Field(False, description="SkyPilot: machines that may be taken away, at a lower price")

    rate: float | None = Field(None, gt=0, description="images a second, for the estimate of --dry-run")
    hourly_price: float | None = Field(None, gt=0, description="of all machines together, for the estimate")
    like: Address | None = Field(
        None, description="finished run whose rate and cost the estimate takes, in the place of these two"
    )

    @property
    def where(self) -> Where:
        """The kind of cluster."""
        return next(kind for kind in ("address", "slurm", "kuberay", "sky") if getattr(self, kind))

    @model_validator(mode="after")
    def _one_place(self) -> "SubmitSettings":
        chosen = [kind for kind in ("address", "slurm", "kuberay", "sky") if getattr(self, kind)]
        if len(chosen) != 1:
            said = " and ".join(f"--{kind}" for kind in chosen) or "nothing"
            raise ValueError(f"say where: one of --address URL, --slurm, --kuberay, --sky (given: {said})")
        if self.package is not None and self.where != "address":
            raise ValueError(f"--{self.where} sends no files; leave --package out")
        return self
