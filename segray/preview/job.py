"""`segray preview`: what the runs are, their pages, the folder in its place."""

from collections.abc import Callable, Sequence

from segray.errors import ExitCode, JobFailedError, SettingsError
from segray.log import LOG
from segray.preview.folder import PageFolder, check_folder, page_folder
from segray.preview.runs import Run, find_run, named_apart
from segray.preview.settings import PreviewSettings
from segray.run import Problems
from segray.sources.concurrent_requests import describe
from segray.versions import versions

Pages = Callable[[Sequence[Run], PreviewSettings, PageFolder], list[str]]
OF_IMAGES = ("annotate", "import", "predict")


def preview(settings: PreviewSettings) -> ExitCode:
    """Write the pages of one run, or of two compared.

    Raises SettingsError where something is no run or the output cannot be used, NothingToDoError for a run
    without images, JobFailedError for what broke later.
    """
    problems = Problems()
    path = problems.attempt(lambda: check_folder(settings.output, settings.storage))
    runs = [problems.attempt(lambda url=url: find_run(url, settings.storage)) for url in settings.run]  # type: ignore[misc]
    if problems:
        raise problems.error()
    assert path is not None
    found = named_apart([run for run in runs if run is not None])
    record = {"runs": [run.shown for run in found], "versions": versions()}
    try:
        with page_folder(path, record) as folder:
            lines = _pages(found, settings, folder)
    except OSError as error:
        raise JobFailedError(f"cannot write {path}: {describe(error)}; run the command again") from error
    LOG.conclude([*lines, f"open {path / 'index.html'}"])
    LOG.outcome = {"output": str(path)}
    return ExitCode.DONE


def _pages(runs: list[Run], settings: PreviewSettings, folder: PageFolder) -> list[str]:
    """Write the pages; return lines for the summary. Raises SettingsError for runs of different verbs."""
    of_images = [run.verb in OF_IMAGES for run in runs]
    if not all(of_images) and len({run.verb for run in runs}) > 1:
        raise SettingsError(f"run: {' and '.join(run.verb for run in runs)} cannot be compared")
    return _of(runs[0].verb, len(runs))(runs, settings, folder)


def _of(verb: str, runs: int) -> Pages:
    """Return what writes the pages of a verb's output, or of two; imported only now."""
    if verb == "train":
        from segray.preview.training import training_pages

        return training_pages
    if verb == "evaluate":
        from segray.preview.evaluation import evaluation_pages

        return evaluation_pages
    if verb == "compare":
        from segray.preview.comparison import comparison_pages

        return comparison_pages
    if verb == "retrain":
        from segray.preview.retraining import retraining_pages

        return retraining_pages
    if runs == 2:
        from segray.preview.two_runs import two_runs

        return two_runs
    if verb == "predict":
        from segray.preview.labelled import labelled_pages

        return labelled_pages
    from segray.preview.instances import instance_pages

    return instance_pages
