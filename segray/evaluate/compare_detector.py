"""An instance model over data: `annotate` into OUTPUT/predictions, then compare as any output of annotate.

    --data COCO            the images of its split, by a manifest in OUTPUT/_segray
    --data LABELS          those of labels of annotate's shape
    --data SCENES          with --footprints: every scene

The predictions stay: `preview`, `export` and `evaluate --predictions` take them, and the same command again
continues them, or scores them without the model.
"""

import io
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segray.annotate.settings import AnnotateSettings
from segray.annotate.task import Annotate
from segray.atomic import put_atomically
from segray.bulk.job import done
from segray.data.coco_listing import coco_file_of
from segray.data.instance_files import holds_coco
from segray.errors import ExitCode, JobFailedError, NothingToDoError
from segray.evaluate.compare_instances import InstanceEvaluation, find_instances
from segray.evaluate.instance_labels import CocoLabels, TableLabels
from segray.evaluate.report import Outcome
from segray.evaluate.settings import EvaluateSettings
from segray.models.weights import check_weights
from segray.retries import retrying
from segray.settings import without_environment
from segray.sources.manifest import absolute
from segray.storage import open_filesystem

PREDICTIONS = "predictions"
_ITEMS = "_segray/items.parquet"


@dataclass(frozen=True, slots=True)
class DetectorEvaluation:
    """A model, and the images or scenes on which it is scored."""

    settings: EvaluateSettings
    weights: str
    data: str
    labels: str
    """COCO JSON, or the footprints."""
    images: list[str] | None
    """Addresses; None: all scenes of the data."""

    def about(self) -> list[str]:
        """Return lines on what would be scored."""
        what = f"the scenes of {self.data}" if self.images is None else f"{len(self.images):,} images"
        return [f"{self.weights} would annotate {what} into {self._output}"]

    def run(self) -> Outcome:
        """Annotate, then compare. Raises JobFailedError, and SettingsError as `annotate` does."""
        record = self.annotated()
        outcome = self.instances().run()
        more = {"weights": record.get("weights", self.weights), PREDICTIONS: self._output}
        return replace(outcome, more={**outcome.more, **more})

    def annotated(self) -> dict[str, Any]:
        """Annotate what is missing; return the contents of run.json. Raises as `run` does."""
        code, record = done(Annotate(self._annotating()))
        if code != ExitCode.DONE:
            raise JobFailedError(f"annotating ended with exit code {code}; run the command again")
        return record

    def instances(self) -> InstanceEvaluation:
        """Return the comparison of what was annotated with the labels."""
        return find_instances(self.settings, self._output, self.labels)

    @property
    def _output(self) -> str:
        return f"{self.settings.output.rstrip('/')}/{PREDICTIONS}"

    def _annotating(self) -> AnnotateSettings:
        settings = self.settings
        source = self.data if self.images is None else self._manifest(self.images)
        given = {
            **{"score_threshold": settings.score_threshold, **settings.annotate, "sources": [source]},
            **{"output": self._output, "weights": self.weights, "storage": settings.storage},
            **{"ray": settings.ray, "device": settings.device, "precision": settings.precision},
            **{"max_pixels": settings.max_pixels, "max_rejects": 1.0},  # rejects are counted as labels
        }
        made: AnnotateSettings = without_environment(AnnotateSettings, given)
        return made

    def _manifest(self, images: list[str]) -> str:
        sink, settings = io.BytesIO(), self.settings
        pq.write_table(pa.table({"uri": pa.array(images, pa.string())}), sink)
        url = f"{settings.output.rstrip('/')}/{_ITEMS}"
        filesystem, path = open_filesystem(url, settings.storage)
        retrying(lambda: put_atomically(filesystem, path, sink.getvalue()), settings.storage)
        return url


def find_detector(settings: EvaluateSettings, weights: str, data: str) -> DetectorEvaluation:
    """Return what is to be annotated and compared.

    Raises SettingsError for what is missing or cannot be read, NothingToDoError for a split without an image.
    """
    check_weights(weights, settings.storage, "instance")
    if settings.footprints is not None:
        return DetectorEvaluation(settings, weights, data, settings.footprints, None)
    split = settings.split or "test"
    labels, images = _labelled(settings, data, split)
    own = settings.model_copy(update={"split": split, "root": None})
    return DetectorEvaluation(own, weights, data, labels, images)


def _labelled(settings: EvaluateSettings, data: str, split: str) -> tuple[str, list[str]]:
    """Return the address of the labels, and the addresses of the images of the split."""
    if not holds_coco(data, settings.storage):
        table = TableLabels(data, settings.storage, None if split == "all" else split, None)
        images, number, advice = [each.name for each in table.images.values()], len(table.images), "use all"
        labels = data
    else:
        file, base = coco_file_of(data, settings.storage, settings.root)
        every = CocoLabels(file.address, settings.storage, None, None).images.values()
        images = [absolute(each.name, base) for each in every if split in ("all", each.split)]
        number, advice = len(every), "use the splits.json of the training, another split, or all"
        labels = file.address
    if not images:
        raise NothingToDoError(f"data: none of {number:,} images has the split {split}; {advice}")
    return labels, images
