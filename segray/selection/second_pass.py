"""The second pass: the model of a run over its sources again, with low scores, features and disagreement.

It is a bulk job like annotate and predict, into an output of its own: killed, it goes on; finished, it does
nothing. Of an annotate run it is an output of annotate, at the threshold 0.05, and can be used as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from segray.annotate.settings import AnnotateSettings
from segray.annotate.task import Annotate
from segray.errors import ExitCode, JobFailedError, SettingsError
from segray.log import say
from segray.predict.settings import PredictSettings
from segray.predict.task import Predict
from segray.selection.measures import VERSION, Measured, MeasuresWriter
from segray.selection.settings import PASS_THRESHOLD, SelectSettings
from segray.settings import without_environment
from segray.storage import shown

if TYPE_CHECKING:
    from segray.bulk.task import BulkTask
    from segray.models.device import Precision
    from segray.models.weights import LoadedModel
    from segray.output.folder import Output
    from segray.scenes.scene import Scene
    from segray.selection.measuring import MapMeasurer, MeasuringPredictor

NOT_FROM_THE_RUN = frozenset(
    {"output", "storage", "ray", "log_format", "metrics_port", "max_rejects", "score_threshold"}
    | {"probabilities", "polygons", "tta", "retry_rejected", "blur", "blur_margin", "refine", "boxes"}
)
"""Settings of the run that the pass has itself, or has no use for."""


@dataclass(frozen=True)
class MeasureInstances(Annotate):
    """Annotate, and write measures of each image; see `bulk.task.BulkTask`."""

    digest: str = ""
    """sha256 of the run's model: another one may not stand in for it."""
    threshold: float = 0.5
    """The run's own: instances above it are compared with those of the mirror image and of other windows."""
    flips: bool = False
    generation: int = 0

    def load(self) -> "LoadedModel":
        """Return the model, loaded. Raises SettingsError where it is not the run's any more."""
        return _same(super().load(), self.digest)

    def identity(self, model: "LoadedModel", precision: str) -> dict[str, Any]:
        """Return what instances and measures depend on."""
        return {**super().identity(model, precision), "flips": self.flips, "measures": VERSION}

    def under(self, generation: int) -> "MeasureInstances":
        """Return the same task with the generation of the lease, for workers that write measures."""
        return replace(self, generation=generation)

    def predictor(
        self, model: "LoadedModel", device: str, precision: "Precision", batch_size: int, threads: int
    ) -> "MeasuringPredictor":
        """Return the model on its device."""
        from segray.selection.measuring import MeasuringPredictor

        settings = self.settings
        made = MeasuringPredictor(
            *(model, device, precision, settings.score_threshold, batch_size, threads, settings.proposals),
            self._writer(),
            settings.sam,
        )
        made.flips_above = self.threshold if self.flips else None
        return made

    def merge_tiles(self, tiles: pa.Table) -> pa.Table:
        """Merge tiles into the item's row, after writing how far its windows disagree."""
        row = super().merge_tiles(tiles)
        from segray.selection.windows import disagreement_of

        found = Measured(windows=disagreement_of(tiles, self.threshold))
        self._writer().write([row["image_id"][0].as_py()], [None], [0], [found])
        return row

    def _writer(self) -> MeasuresWriter:
        return MeasuresWriter(self.settings.output, self.settings.storage, self.generation)


@dataclass(frozen=True)
class MeasureMaps(Predict):
    """A semantic model over images, for their measures alone; see `bulk.task.BulkTask`."""

    digest: str = ""
    flips: bool = False
    name = "select"
    merges_in_workers = False

    def load(self) -> "LoadedModel":
        """Return the model, loaded. Raises SettingsError where it is not the run's any more."""
        return _same(super().load(), self.digest)

    def identity(self, model: "LoadedModel", precision: str) -> dict[str, Any]:
        """Return what measures depend on."""
        return {"verb": self.name, "flips": self.flips, "measures": VERSION}

    def predictor(  # it writes no maps
        self, model: "LoadedModel", device: str, precision: "Precision", batch_size: int, threads: int
    ) -> "MapMeasurer":
        """Return the model on its device."""
        from segray.selection.measuring import MapMeasurer

        writer = MeasuresWriter(self.settings.output, self.settings.storage, self.generation)
        return MapMeasurer(model, device, precision, batch_size, threads, writer, self.flips)

    def merge_tiles(self, tiles: pa.Table) -> pa.Table:
        """Merge tiles into the item's row; their measures are merged when they are read."""
        from segray.bulk.merge_tiles import merged_or_rejected

        return merged_or_rejected(tiles, _row_of)

    def after_merge(self, store: "Output", image_id: str) -> None:
        """Do nothing: there are no windows."""

    def discard(self, store: "Output", image_ids: Sequence[str]) -> None:
        """Do nothing: there are no maps."""

    def finish(self, store: "Output") -> None:
        """Do nothing: there are no windows."""

    def about(self) -> str:
        """Return what is measured."""
        return "measures of images"


def _row_of(tiles: pa.Table, scene: "Scene") -> pa.Table:
    from segray.bulk.merge_tiles import all_rejected, item_of
    from segray.bulk.results import results_table
    from segray.predict.predictor import Labelled

    return results_table(item_of(tiles, scene), [all_rejected(tiles) or Labelled()])


def _same(model: "LoadedModel", digest: str) -> "LoadedModel":
    if digest and model.digest != digest:
        raise SettingsError(
            f"run: its model {model.name} has changed since (sha256 {model.digest[:12]}, not {digest[:12]}); "
            "run annotate or predict again, or select with --from-run-only"
        )
    return model


def run_pass(settings: SelectSettings, verb: str, record: dict[str, Any]) -> dict[str, Any]:
    """Run the model of a run (its run.json) over its sources again; return the pass's own record.

    Raises SettingsError and JobFailedError as `bulk.job.done`.
    """
    from segray.bulk.job import done

    code, found = done(task_of(settings, verb, record))
    if code != ExitCode.DONE:
        raise JobFailedError(f"the second pass ended with exit code {code}; run the command again")
    return found


def task_of(settings: SelectSettings, verb: str, record: dict[str, Any]) -> "BulkTask":
    """Return the pass as a bulk task. Raises SettingsError for a record that does not hold settings."""
    own = {
        **{"output": settings.pass_output, "storage": settings.storage, "ray": settings.ray},
        **{"log_format": settings.log_format, "metrics_port": settings.metrics_port, "max_rejects": 1.0},
        "dry_run": settings.dry_run,
    }
    there = record.get("settings") or {}
    digest = str((record.get("identity") or {}).get("model_digest") or "")
    try:
        if verb == "predict":
            known = {name: there[name] for name in there if name in PredictSettings.model_fields}
            given = {name: value for name, value in known.items() if name not in NOT_FROM_THE_RUN}
            return MeasureMaps(
                without_environment(PredictSettings, given | own), digest=digest, flips=settings.flips
            )
        known = {name: there[name] for name in there if name in AnnotateSettings.model_fields}
        given = {name: value for name, value in known.items() if name not in NOT_FROM_THE_RUN}
        least = min(PASS_THRESHOLD, float(there["score_threshold"]))
        made = without_environment(AnnotateSettings, given | own | {"score_threshold": least})
        return MeasureInstances(made, digest, float(there["score_threshold"]), settings.flips)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"run: run.json of {shown(settings.run[0])} does not hold the settings of a run of {verb} "
            f"({type(error).__name__}): select with --from-run-only"
        ) from error


def say_cost(settings: SelectSettings, record: dict[str, Any], lacks: Sequence[str]) -> None:
    """Print why there is a second pass, and what it costs by the run's own rate."""
    items = int((record.get("counts") or {}).get("items") or 0)
    rate = (record.get("rates") or {}).get("images_per_s")
    seconds = items / rate * (1 + settings.flips) if rate else None
    time = "in an unknown time (run.json has no rate)" if seconds is None else f"in about {duration(seconds)}"
    at = f" at the run's {rate:,.3g} images/s{', twice for flips' * settings.flips}" if rate else ""
    say(
        f"{shown(settings.run[0])} has no {' and no '.join(lacks)}: its model goes over its {items:,} images "
        f"again, {time}{at}, into {shown(settings.pass_output)}; --from-run-only does without",
        images=items,
        seconds=seconds,
    )


def duration(seconds: float) -> str:
    """Return a time in words: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:,.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:,.1f} h"
