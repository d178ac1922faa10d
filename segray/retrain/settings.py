"""What `segray retrain` can be told; flags, environment, YAML and help come from here."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from segray.address import Address
from segray.annotate.settings import AnnotateSettings
from segray.data.look_alikes import LookAlikes
from segray.errors import SettingsError
from segray.registry.address import check_model
from segray.settings import JobSettings
from segray.train.settings import TrainSettings

GIVEN = frozenset(
    {
        *("config", "print_config", "dry_run", "log_format", "metrics_port", "storage", "ray", "output"),
        *("data", "root", "min_score", "start_from", "val_share", "test_share", "split_seed"),
        *("group_look_alikes", "sources", "weights", "device", "max_rejects", "footprints"),
    }
)
"""Settings of training, scoring and labelling that retraining itself has, or decides."""
LABELS = frozenset({"sources", "output", "max_rejects"})
"""Of these, what labelling with a new champion has for itself."""
WHOLE = frozenset({"include", "exclude", "keep_columns", "retry_rejected"})
"""What scoring does not take besides: every picture of the holdout is scored, and nothing else."""
SCORE_THRESHOLD = 0.05
"""Detections below it are not looked at when AP is computed, as in torchvision's own models."""


def _model_name(name: str) -> str:
    try:
        return check_model(name)
    except SettingsError as error:
        raise ValueError(str(error)) from error


class GateSettings(BaseModel):
    """When a challenger replaces the champion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: float = Field(
        0.05, gt=0, lt=0.5, description="probability that noise is ever promoted, over all looks at a holdout"
    )
    draws: int = Field(10_000, ge=100, description="resamples of the holdout's images")
    floors: dict[str, float] = Field({}, description='lowest score of a group: {"night": 0.3}; see group_by')
    group_drop: float | None = Field(
        None, ge=0, description="the most that any group may fall below the champion's score"
    )
    least: int = Field(10, ge=1, description="groups of fewer images are reported, not judged")
    least_figure: float = Field(0.0, description="what a first version, without a champion, must exceed")


class RetrainSettings(JobSettings):
    """From new and corrected labels to a better model, or to a refusal with reasons; safe to run every hour.

    DATA is what `segray train` takes. Where enough of it is new or changed, a challenger is trained, and the
    champion of the registry and it are scored on the same held-out pictures; the challenger becomes champion
    where noise is no likely reason of its higher score. A killed run, run again with the same command, goes
    on. OUTPUT keeps the holdout and a folder for each round, with the report.
    """

    basic = (
        *("data", "registry", "model", "output", "min_new", "start", "train", "group_by", "margin", "notify"),
        *JobSettings.basic[1:],
    )
    usage = "--data URL --registry URL --model NAME --output URL"
    examples = """examples:
  segray retrain --config retrain.yaml
  segray retrain --data s3://bucket/labels --registry s3://bucket/models --model roofs --output s3://bucket/rounds
  segray retrain --config retrain.yaml --min-new 200 --group-by camera --if-drift s3://bucket/tonight

exit codes:
  0 promoted   1 failed, run again to continue   2 bad settings   3 too many rejects
  4 nothing new, or another run has the output   5 refused, with reasons   130 interrupted, run again"""

    data: Address = Field(description="labels, as `segray train --data` takes them")
    root: Address | None = Field(None, description="what the paths in DATA are relative to")
    min_score: float | None = Field(
        None, ge=0, le=1, description="as of train, of labels in annotate's shape"
    )
    registry: Address = Field(description="folder or bucket URL of the registry of models")
    model: Annotated[str, AfterValidator(_model_name)] = Field(description="name of the model in it")
    output: Address = Field(description="folder or bucket URL for rounds, holdout and reports")
    min_new: int = Field(20, ge=1, description="new or changed labels below which nothing is done (exit 4)")
    if_drift: Address | None = Field(
        None,
        description="do nothing (exit 4) unless this run of annotate drifted from the champion's profile",
    )
    start: Literal["champion", "scratch"] = Field("champion", description="what the challenger starts from")
    train: dict[str, Any] = Field(
        {}, description='settings of train: {"arch": "compact-maskrcnn", "epochs": 20}; in YAML as there'
    )
    score: dict[str, Any] = Field(
        {}, description="settings of annotate for the holdout, such as tile, batch_size, actors"
    )
    label: dict[str, Any] = Field(
        {}, description="what a new champion annotates at once: sources, output and other settings of it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models train and run")
    holdout_share: float = Field(0.18, gt=0, lt=1, description="of new pictures that are held out, by hash")
    val_share: float = Field(0.12, gt=0, lt=1, description="of the others, to choose the best epoch")
    split_seed: int = Field(0, description="of the split, where the data name none")
    group_look_alikes: LookAlikes = Field(
        "loose", description="as of train: a look-alike of a held-out picture never trains"
    )
    group_by: str | None = Field(
        None,
        pattern=r"\S",
        description="column of the data that names the groups of the gate, such as camera",
    )
    margin: float = Field(
        0.0, ge=0, description="what the gain must exceed for sure: 0.01 is a point of AP, or of mIoU"
    )
    gate: GateSettings = GateSettings()
    max_rejects: float = Field(
        0.0,
        ge=0,
        le=1,
        description="exit 3, without a decision, when a larger share cannot be read or scored",
    )
    pictures: int = Field(6, ge=0, le=50, description="in the report: where the two models differ most")
    notify: list[SecretStr] = Field(
        [], description="commands (JSON on their stdin) and https:// webhooks that are told of each end"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> "RetrainSettings":
        """What is passed on is checked now, not when it is used."""
        problems = [
            *_problems("train", TrainSettings, self.train, self._needed_to_train, GIVEN),
            *_problems("score", AnnotateSettings, self.score, _ANNOTATED, GIVEN | WHOLE),
        ]
        if self.label:
            problems += _problems("label", AnnotateSettings, self.label, {}, GIVEN - LABELS)
        if self.start == "champion" and self.train.get("pretrained"):
            problems.append("train.pretrained: the challenger starts from the champion; say start: scratch")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def _needed_to_train(self) -> dict[str, Any]:
        started = {"start_from": "champion.pt"} if self.start == "champion" else {}
        return {"data": "d", "output": "o", **started}

    @property
    def max_pixels(self) -> int:
        """Of pictures that training and scoring read."""
        made: TrainSettings = without_environment(TrainSettings, {**self._needed_to_train, **self.train})
        return made.max_pixels

    @property
    def kept_score(self) -> float:
        """Above which users of the model will have its instances."""
        made: AnnotateSettings = without_environment(AnnotateSettings, {**_ANNOTATED, **self.label})
        return made.score_threshold


_ANNOTATED: dict[str, Any] = {"sources": ["s"], "output": "o"}


def _problems(
    name: str, kind: type[JobSettings], given: dict[str, Any], needed: dict[str, Any], own: frozenset[str]
) -> list[str]:
    """Of the settings of a part, with dotted names."""
    taken = [f"{name}.{each}: retrain decides that, or has it itself" for each in given if each in own]
    unknown = [f"{name}.{each}: unknown setting" for each in given if each not in kind.model_fields]
    rest = {each: value for each, value in given.items() if each in kind.model_fields and each not in own}
    try:
        without_environment(kind, {**needed, **rest})
    except ValidationError as error:
        told = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
        unknown += [f"{name}.{place}: {words}" if place else f"{name}: {words}" for place, words in told]
    return taken + unknown


def without_environment(kind: type[Any], given: dict[str, Any]) -> Any:
    """Settings of these values alone: SEGRAY_OUTPUT is of retrain, not of its parts."""

    class Alone(kind):  # type: ignore[misc]
        @classmethod
        def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, **_: Any) -> Any:
            return (init_settings,)

    return kind.model_construct(**dict(Alone(**given)), _fields_set=set(given))
