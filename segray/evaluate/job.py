"""`segray evaluate`, step by step: match, compare, report."""

import time

from segray.data.instance_files import holds_instances, holds_labels
from segray.data.panoptic_set import is_panoptic
from segray.errors import ExitCode, NothingToDoError, SettingsError
from segray.evaluate.report import Evaluation, metrics_record, problem_lines, summary_lines
from segray.evaluate.settings import EvaluateSettings
from segray.log import LOG, answer
from segray.output.io import check_output, write_metrics
from segray.registry.runs import note_run
from segray.run import exit_code


def evaluate(settings: EvaluateSettings) -> ExitCode:
    """Score what the settings name, and write `metrics.json` to `settings.output`.

    Raises SettingsError for errors found before work begins, NothingToDoError where nothing can be
    compared, JobFailedError for later failures.
    """
    started = time.monotonic()
    check_output(settings.output, settings.storage)
    evaluation = find(settings)
    if settings.dry_run:
        answer([*evaluation.about(), "dry run: nothing was compared"])
        return ExitCode.DONE
    outcome = evaluation.run()
    if not outcome.compared:
        lines = problem_lines(outcome.problems)
        raise NothingToDoError(f"none of {outcome.labels:,} labels could be compared", *lines)
    seconds = time.monotonic() - started
    record = metrics_record(settings, outcome, seconds)
    where = write_metrics(settings.output, record, settings.storage)
    note_run(
        str(record.get("weights", "")), settings.output, {"verb": "evaluate", **record}, settings.storage
    )
    LOG.conclude(summary_lines(outcome, where, seconds))
    LOG.outcome = {"counts": record["counts"]}
    return exit_code(outcome.failed_share, settings.max_rejects)


def find(settings: EvaluateSettings) -> Evaluation:
    """Return what is to be compared, by the settings: a model, panoptic, instances or label maps."""
    if settings.weights is not None and settings.data is not None:
        if settings.footprints is not None or holds_labels(settings.data, settings.storage):
            from segray.evaluate.compare_detector import find_detector

            return find_detector(settings, settings.weights, settings.data)
        from segray.models.weights import check_weights

        check_weights(settings.weights, settings.storage, "semantic")
        _no_groups(settings)
        from segray.evaluate.compare_model import find_model  # torch, which is not needed otherwise

        return find_model(settings, settings.weights, settings.data)
    predictions, labels = settings.predictions or "", settings.labels or ""
    if is_panoptic(predictions, settings.storage):
        from segray.evaluate.compare_panoptic import find_panoptic

        return find_panoptic(settings, predictions, labels)
    if settings.footprints is not None or holds_instances(labels, settings.storage):
        from segray.evaluate.compare_instances import find_instances

        return find_instances(settings, predictions, labels)
    _no_groups(settings)
    from segray.evaluate.compare_maps import find_maps

    return find_maps(settings, predictions, labels)


def _no_groups(settings: EvaluateSettings) -> None:
    if settings.group_by is not None:
        raise SettingsError("group_by: figures of groups are for instances, not for label maps")
