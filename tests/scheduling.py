"""Two processes of pytest for the whole suite, which waits as much as it computes.

Each has its own session fixtures and so its own Ray. The tests of a file share what they made, so they stay
together; so do the files of one line of `LONGEST`. These are handed out first: none is left at the end.
"""

import pytest
from xdist.scheduler import LoadScopeScheduling

WORKERS = 2
"""Two Rays with what runs on them fill two cores, and take up to 6 GB of memory each. Three were slower: each
Ray takes a tenth of a core for itself, and what waits for others looks about meanwhile."""

LONGEST = (
    ("bulk/test_faults",),
    ("train/test_job", "train/test_train_kills", "train/test_train_elastic", "train/test_relative"),
    ("test_own_ray",),
    ("test_readme",),
    ("submit/test_ray_cluster",),
    ("bulk/test_bulk_job", "bulk/test_stores"),
    ("bulk/test_size",),
    ("predict/test_predict_job", "predict/test_agreement"),
    ("scenes/test_scene_job",),
    ("scenes/test_scene_size",),
    ("submit/test_slurm",),
    ("submit/test_docs",),
    ("train/test_instances_job",),
    ("train/test_train_uneven", "data/test_scene_windows"),
    ("bulk/test_errors", "bulk/test_hostile_folder", "bulk/test_vanished", "sources/test_name_filter"),
    ("bulk/test_live_runs",),
    ("bulk/test_fencing", "bulk/test_freezes"),
    ("test_metrics", "test_log"),
    ("submit/test_container",),
    ("retrain/test_story",),
    ("retrain/test_retrain",),
    ("retrain/test_retrain_semantic",),
    ("retrain/test_retrain_kills", "retrain/test_retrain_resumed"),
    ("train/test_start", "data/test_label_listing"),
    ("test_walkthrough",),
    ("models/test_every_row",),
    ("output/test_lease",),
    ("test_later_ray",),
    ("importer/test_import",),
    ("selection/test_second_pass",),
    ("panoptic/test_panoptic",),
    ("comparison/test_compare",),
    ("preview/test_browser", "preview/test_figures", "preview/test_scenes"),
    ("evaluate/test_evaluate_at_size",),
    ("test_api", "export/test_open"),
    ("predict/test_blur", "bulk/test_location"),
)
"""Files of `tests`, longest first; those of a line share an output that takes a job to make, or a Ray."""
_LINES = {f"tests/{name}.py": line for line, names in enumerate(LONGEST) for name in names}


def workers(config: pytest.Config) -> int:
    """How many processes `-n auto` gives: none for a file, a name or `-s`, so that they start at once."""
    chosen = any(config.getoption(name, False) for name in ("keyword", "markexpr", "lf", "collectonly"))
    whole = all((config.invocation_params.dir / each).is_dir() for each in config.args)
    return WORKERS if whole and not chosen and config.getoption("capture") != "no" else 0


def longest_first(items: list[pytest.Item]) -> None:
    """Sort in place; files that are not in `LONGEST` keep their order, at the end."""
    items.sort(key=lambda item: _LINES.get(_file(item.nodeid), len(LONGEST)))


def _file(name: str) -> str:
    return name.partition("::")[0]


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]
    """One line or file after the other, to the process that is free."""

    def _split_scope(self, nodeid: str) -> str:
        file = _file(nodeid)
        return str(_LINES.get(file, file))
