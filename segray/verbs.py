"""The table of verbs: the settings of each, and the function that runs it, both imported on demand."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segray.settings import CommonSettings


@dataclass(frozen=True, slots=True)
class Verb:
    """One row of the table; `module:name` is relative to the package."""

    settings: str | None
    """Its settings class; None where it has none."""
    run: str
    """The function that takes the settings and returns the exit code."""
    reads: str = ""
    """For verbs that work on data: what they check first."""
    json: bool = False
    """Whether there is a flag --json; `run` then takes `as_json`."""
    splits: bool = False
    """Whether `run` takes the command line instead: some arguments are another verb's."""

    def settings_class(self) -> "type[CommonSettings] | None":
        """Return its settings class, imported; None where it has none."""
        return None if self.settings is None else _named(self.settings)

    def function(self) -> Any:
        """Return the function that runs it, imported."""
        return _named(self.run)


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(f"segray.{module}"), attribute)


_SOURCES = "the sources, the weights and the output"
VERBS: dict[str, Verb] = {
    "annotate": Verb("annotate.settings:AnnotateSettings", "annotate.task:annotate", _SOURCES),
    "train": Verb("train.settings:TrainSettings", "train.job:train", "the data and the output"),
    "predict": Verb("predict.settings:PredictSettings", "predict.task:predict", _SOURCES),
    "evaluate": Verb("evaluate.settings:EvaluateSettings", "evaluate.job:evaluate", "what is to be compared"),
    "compare": Verb(
        "comparison.settings:CompareSettings", "comparison.job:compare", "the models, the data and the output"
    ),
    "panoptic": Verb(
        "panoptic.settings:PanopticSettings", "panoptic.job:panoptic", "both runs and the output"
    ),
    "retrain": Verb(
        "retrain.settings:RetrainSettings", "retrain.job:retrain", "the labels, the registry and the output"
    ),
    "select": Verb("selection.settings:SelectSettings", "selection.job:select", "the run and the output"),
    "submit": Verb("submit.settings:SubmitSettings", "submit.job:run", splits=True),
    "schedule": Verb("schedule.settings:ScheduleSettings", "schedule.job:run", splits=True),
    "status": Verb("settings:StatusSettings", "status:show", json=True),
    "drift": Verb("drift.settings:DriftSettings", "drift.job:show", json=True),
    "preview": Verb("preview.settings:PreviewSettings", "preview.job:preview"),
    "export": Verb("export.settings:ExportSettings", "export.job:export"),
    "import": Verb("importer.settings:ImportSettings", "importer.job:import_labels"),
    "registry": Verb("registry.settings:RegistrySettings", "registry.job:run", json=True),
    "models": Verb(None, "models.catalog:show", json=True),
    "doctor": Verb("settings:DoctorSettings", "doctor:show", json=True),
}
ON_DATA = tuple(name for name, verb in VERBS.items() if verb.reads)
"""Verbs that work on data, and can be submitted and scheduled."""
