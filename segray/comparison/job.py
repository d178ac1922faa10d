"""`segray compare`, step by step: check all, score each model, bring the scores together, measure, draw."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segray.comparison.candidates import Candidate, check_candidates, load_candidates
from segray.comparison.choose_images import ImageChoice
from segray.comparison.report import Compared, notes_of
from segray.comparison.results import Cost, Results
from segray.comparison.settings import CompareSettings
from segray.comparison.write_results import as_json, write_results
from segray.data.instance_files import holds_labels
from segray.errors import ExitCode, NothingToDoError, SettingsError
from segray.evaluate.report import problem_lines
from segray.log import LOG, answer, say
from segray.models.architectures import Task
from segray.output.folder import Output
from segray.output.lease import Lease
from segray.output.names import PLAN, RUN, SCORES
from segray.run import Problems, check_same, exit_code, open_output
from segray.storage import canonical_uri, shown

if TYPE_CHECKING:
    from segray.comparison.instances import InstanceData
    from segray.comparison.semantic import SemanticData
    from segray.data.pairs import Pairs

_IDENTITY = (
    *("data", "split", "root", "classes", "values", "void", "colours", "pixels", "detections"),
    *("score_threshold", "annotate", "device", "precision", "max_pixels"),
)
"""Settings that an output keeps: all of its scores are of the same kind."""
_REPORTED = (
    *("draws", "seed", "rounds", "round_s", "warm_up", "batch_size", "input_size", "threads"),
    *("panels", "random_panels", "columns", "panel_side"),
)
"""Settings with which a finished output is reported anew, from the scores that are there."""

_AGAIN = "  where the cause was temporary: the same command with --retry-rejected tries them again"


@dataclass(frozen=True)
class Prepared:
    """What is known before work begins."""

    settings: CompareSettings
    task: Task
    lease: Lease[Output]
    candidates: Sequence[Candidate]
    data: "SemanticData | InstanceData"

    @property
    def store(self) -> Output:
        """The output."""
        return self.lease.store

    def plan(self) -> dict[str, Any]:
        """Return what an output keeps, as JSON has it."""
        plain = self.settings.model_dump(mode="json", include={*_IDENTITY})
        plain |= {name: shown(plain[name]) for name in ("data", "root") if plain[name]}
        return {"verb": "compare", "task": self.task, **{name: plain[name] for name in _IDENTITY}}

    def identity(self) -> dict[str, Any]:
        """Return what a finished output is of, as JSON has it."""
        models = [[each.name, each.digest] for each in self.candidates]
        reported = self.settings.model_dump(mode="json", include={*_REPORTED})
        return {**self.plan(), "models": models, "data_digest": self.data.digest, **reported}


def compare(settings: CompareSettings) -> ExitCode:
    """Compare models on the same images.

    Raises SettingsError for errors found before work begins (all of them at once), NothingToDoError where no
    image can be compared, JobFailedError for later failures.
    """
    started = time.monotonic()
    prepared = _prepare(settings)
    if settings.dry_run:
        answer([*_about(prepared), "dry run: nothing was compared"])
        return ExitCode.DONE
    with prepared.lease:
        record = _finished(prepared)
        did = "nothing to do, finished before"
        if record is None:
            record = _run(prepared, started)
            did = f"done: {len(prepared.candidates)} models in {time.monotonic() - started:,.1f} s"
    counts = record["counts"]
    again = [_AGAIN] if counts["rejected"] else []
    LOG.conclude([did, *record["summary"], *again, f"output: {canonical_uri(settings.output)}"])
    LOG.outcome = {"counts": counts}
    return exit_code(counts["rejected"] / max(1, counts["items"]), settings.max_rejects)


def _prepare(settings: CompareSettings) -> Prepared:
    """Check output, models and data; raise all problems at once."""
    problems = Problems()
    lease = problems.attempt(lambda: _opened(settings))
    task: Task = "instance" if holds_labels(settings.data, settings.storage) else "semantic"
    check_candidates(settings, task, problems)
    pairs = problems.attempt(lambda: _listed(settings, task))
    candidates = [] if problems else load_candidates(settings, task, problems)
    data = None if problems else problems.attempt(lambda: _find_data(settings, candidates, pairs))
    if problems or lease is None or data is None:
        raise problems.error()
    prepared = Prepared(settings, task, lease, candidates, data)
    _check_identity(prepared)
    return prepared


def _opened(settings: CompareSettings) -> Lease[Output]:
    """Return the lease of the output. Raises SettingsError where it holds another job's scores."""
    lease = open_output(Output(settings.output, settings.storage))
    if lease.store.read(PLAN) is None and lease.store.read(SCORES) is not None:
        raise SettingsError(
            f"output: {shown(settings.output)} holds a {SCORES} of another job; choose a new folder"
        )
    return lease


def _listed(settings: CompareSettings, task: Task) -> "Pairs | None":
    """Return the pairs of images and label maps, before torch is loaded; None for instances.

    Raises SettingsError where the data are not there.
    """
    if task == "semantic":
        from segray.data.pairs import list_pairs

        return list_pairs(settings.data, settings.storage, settings.root)
    if settings.data.lower().endswith(".json"):
        from segray.data.coco_listing import coco_file_of

        coco_file_of(settings.data, settings.storage, settings.root)
    return None


def _find_data(
    settings: CompareSettings, candidates: Sequence[Candidate], pairs: "Pairs | None"
) -> "SemanticData | InstanceData":
    if pairs is not None:
        from segray.comparison.semantic import find_semantic

        return find_semantic(settings, candidates, pairs)
    from segray.comparison.instances import find_instance_data

    return find_instance_data(settings, candidates)


def _check_identity(prepared: Prepared) -> None:
    there, here = prepared.store.read_json(PLAN), prepared.plan()
    if isinstance(there, dict):
        check_same(there, here, here, shown(prepared.settings.output), "made")


def _about(prepared: Prepared) -> list[str]:
    lines = [f"{len(prepared.candidates)} models over {prepared.data.number:,} images"]
    for each in prepared.candidates:
        size = "" if each.parameters is None else f", {each.parameters / 1e6:.1f} M parameters"
        lines.append(f"  {each.name}: {each.shown}{size}")
    return [*lines, *prepared.data.notes()]


def _finished(prepared: Prepared) -> dict[str, Any] | None:
    """Return run.json, if the output is finished and of the same models, images and settings.

    It is not where some images are rejected, and those are to be tried again.
    """
    _check_identity(prepared)  # again: another run may have finished meanwhile
    there = prepared.store.read_json(RUN)
    if not isinstance(there, dict) or there.get("identity") != as_json(prepared.identity()):
        return None
    is_open = prepared.settings.retry_rejected and there["counts"]["rejected"]
    return None if is_open else there


def _run(prepared: Prepared, started: float) -> dict[str, Any]:
    """Score, compare, measure and draw; return the contents of run.json."""
    store, settings, lease = prepared.store, prepared.settings, prepared.lease
    store.retract(RUN)
    store.write_json(PLAN, prepared.plan())
    total = len(prepared.candidates)
    for number, candidate in enumerate(prepared.candidates):
        lease.tell = lambda number=number: {"total": total, "done": number}  # type: ignore[misc]
        _score(prepared, candidate, f"{number + 1} of {total}")
    lease.tell = lambda: {"total": total, "done": total}
    choice = ImageChoice(settings.panels, settings.random_panels, settings.seed)
    results = _results(prepared, choice)
    if not results.compared:
        raise NothingToDoError(
            f"none of {prepared.data.number:,} images could be compared", *problem_lines(results.problems)
        )
    costs, conditions = _measured(prepared, results, choice)
    panels = _draw(prepared, results)
    notes = notes_of(
        prepared.task, settings.split, results, settings.draws, conditions, prepared.data.notes()
    )
    compared = Compared(prepared.task, prepared.candidates, results, costs, conditions, notes)
    run = {"identity": prepared.identity(), "seconds": round(time.monotonic() - started, 3)}
    return write_results(settings, store, compared, panels, run)


def _score(prepared: Prepared, candidate: Candidate, which: str) -> None:
    """Run a model over the images that it has not scored yet."""
    say(f"{candidate.name} ({which})")
    if not prepared.data.score(candidate, prepared.store):
        say(f"{candidate.name}: its scores are there")


def _results(prepared: Prepared, choice: ImageChoice) -> Results:
    say("bringing the scores of all models together")
    return prepared.data.results(prepared.candidates, choice)


def _measured(prepared: Prepared, results: Results, choice: ImageChoice) -> tuple[list[Cost], dict[str, Any]]:
    """Return the cost of each model, and what it holds for."""
    from segray.comparison.measuring import Measuring, measured

    data, settings = prepared.data, prepared.settings
    found = [pixels for _, pixels in data.pixels(choice.sample())] if settings.rounds else []
    images = tuple(pixels for pixels in found if not isinstance(pixels, Exception))
    size = settings.size or results.size
    measuring = Measuring(settings, prepared.task, data.device, data.precision, images, size)
    if found and not images:
        why = f"none of {len(found)} images could be read again: {'; '.join({*map(str, found)})}"
        return [Cost(measuring.input_of(each), error=why) for each in prepared.candidates], measuring.about()
    return measured(measuring, prepared.candidates, prepared.store), measuring.about()


def _draw(prepared: Prepared, results: Results) -> dict[str, str]:
    """Draw the panels; return image -> name of its panels."""
    from segray.comparison.panels import drawn_of, write_panels

    say(f"drawing {len(results.images)} images")
    drawn = drawn_of(prepared.data, prepared.candidates, results)
    return write_panels(prepared.store, prepared.settings, drawn, prepared.data.classes)
