"""Settings of `segray retrain`: flags, environment, YAML and help come from here."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from segray.address import Address
from segray.annotate.settings import AnnotateSettings
from segray.data import LookAlikes
from segray.errors import SettingsError
from segray.registry.address import check_model
from segray.settings import JobSettings, without_environment
from segray.train.settings import TrainSettings

GIVEN = frozenset(
    {
        *("config", "print_config", "dry_run", "log_format", "metrics_port", "storage", "ray", "output"),
        *("data", "root", "min_score", "start_from", "val_share", "test_share", "split_seed"),
        *("group_look_alikes", "sources", "weights", "device", "max_rejects", "footprints", "split_areas"),
    }
)
"""Settings of training, scoring and labelling that retrain has itself, or decides."""
LABELS = frozenset({"sources", "output", "max_rejects"})
"""Those of them that `label` may set."""
WHOLE = frozenset({"include", "exclude", "keep_columns", "retry_rejected"})
"""Further settings that `score` may not set: exactly the images of the holdout are scored."""
SCORE_THRESHOLD = 0.05
"""Minimum score of detections in AP, as in torchvision's own models."""


def _model_name(name: str) -> str:
    try:
        return check_model(name)
    except SettingsError as error:
        raise ValueError(str(error)) from error


class GateSettings(BaseModel):
    """Rules by which a challenger replaces the champion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: float = Field(
        0.05, gt=0, lt=0.5, description="probability that noise is ever promoted, over all looks at a holdout"
    )
    draws: int = Field(10_000, ge=100, description="bootstrap resamples of the holdout's images")
    floors: dict[str, float] = Field({}, description='minimum score of a group: {"night": 0.3}; see group_by')
    group_drop: float | None = Field(
        None, ge=0, description="maximum drop of any group below the champion's score"
    )
    least: int = Field(10, ge=1, description="minimum images of a group; smaller ones are not judged")
    least_figure: float = Field(0.0, description="score that a first version, without champion, must exceed")


class RetrainSettings(JobSettings):
    """Train a better model from new and corrected labels, or refuse it with reasons; safe to run every hour.

    DATA is the same as for `segray train`. If enough of it is new or changed, a challenger is trained, and it
    and the registry's champion are scored on the same held-out images; the challenger becomes champion if its
    higher score is unlikely to be noise. A killed run, run again with the same command, continues. OUTPUT has
    the holdout and a folder for each round, with the report.
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
    root: Address | None = Field(None, description="folder or URL to which paths in DATA are relative")
    min_score: float | None = Field(
        None, ge=0, le=1, description="as for train, for labels in annotate's format"
    )
    registry: Address = Field(description="folder or bucket URL of the model registry")
    model: Annotated[str, AfterValidator(_model_name)] = Field(description="name of the model in it")
    output: Address = Field(description="folder or bucket URL for rounds, holdout and reports")
    min_new: int = Field(20, ge=1, description="minimum number of new or changed labels, else exit 4")
    if_drift: Address | None = Field(
        None,
        description="do nothing (exit 4) unless this run of annotate drifted from the champion's profile",
    )
    start: Literal["champion", "scratch"] = Field("champion", description="initial weights of the challenger")
    train: dict[str, Any] = Field(
        {}, description='settings of train: {"arch": "compact-maskrcnn", "epochs": 20}'
    )
    score: dict[str, Any] = Field(
        {}, description="settings of annotate for the holdout, such as tile, batch_size, actors"
    )
    label: dict[str, Any] = Field(
        {}, description="settings of annotate with a new champion: sources, output and others"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="device for training and inference")
    holdout_share: float = Field(0.18, gt=0, lt=1, description="share of new images to hold out, by hash")
    val_share: float = Field(0.12, gt=0, lt=1, description="share of the others for validation")
    split_seed: int = Field(0, description="seed of the split, where the data name none")
    group_look_alikes: LookAlikes = Field(
        "loose", description="as for train: a look-alike of a held-out image is never trained on"
    )
    group_by: str | None = Field(
        None,
        pattern=r"\S",
        description="column of the data that names the groups of the gate, such as camera",
    )
    margin: float = Field(
        0.0, ge=0, description="margin for the lower bound of the gain: 0.01 is a point of AP or mIoU"
    )
    gate: GateSettings = GateSettings()
    max_rejects: float = Field(
        0.0,
        ge=0,
        le=1,
        description="exit 3, without a decision, when a larger share cannot be read or scored",
    )
    pictures: int = Field(6, ge=0, le=50, description="images in the report: where the models differ most")
    notify: list[SecretStr] = Field(
        [], description="commands (JSON on stdin) and https:// webhooks to notify when it ends"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> "RetrainSettings":
        """Check the settings of train, score and label now, not when they are used."""
        problems = [
            *_problems("train", TrainSettings, self.train, self._needed_to_train, GIVEN),
            *_problems("score", AnnotateSettings, self.score, _ANNOTATED, GIVEN | WHOLE),
        ]
        if self.label:
            problems += _problems("label", AnnotateSettings, self.label, {}, GIVEN - LABELS)
        for name in ("pretrained", "encoder_weights"):
            if self.start == "champion" and self.train.get(name):
                problems.append(f"train.{name}: the challenger starts from the champion; set start: scratch")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def _needed_to_train(self) -> dict[str, Any]:
        started = {"start_from": "champion.pt"} if self.start == "champion" else {}
        return {"data": "d", "output": "o", **started}

    @property
    def max_pixels(self) -> int:
        """Maximum pixels of images in training and scoring."""
        made: TrainSettings = without_environment(TrainSettings, {**self._needed_to_train, **self.train})
        return made.max_pixels

    @property
    def kept_score(self) -> float:
        """Score threshold with which the model's users will annotate."""
        made: AnnotateSettings = without_environment(AnnotateSettings, {**_ANNOTATED, **self.label})
        return made.score_threshold


_ANNOTATED: dict[str, Any] = {"sources": ["s"], "output": "o"}


def _problems(
    name: str, kind: type[JobSettings], given: dict[str, Any], needed: dict[str, Any], own: frozenset[str]
) -> list[str]:
    """Return the problems in the settings of a part, with dotted names."""
    taken = [f"{name}.{each}: set by retrain itself" for each in given if each in own]
    unknown = [f"{name}.{each}: unknown setting" for each in given if each not in kind.model_fields]
    rest = {each: value for each, value in given.items() if each in kind.model_fields and each not in own}
    try:
        without_environment(kind, {**needed, **rest})
    except ValidationError as error:
        found = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
        unknown += [f"{name}.{path}: {text}" if path else f"{name}: {text}" for path, text in found]
    return taken + unknown
