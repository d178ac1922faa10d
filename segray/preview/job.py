"""`segray preview`: what the runs are, their pages, the folder in its place."""

from collections.abc import Callable

from segray.errors import ExitCode, JobFailedError, SettingsError
from segray.log import LOG
from segray.preview.folder import PageFolder, check_folder, page_folder
from segray.preview.runs import Run, find_run
from segray.preview.settings import PreviewSettings
from segray.run import Problems
from segray.sources.concurrent_requests import describe
from segray.versions import versions

Pages = Callable[[Run, PreviewSettings, PageFolder], list[str]]


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
    found = [run for run in runs if run is not None]
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
    """Write the pages; return lines for the summary."""
    if len(runs) == 2:
        from segray.preview.two_runs import two_runs

        return two_runs(runs, settings, folder)
    (run,) = runs
    return _of(run.verb)(run, settings, folder)


def _of(verb: str) -> Pages:
    """Return what writes the pages of a verb's output; imported only now."""
    if verb in ("annotate", "import"):
        from segray.preview.instances import instance_pages

        return instance_pages
    if verb == "predict":
        from segray.preview.labelled import labelled_pages

        return labelled_pages
    raise SettingsError(f"run: an output of {verb} is not shown yet")
