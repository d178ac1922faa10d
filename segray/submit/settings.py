"""Settings of `segray submit`: the cluster and its resources; all generated files are made from them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segray.address import Address, LocalFile
from segray.settings import CommonSettings

Where = Literal["address", "slurm", "kuberay", "sky"]

Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""A name that all schedulers accept, short enough for the suffix `-2` and those of KubeRay."""
Memory = Annotated[int, Field(ge=1)]


class ClusterJobSettings(CommonSettings):
    """Resources of a job on a cluster, for `segray submit` and `segray schedule`."""

    shared_filesystem: bool = Field(False, description="all nodes have the paths of this machine")
    nodes: int = Field(1, ge=1, description="number of nodes (Slurm, KubeRay, SkyPilot)")
    cpus: int = Field(8, ge=1, description="CPUs of each node")
    gpus: int = Field(0, ge=0, description="GPUs of each node")
    memory_gib: int = Field(32, ge=1, description="memory of each node in GiB")
    retries: int = Field(
        3, ge=0, description="restarts by the scheduler after a failure (exit code 1, lost nodes)"
    )
    time_limit: str = Field(
        "24:00:00",
        pattern=r"^(\d+-)?\d{1,2}:\d\d:\d\d$",
        description="Slurm: time limit, [DAYS-]HH:MM:SS; requeued after it",
    )
    partition: str | None = Field(None, pattern=r"^[\w.,-]+$", description="Slurm: partition")
    account: str | None = Field(None, pattern=r"^[\w.-]+$", description="Slurm: account")
    setup: list[str] = Field(
        [],
        description="shell lines to run first on each node, `module load cuda` (Slurm, SkyPilot, Airflow)",
    )
    image: str = Field(
        "segray:latest", pattern=r"^\S+$", description="Kubernetes: image of jobs/cluster/Dockerfile"
    )
    namespace: str | None = Field(None, pattern=r"^[a-z0-9-]+$", description="Kubernetes: namespace")
    secret: str | None = Field(
        None,
        pattern=r"^[a-z0-9.-]+$",
        description="Kubernetes: a Secret whose entries become environment variables",
    )
    service_account: str | None = Field(
        None,
        pattern=r"^[a-z0-9.-]+$",
        description="Kubernetes: service account of the pods, for access to storage",
    )


class SubmitSettings(ClusterJobSettings):
    """Submit a job to a cluster, follow its log, and exit with its exit code.

    Options before VERB say where it runs; VERB and what follows is the command as you would type it here:
    annotate, train, predict, evaluate or retrain. Its settings are checked before anything is sent.
    Credentials are not sent: the nodes need their own. The same --name again follows the running job or, if
    it has ended, submits the next attempt, which continues where it stopped.
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
  4 nothing to do; 0 from a scheduler   130 detached by Ctrl-C, the job continues"""

    address: str | None = Field(
        None,
        pattern=r"^https?://[^/@?\s]+/?$",
        description="job server of a Ray cluster, http://HOST:8265; its token: RAY_AUTH_TOKEN, or "
        "~/.ray/auth_token",
    )
    slurm: bool = Field(False, description="submit a batch job with sbatch")
    kuberay: bool = Field(False, description="create a KubeRay RayJob with kubectl")
    sky: bool = Field(False, description="launch a managed job on a cloud with SkyPilot's sky")
    name: Name | None = Field(
        None,
        description="job name: the same name again follows the job instead of a second (default: VERB-…)",
    )
    detach: bool = Field(False, description="return after submission, do not follow the job")
    dry_run: bool = Field(False, description="print the request or the file, send nothing")

    package: LocalFile | None = Field(
        None, description="folder to send with the job (Ray): settings may name its files"
    )
    any_version: bool = Field(
        False, description="accept a cluster with other versions of Ray, Python, segray"
    )
    patience_s: float = Field(600, ge=0, description="seconds to retry a lost connection")

    gpu_type: str = Field("L4", pattern=r"^[A-Za-z0-9._-]+$", description="SkyPilot: GPU in its catalogue")
    disk_gib: int = Field(200, ge=1, description="SkyPilot: disk of each node in GiB, for spilled objects")
    infra: str | None = Field(
        None, pattern=r"^[\w./*-]+$", description="SkyPilot: infrastructure, aws/us-east-1, gcp, kubernetes"
    )
    spot: bool = Field(False, description="SkyPilot: preemptible spot instances, at a lower price")

    rate: float | None = Field(None, gt=0, description="images a second, for the estimate of --dry-run")
    hourly_price: float | None = Field(None, gt=0, description="of all nodes together, for the estimate")
    like: Address | None = Field(
        None, description="finished run whose rate and cost the estimate uses, instead of these two"
    )

    @property
    def where(self) -> Where:
        """The kind of cluster."""
        return next(kind for kind in ("address", "slurm", "kuberay", "sky") if getattr(self, kind))

    @model_validator(mode="after")
    def _one_target(self) -> "SubmitSettings":
        chosen = [kind for kind in ("address", "slurm", "kuberay", "sky") if getattr(self, kind)]
        if len(chosen) != 1:
            given = " and ".join(f"--{kind}" for kind in chosen) or "nothing"
            raise ValueError(f"set one of --address URL, --slurm, --kuberay, --sky (given: {given})")
        if self.package is not None and self.where != "address":
            raise ValueError(f"--{self.where} cannot send files; leave --package out")
        return self
