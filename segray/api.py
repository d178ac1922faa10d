"""The verbs as Python functions, each of which returns a `Result`.

    import segray

    result = segray.annotate("photos/", weights="nuclei-small", output="labels/")
    result.counts["instances"], result.exit_code
    result.to_pandas().groupby("category").score.mean()

Options are those of the command line, with underscores: `score_threshold=0.7`; `as_` for `--as`. In place of
options or besides them, `settings` takes an object of the verb's settings class, such as
`annotate.settings.AnnotateSettings`. Arguments win over the environment (`SEGRAY_…`). Nothing heavy is
imported before a verb runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from segray.errors import SettingsError

if TYPE_CHECKING:
    import geopandas
    import pandas
    import pyarrow as pa
    from PIL.Image import Image

    from segray.annotate.settings import AnnotateSettings
    from segray.comparison.settings import CompareSettings
    from segray.drift.settings import DriftSettings
    from segray.evaluate.settings import EvaluateSettings
    from segray.export.settings import ExportSettings
    from segray.importer.settings import ImportSettings
    from segray.panoptic.settings import PanopticSettings
    from segray.predict.settings import PredictSettings
    from segray.preview.settings import PreviewSettings
    from segray.retrain.settings import RetrainSettings
    from segray.selection.settings import SelectSettings
    from segray.settings import CommonSettings
    from segray.storage import StorageSettings
    from segray.train.settings import TrainSettings

Table = Literal["instances", "images", "tiles", "segments", "metrics"]
"""Folders of Parquet files in an output; metrics: metrics.jsonl of a training, a row an epoch."""


@dataclass(frozen=True)
class Result:
    """What a verb left: its exit code, its output, and the tables and counts in it."""

    verb: str
    output: str | None
    """Folder, file or bucket URL; None where the verb was not asked to write one."""
    exit_code: int
    """0; 3 where more was rejected than `max_rejects`, 5 where a promotion was refused; the others raise."""
    record: dict[str, Any] = field(repr=False)
    """Contents of run.json; for evaluate of metrics.json, for drift of drift.json; {} where there is none, as
    of a dry run."""
    storage: StorageSettings = field(repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Return what was counted: images, rejected, instances …"""
        counts: dict[str, int] = self.record.get("counts", {})
        return counts

    def to_arrow(self, table: Table = "instances") -> pa.Table:
        """Return a table of the output, all of its Parquet files in one, in memory.

        Raises SettingsError where the output has no such table.
        """
        from segray.output.tables import read_table

        return read_table(self.output or "", table, self.storage)

    def to_pandas(self, table: Table = "instances") -> pandas.DataFrame:
        """Return a table of the output. Needs pandas."""
        return self.to_arrow(table).to_pandas()

    def to_geopandas(self, table: Table = "instances") -> geopandas.GeoDataFrame:
        """Return a table of the output with its geometry and CRS. Needs geopandas.

        Raises SettingsError where the table has no geometry.
        """
        import geopandas

        found = self.to_arrow(table)
        about = json.loads((found.schema.metadata or {}).get(b"geo", b"null"))
        if about is None:
            raise SettingsError(f"{self.output}: {table} has no geometry; to_pandas() reads it")
        name = about["primary_column"]
        crs = about["columns"][name].get("crs", "OGC:CRS84")
        frame = found.to_pandas()
        frame[name] = geopandas.GeoSeries.from_wkb(frame[name], crs=crs)
        return geopandas.GeoDataFrame(frame, geometry=name)

    def show(self, images: int = 4) -> Image:
        """Return some images with their outlines or classes, or curves, as one picture; notebooks show it.

        Raises SettingsError for a verb that leaves neither; `segray.preview` shows more.
        """
        from segray.preview.drawn import drawn

        return drawn(self.output or "", self.storage, images)


def annotate(*sources: str, settings: AnnotateSettings | None = None, **options: Any) -> Result:
    """Annotate images with instances: `segray annotate`. Raises SegrayError."""
    return _run("annotate", settings, options, sources=sources)


def predict(*sources: str, settings: PredictSettings | None = None, **options: Any) -> Result:
    """Write label maps of images: `segray predict`. Raises SegrayError."""
    return _run("predict", settings, options, sources=sources)


def train(*, settings: TrainSettings | None = None, **options: Any) -> Result:
    """Train a model, `model.pt` in the output: `segray train`. Raises SegrayError."""
    return _run("train", settings, options)


def evaluate(*, settings: EvaluateSettings | None = None, **options: Any) -> Result:
    """Score predictions or a model: `segray evaluate`; the scores are in `record`. Raises SegrayError."""
    return _run("evaluate", settings, options)


def compare(*, settings: CompareSettings | None = None, **options: Any) -> Result:
    """Compare models on the same images: `segray compare`; the table is table.csv. Raises SegrayError."""
    return _run("compare", settings, options)


def panoptic(*, settings: PanopticSettings | None = None, **options: Any) -> Result:
    """Fuse instances and label maps of the same images: `segray panoptic`. Raises SegrayError."""
    return _run("panoptic", settings, options)


def retrain(*, settings: RetrainSettings | None = None, **options: Any) -> Result:
    """Train on new labels, and promote what is better: `segray retrain`. Raises SegrayError."""
    return _run("retrain", settings, options)


def export(*run: str, settings: ExportSettings | None = None, **options: Any) -> Result:
    """Write a run in the form of another program: `segray export`. Raises SegrayError."""
    return _run("export", settings, options, run=run)


def import_(*file: str, settings: ImportSettings | None = None, **options: Any) -> Result:
    """Take labels that a person corrected: `segray import`. Raises SegrayError."""
    return _run("import", settings, options, file=file)


def select(*run: str, settings: SelectSettings | None = None, **options: Any) -> Result:
    """Choose which images a person should look at next: `segray select`. Raises SegrayError."""
    return _run("select", settings, options, run=run)


def preview(*run: str, settings: PreviewSettings | None = None, **options: Any) -> Result:
    """Write pages that show one run or two: `segray preview`. Raises SegrayError."""
    return _run("preview", settings, options, run=run)


def drift(*run: str, settings: DriftSettings | None = None, **options: Any) -> Result:
    """Compare the distributions of two runs: `segray drift`. Raises SegrayError."""
    return _run("drift", settings, options, run=run)


def _run(
    verb: str, settings: CommonSettings | None, options: dict[str, Any], **positional: tuple[str, ...]
) -> Result:
    """Run a verb and return its result."""
    from segray.command_line import settings_from
    from segray.log import LOG
    from segray.output.tables import read_record
    from segray.verbs import VERBS

    given = {name.rstrip("_"): value for name, value in options.items()}
    given |= {name: list(values) for name, values in positional.items() if values}
    chosen: Any = settings_from(verb, given, settings)
    LOG.begin(verb, ())
    code = int(VERBS[verb].function()(chosen))
    output = getattr(chosen, "output", None)
    is_dry = getattr(chosen, "dry_run", False)
    record = {} if is_dry or output is None else read_record(output, verb, chosen.storage)
    return Result(verb, output, code, record, chosen.storage)
