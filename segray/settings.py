"""Every option, typed once: flags, `SEGRAY_…` environment, YAML, the printed help, all from such classes.

What verbs share stands here, the rest in the `settings.py` of each; `command_line` reads them.
"""

from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from segray.address import Address, LocalFile, absolute_address, plain_file_url
from segray.errors import SettingsError
from segray.models.weights import weights_kind
from segray.registry.address import absolute, is_registry
from segray.storage import StorageSettings, shown

ENV_PREFIX = "SEGRAY_"


def _absolute_weights(spec: str) -> str:
    """Return a file's absolute address; names and `python:module:factory` stay, wrong ones too."""
    if is_registry(spec):
        return absolute(spec)
    try:
        spec = plain_file_url(spec)
        return absolute_address(spec) if weights_kind(spec) == "file" else spec
    except SettingsError:
        return spec


WeightsAddress = Annotated[str, Field(pattern=r"\S"), AfterValidator(_absolute_weights)]
"""What `--weights` takes."""


class RaySettings(BaseModel):
    """Where the job runs; empty means a Ray of its own on this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = Field(
        None, description="running cluster ('auto', or host:port); inside a Ray job this is found by itself"
    )
    nodes: int | None = Field(
        None, ge=1, description="wait until so many nodes have joined the cluster, up to 10 minutes"
    )
    object_store_mib: int = Field(1024, ge=128, description="shared memory for data in flight (own Ray only)")
    stall_timeout_s: float = Field(1800, gt=0, description="fail when nothing moved for so long")
    prices: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description='of an hour of each kind of machine, {"16 CPU": 0.68}: run.json then has the cost'
    )


class CommonSettings(BaseSettings):
    """What every verb has."""

    basic: ClassVar[tuple[str, ...]] = ("config", "print_config")
    """Settings that `--help` shows first, in this order."""
    usage: ClassVar[str] = ""
    """What follows the verb, for `--help`, and for errors about what is missing."""
    examples: ClassVar[str] = ""
    """Commands and exit codes, for `--help`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags="toggle",
        nested_model_default_partial_update=True,
    )

    config: LocalFile | None = Field(None, description="YAML file with any of these settings")
    print_config: bool = Field(False, description="print the settings in force as YAML (no secrets) and stop")
    storage: StorageSettings = StorageSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment, then the config file, which arrives as keywords; flags are put in front."""
        return env_settings, init_settings


class JobSettings(CommonSettings):
    """What every verb has that works on data; SEGRAY_CONFIG may name a file of its settings."""

    basic = ("output", *CommonSettings.basic, "dry_run")

    dry_run: bool = Field(False, description="check everything, list the sources, do nothing")
    log_format: Literal["text", "json"] = Field(
        "text", description="json: one object a line on stderr, the summary included; stdout stays empty"
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Prometheus metrics on this port of loopback (own Ray only)"
    )
    ray: RaySettings = RaySettings()


class StatusSettings(CommonSettings):
    """What became of a run, or becomes of it now: who holds its output, what is done, what is left.

    RUN is the output of annotate, train, predict or evaluate, on local disk or in a bucket. Nothing is
    written there. With --json, JSON is printed.
    """

    basic = ("run", *CommonSettings.basic)
    usage = "RUN [--json]"
    examples = """examples:
  segray status out/
  segray status s3://bucket/labels --json

exit codes:
  0 a run is there, whatever became of it   1 the storage refuses   2 bad settings   4 no run there"""

    run: CliPositionalArg[list[Address]] = Field(
        default=[],
        validate_default=True,
        min_length=1,
        max_length=1,
        description="output folder or bucket URL of the run",
    )


class DoctorSettings(CommonSettings):
    """What works on this machine, and what to install for the rest.

    With OUTPUT, a folder or bucket URL, also whether outputs can be written there, by one run at a time: an
    object is made, replaced and removed. With --json, JSON is printed.
    """

    basic = ("outputs", *CommonSettings.basic)
    usage = "[OUTPUT...] [--json]"
    examples = """examples:
  segray doctor
  segray doctor s3://bucket/labels --storage.s3.endpoint-url http://minio:9000 --json

exit codes:
  0 what is needed works   1 something does not   2 bad settings"""

    outputs: CliPositionalArg[list[Address]] = Field(
        default=[], description="folders or bucket URLs where outputs are to be written"
    )


class SceneSettings(JobSettings):
    """How scenes are read."""

    bands: str | None = Field(
        None,
        pattern=r"^[1-9]\d*(,[1-9]\d*,[1-9]\d*)?$",
        description="of a scene, one number or three (3,2,1), from 1; default red, green, blue where named",
    )
    resolution: float | None = Field(
        None, gt=0, description="metres a pixel; finer scenes are read coarser, from their overviews"
    )
    scaling: str = Field(
        "auto",
        pattern=r"^(auto|percentiles|-?[\d.]+(e-?\d+)?,-?[\d.]+(e-?\d+)?)$",
        description="of a scene to 0..255: auto (bytes stay, others by the ranges in the model file, else by "
        "the 2nd and 98th percentile), percentiles, or LOW,HIGH",
    )

    @property
    def band_numbers(self) -> tuple[int, ...] | None:
        """See `Tiling.bands`."""
        return None if self.bands is None else tuple(int(band) for band in self.bands.split(","))

    @field_validator("scaling")
    @classmethod
    def _low_below_high(cls, value: str) -> str:
        if "," in value:
            low, high = (float(number) for number in value.split(","))
            if not low < high:
                raise ValueError("LOW must be below HIGH")
        return value


def printable(settings: CommonSettings, *, without_defaults: bool = False) -> str:
    """Return the settings in force as YAML that `--config` reads back; secrets and unset values are left out.

    URLs come without credentials and query strings.
    """
    plain = settings.model_dump(
        mode="json",
        exclude={"config", "print_config", "dry_run"},
        exclude_none=True,
        exclude_defaults=without_defaults,
    )
    plain = _without_secrets(
        {
            name: value if name == "crs" or isinstance(getattr(settings, name), BaseModel) else _shown(value)
            for name, value in plain.items()
        }
    )
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _shown(value: Any) -> Any:
    """Addresses, also in lists and in settings of another verb, without credentials; all else as it is."""
    if isinstance(value, list):
        return [_shown(each) for each in value]
    if isinstance(value, dict):
        return {name: _shown(each) for name, each in value.items()}
    return shown(value) if isinstance(value, str) else value


def _without_secrets(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    stars = str(SecretStr("x"))
    return {
        name: _without_secrets(value)
        for name, value in plain.items()
        if value != stars and not (isinstance(value, list) and stars in value)
    }
