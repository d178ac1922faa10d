"""Every option, typed once: flags, `SEGRAY_…` environment, YAML, the printed help, all from these classes.

Flags win over the environment, the environment over the `--config` file, the file over the defaults.
"""

import argparse
import difflib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import (
    SettingsError as PydanticSettingsError,
)

from segray.address import Address, LocalFile, absolute_address, plain_file_url
from segray.errors import SettingsError
from segray.help import HelpParser
from segray.log import LOG
from segray.models.weights import weights_kind
from segray.registry.address import absolute, is_registry
from segray.scenes.scene import Tiling
from segray.sources.choice import Choice
from segray.storage import StorageSettings, shown
from segray.tiles import OVERLAP, TILE

ENV_PREFIX = "SEGRAY_"


def _absolute_weights(spec: str) -> str:
    """A file's address; names and `python:module:factory` stay, wrong ones too: they are told later."""
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


class BulkSettings(SceneSettings):
    """What the verbs have that run a model over a collection of images."""

    sources: CliPositionalArg[list[Address]] = Field(
        default=[],
        validate_default=True,
        min_length=1,
        description="folders, files, globs, archives, manifests (also as `sources` in the YAML)",
    )
    output: Address = Field(description="folder or bucket URL for what is written")
    weights: WeightsAddress
    include: list[str] = Field(
        [],
        description="globs: of what sources hold, only images that match one; `*.jpg` is compared with each "
        "name of a path, `left/*.jpg` with its end (repeatable)",
    )
    exclude: list[str] = Field(
        [], description="globs: leave out what matches, as in `include`: `*_mask.png`, `thumbs` (repeatable)"
    )
    keep_columns: list[str] = Field(
        [],
        description="columns of a manifest that `images` gets, too, as text: `camera,region`; "
        "`--group-by` of other verbs names one of them",
    )
    max_rejects: float = Field(0.0, ge=0, le=1, description="exit 3 when a larger share of items is rejected")
    retry_rejected: bool = Field(False, description="try items again that an earlier run rejected")
    max_pixels: int = Field(
        100_000_000, ge=1, description="reject larger pictures (height x width); scenes may have any size"
    )
    tile: int = Field(TILE, ge=64, description="scenes are done in windows of so many pixels a side")
    overlap: int = Field(OVERLAP, ge=0, description="pixels that neighbouring windows share; below tile")
    tile_above: int = Field(
        40_000_000, ge=1, description="pictures with more pixels (height x width) are done in windows, too"
    )
    crs: str = Field("OGC:CRS84", description="of the outlines in the output, one a run")
    decode_timeout_s: float = Field(30.0, gt=0, description="seconds one image may take to decode")
    max_file_mib: int = Field(1024, ge=1, description="reject larger encoded files")
    batch_size: int | None = Field(None, ge=1, description="images a model call: 8 on a GPU, 1 on a CPU")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the device is good at it"
    )
    actors: int | None = Field(None, ge=1, description="most model actors at a time; default all that fit")
    min_actors: int = Field(1, ge=1, description="fewest model actors; the pool grows from this")
    gpus_per_actor: float = Field(1.0, gt=0, description="0.5 puts two actors on a GPU")
    cpus_per_actor: float | None = Field(None, gt=0, description="CPUs an actor reserves and uses")
    readers: int | None = Field(
        None, ge=1, description="most archives or runs of files read at a time; default by CPUs"
    )
    decoders: int | None = Field(None, ge=1, description="most decoding processes; default by CPUs")
    commit_every_s: float = Field(10.0, ge=0, description="results that came back are made safe so often")

    @property
    def choice(self) -> Choice:
        """Which of the names in the sources are meant."""
        return Choice(tuple(self.include), tuple(self.exclude))

    @property
    def tiling(self) -> Tiling:
        """What is said of scenes."""
        how = self.band_numbers, self.resolution, self.scaling
        return Tiling(self.tile, self.overlap, *how, self.tile_above)

    @field_validator("keep_columns")
    @classmethod
    def _new_columns(cls, names: list[str]) -> list[str]:
        if names:
            from segray.schema import ANNOTATED, TILES

            ours = {*ANNOTATED.names, *TILES.names}
            for name in names:
                if not name.strip():
                    raise ValueError("a name is empty")
                if name.lower() in ours:  # DuckDB and Spark read names without their case
                    raise ValueError(f"{name} is a column of the ledger itself; rename it in the manifest")
            if len({name.lower() for name in names}) < len(names):
                raise ValueError("a name is there twice")
        return names

    @field_validator("crs")
    @classmethod
    def _known_crs(cls, value: str) -> str:
        if value != "OGC:CRS84":  # pyproj is not loaded for the usual one
            from pyproj import CRS
            from pyproj.exceptions import CRSError

            try:
                CRS.from_user_input(value)
            except CRSError as error:
                raise ValueError(f"no coordinate reference system that PROJ knows: {value}") from error
        return value

    @field_validator("gpus_per_actor")
    @classmethod
    def _share_or_whole(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError("must be a share of one GPU, or a whole number")
        return value

    @model_validator(mode="after")
    def _fewest_and_most(self) -> "BulkSettings":
        if self.actors is not None and self.min_actors > self.actors:
            raise ValueError(f"min_actors ({self.min_actors}) is above actors ({self.actors})")
        if self.overlap >= self.tile:
            raise ValueError(f"overlap ({self.overlap}) must be below tile ({self.tile})")
        return self


class AnnotateSettings(BulkSettings):
    """Mask R-CNN over a collection of images, into Parquet instance annotations.

    A SOURCE is a folder (recursive), a file, a glob, a .tar/.tar.gz (WebDataset) or .zip archive, or a
    Parquet/CSV manifest with a column `uri`; on local disk, s3://, gs:// or az://. A killed run, run again
    with the same command, does only what is missing.
    """

    basic = (*("sources", "output", "weights", "score_threshold", "max_rejects"), *JobSettings.basic[1:])

    weights: WeightsAddress = Field(
        "coco-v2",
        description="model: a name (see `segray models`), a path or URL, registry://BUCKET/PATH#MODEL@ALIAS, "
        "or python:module:factory",
    )
    score_threshold: float = Field(0.5, ge=0, le=1, description="keep instances above this score")
    proposals: int | None = Field(
        None, ge=1, description="most regions an image that a Mask R-CNN looks at; default the model's own"
    )


S = TypeVar("S", bound=CommonSettings)


def load_settings(
    cls: type[S],
    arguments: Sequence[str],
    program: str,
    examples: str = "",
    usage: str = "SOURCE... --output URL",
) -> S:
    """Settings from flags, environment and file.

    Raises SettingsError with one line for every problem at once. `--help` prints and exits 0.
    """
    parser = HelpParser(
        prog=program,
        usage=f"{program} {usage} [options]",
        description=inspect.cleandoc(cls.__doc__ or ""),
        epilog=examples,
        allow_abbrev=False,
    )
    parser.basic = cls.basic
    unknown: list[str] = []

    def parse(parser: argparse.ArgumentParser, arguments: Sequence[str], _: Any = None) -> argparse.Namespace:
        namespace, rest = parser.parse_known_intermixed_args(arguments)
        unknown.extend(rest)
        _take_literally(parser, namespace)
        return namespace

    try:
        flags: CliSettingsSource[Any] = CliSettingsSource(
            cls,
            root_parser=parser,
            cli_parse_args=list(arguments),
            parse_args_method=parse,
        )
        given: Any = flags()
    except PydanticSettingsError as error:
        told = str(error).removeprefix("Parsing error encountered for ")
        raise SettingsError(f"{told}; what holds a double quote goes into a --config file") from error
    problems = [_unknown_flag(cls, flag, program) for flag in _only_names(unknown)]
    problems += _unknown_environment()
    named = os.environ.get(ENV_PREFIX + "CONFIG") if issubclass(cls, JobSettings) else None
    file, file_problems = _config_file(given.get("config") or named)
    problems += file_problems
    LOG.choose(arguments, file)
    try:
        settings = cls(_cli_settings_source=flags, **file)
    except ValidationError as error:
        problems += [_line(cls, problem) for problem in error.errors()]
    except PydanticSettingsError as error:
        problems += [str(error)]
    if problems:
        lacks = [f"usage: {program} {usage}"] * any("is required" in problem for problem in problems)
        raise SettingsError(*problems, *lacks, f"see `{program} --help`")
    return settings


def _take_literally(parser: argparse.ArgumentParser, namespace: argparse.Namespace) -> None:
    """A source is one name, whatever is in it: pydantic would split it at commas, and read `[ab]` as JSON.

    Quotes keep it from that; what holds quotes itself stays as it is, so that a list in JSON may be typed.
    """
    for action in parser._actions:
        values = getattr(namespace, action.dest, None)
        if not action.option_strings and isinstance(values, list):
            setattr(namespace, action.dest, [each if '"' in each else f'"{each}"' for each in values])


def _config_file(path: str | None) -> tuple[dict[str, Any], list[str]]:
    """What the YAML file holds, and what is wrong with it."""
    if not path:
        return {}, []
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [f"config: cannot read {path}: {error.strerror}"]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = f", line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        return {}, [f"config: {path}{line} is not YAML: {getattr(error, 'problem', None) or 'not UTF-8'}"]
    if content is None:
        return {}, []
    if not isinstance(content, dict):
        return {}, [f"config: {path} must hold `name: value` lines, not a {type(content).__name__}"]
    return {str(name).replace("-", "_").lstrip("_"): value for name, value in content.items()}, []


def printable(settings: CommonSettings, *, without_defaults: bool = False) -> str:
    """The settings in force as YAML that `--config` reads back; secrets and unset values are left out.

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


_FORMS = {
    "endpoint_url": "must be http(s)://host, without user and query",
    "address": "must be http(s)://HOST:PORT, without user and query",
    "name": "must be lower-case letters, digits and `-`, at most 40, first a letter",
    "time_limit": "must be HH:MM:SS, with DAYS- before it if need be",
    "bands": "must be one number or three, from 1: 3,2,1",
    "scaling": "must be auto, percentiles, or LOW,HIGH",
}
"""What a pattern wants, in words; what was given may be a secret."""


def _line(cls: type[BaseSettings], problem: Any) -> str:
    names = [str(part) for part in problem["loc"]]
    dotted = ".".join(names) or "settings"
    if problem["type"] == "extra_forbidden":
        return f"{dotted}: unknown setting{_did_you_mean(names[-1], _known(cls))}"
    if problem["type"] == "missing" or (problem["type"] == "too_short" and not problem["input"]):
        return f"{dotted}: is required"
    if problem["type"] == "string_pattern_mismatch":
        is_needed = problem["ctx"]["pattern"] == r"\S"
        told = _FORMS.get(names[-1], f"must have the form {problem['ctx']['pattern']}")
        return f"{dotted}: {'is empty' if is_needed else told}"
    given = None if names[:1] == ["storage"] else problem.get("input")  # may be a secret
    told = problem["msg"].removeprefix("Value error, ")  # pydantic's mark of a ValueError of ours
    is_shown = isinstance(given, str | int | float) and repr(given) not in told
    return f"{dotted}: {told}{f' (given: {given!r})' * is_shown}"


def _known(cls: type[BaseModel]) -> list[str]:
    """All setting names, nested ones dotted and by their last part."""
    names: list[str] = []
    for name, field in cls.model_fields.items():
        names.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            nested = _known(field.annotation)
            names += nested + [f"{name}.{inner}" for inner in nested]
    return names


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _only_names(unknown: Sequence[str]) -> list[str]:
    """Arguments nobody knows, without the values that belong to an unknown flag."""
    return [
        argument
        for before, argument in zip(["", *unknown], unknown, strict=False)
        if argument.startswith("-") or not before.startswith("-") or "=" in before
    ]


def _unknown_flag(cls: type[BaseModel], flag: str, program: str) -> str:
    flag = flag.partition("=")[0]  # the value may be a secret
    name = flag.lstrip("-")
    names = _known(cls) + (_known_to_schedule() if " schedule" in program else [])
    hint = _did_you_mean(name, [known.replace("_", "-") for known in names])
    if "submit" in program and name.replace("-", "_") in _known_to_submit():
        hint = "; it belongs to submit: put it before the verb"
    return f"{flag}: unknown flag{hint}" if flag.startswith("-") else f"{flag}: unexpected argument"


def _known_to_submit() -> list[str]:
    from segray.submit.settings import SubmitSettings

    return _known(SubmitSettings)


def _known_to_schedule() -> list[str]:
    from segray.schedule.settings import ScheduleSettings

    return _known(ScheduleSettings)


def _known_to_any_verb() -> list[str]:
    """One environment serves all verbs: a setting of another one is no mistake."""
    from segray.drift.settings import DriftSettings
    from segray.evaluate.settings import EvaluateSettings
    from segray.predict.settings import PredictSettings
    from segray.registry.settings import RegistrySettings
    from segray.retrain.settings import RetrainSettings
    from segray.schedule.settings import ScheduleSettings
    from segray.submit.settings import SubmitSettings
    from segray.train.settings import TrainSettings

    of_data = (AnnotateSettings, PredictSettings, TrainSettings, EvaluateSettings, RetrainSettings)
    verbs = (
        *(*of_data, SubmitSettings, ScheduleSettings, StatusSettings),
        *(DriftSettings, DoctorSettings, RegistrySettings),
    )
    return list(dict.fromkeys(name for verb in verbs for name in _known(verb)))


def _unknown_environment() -> list[str]:
    names = _known_to_any_verb()
    known = {name.upper().replace(".", "__") for name in names}
    return [
        f"{name}: unknown setting in the environment{_did_you_mean(rest.lower(), names)}"
        for name in sorted(os.environ)
        if name.startswith(ENV_PREFIX) and (rest := name[len(ENV_PREFIX) :]).upper() not in known
    ]
