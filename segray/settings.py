"""Every option, typed once: flags, `SEGRAY_…` environment, YAML and the printed help are generated from it.

Settings shared by verbs are in this file, others in the `settings.py` of each; `command_line` parses them.
"""

from contextvars import ContextVar
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
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from segray.address import Address, LocalFile, absolute_address, plain_file_url
from segray.errors import SettingsError
from segray.models.weights import weights_kind
from segray.registry.address import absolute, is_registry
from segray.storage import StorageSettings, shown

ENV_PREFIX = "SEGRAY_"
CONFIG_FILE: ContextVar[dict[str, Any] | None] = ContextVar("CONFIG_FILE", default=None)
"""What the `--config` file holds, while settings are made of it."""


def _absolute_weights(spec: str) -> str:
    """Return a file's absolute address; names and `python:module:factory` are kept, invalid ones too."""
    if is_registry(spec):
        return absolute(spec)
    try:
        spec = plain_file_url(spec)
        return absolute_address(spec) if weights_kind(spec) == "file" else spec
    except SettingsError:
        return spec


WeightsAddress = Annotated[str, Field(pattern=r"\S"), AfterValidator(_absolute_weights)]
"""The value of `--weights`."""


class RaySettings(BaseModel):
    """Where the job runs; empty: a local Ray of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = Field(
        None, description="running cluster ('auto', or host:port); detected inside a Ray job"
    )
    nodes: int | None = Field(
        None, ge=1, description="wait until this many nodes have joined the cluster, up to 10 minutes"
    )
    object_store_mib: int = Field(1024, ge=128, description="shared memory for data in flight (own Ray only)")
    stall_timeout_s: float = Field(1800, gt=0, description="seconds without progress before the job fails")
    prices: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {},
        description='price of an hour per kind of machine, {"16 CPU": 0.68}: run.json then has the cost',
    )


class CommonSettings(BaseSettings):
    """Settings of every verb."""

    basic: ClassVar[tuple[str, ...]] = ("config", "print_config")
    """Settings that `--help` shows first, in this order."""
    usage: ClassVar[str] = ""
    """Usage after the verb, for `--help`, and for errors about missing arguments."""
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
        cli_implicit_flags="dual",
        nested_model_default_partial_update=True,
    )

    config: LocalFile | None = Field(
        None, description="YAML file with any of these settings; --no-FLAG turns off what it turns on"
    )
    print_config: bool = Field(False, description="print the settings as YAML (no secrets) and exit")
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
        """Return the sources by precedence, flags in front of them: arguments, environment, config file."""
        return init_settings, env_settings, InitSettingsSource(settings_cls, CONFIG_FILE.get() or {})


class JobSettings(CommonSettings):
    """Settings of every verb that works on data; SEGRAY_CONFIG may name a file of them."""

    basic = ("output", *CommonSettings.basic, "dry_run")

    dry_run: bool = Field(False, description="check settings, list the sources, and stop")
    log_format: Literal["text", "json"] = Field(
        "text", description="json: one object per line on stderr, the summary included; stdout stays empty"
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Prometheus metrics on this port of loopback (own Ray only)"
    )
    ray: RaySettings = RaySettings()


class StatusSettings(CommonSettings):
    """State of a run, live or finished: who holds its output, what is done, what is left.

    RUN is the output of annotate, train, predict or evaluate, on local disk or in a bucket. Nothing is
    written there. With --json, JSON is printed.
    """

    basic = ("run", *CommonSettings.basic)
    usage = "RUN [--json]"
    examples = """examples:
  segray status out/
  segray status s3://bucket/labels --json

exit codes:
  0 a run was found, in any state   1 the storage cannot be read   2 bad settings   4 no run found"""

    run: CliPositionalArg[list[Address]] = Field(
        default=[],
        validate_default=True,
        min_length=1,
        max_length=1,
        description="output folder or bucket URL of the run",
    )


class DoctorSettings(CommonSettings):
    """Check what works on this machine, and what to install for the rest.

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
        default=[], description="folders or bucket URLs of future outputs"
    )


class SceneSettings(JobSettings):
    """How scenes are read."""

    bands: str | None = Field(
        None,
        pattern=r"^[1-9]\d*(,[1-9]\d*,[1-9]\d*)?$",
        description="bands of a scene, one or three (3,2,1), from 1; default red, green, blue where named",
    )
    resolution: float | None = Field(
        None, gt=0, description="metres per pixel; finer scenes are downsampled, from their overviews"
    )
    scaling: str = Field(
        "auto",
        pattern=r"^(auto|percentiles|-?[\d.]+(e-?\d+)?,-?[\d.]+(e-?\d+)?)$",
        description="scaling of scenes to 0..255: auto (8-bit unchanged, else by the model's ranges or by "
        "the 2nd and 98th percentile), percentiles, or LOW,HIGH",
    )

    @property
    def band_numbers(self) -> tuple[int, ...] | None:
        """Return the numbers of the bands, see `Tiling.bands`."""
        return None if self.bands is None else tuple(int(band) for band in self.bands.split(","))

    @field_validator("scaling")
    @classmethod
    def _low_below_high(cls, value: str) -> str:
        if "," in value:
            low, high = (float(number) for number in value.split(","))
            if not low < high:
                raise ValueError("LOW must be below HIGH")
        return value


def without_environment(kind: type[Any], given: dict[str, Any]) -> Any:
    """Return settings of these values only: SEGRAY_OUTPUT is for the command, not for a job inside of it.

    Raises ValidationError for invalid values.
    """

    class Alone(kind):  # type: ignore[misc]
        @classmethod
        def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, **_: Any) -> Any:
            return (init_settings,)

    return kind.model_construct(**dict(Alone(**given)), _fields_set=set(given))


def printable(settings: CommonSettings, *, without_defaults: bool = False) -> str:
    """Return the effective settings as YAML that `--config` reads back; without secrets and unset values.

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
    """Return addresses, also in lists and nested settings, without credentials; other values unchanged."""
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
