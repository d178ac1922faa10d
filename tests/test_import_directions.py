"""Which way imports point: towards what is more basic, and to Ray from the files that wire a pipeline."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "segray"
JOBS = {
    "annotate", "predict", "train", "evaluate", "bulk", "retrain", "drift", "export", "importer", "submit",
    "schedule", "panoptic", "selection", "preview", "comparison", "cli",
}  # fmt: skip
NEVER = {
    "masks": JOBS | {"data", "output", "models", "registry", "sources", "settings"},
    "scenes": JOBS | {"data", "output", "models", "registry", "sources", "settings"},
    "sources": JOBS | {"data", "output", "models", "registry"},
    "output": JOBS | {"data", "models", "registry", "masks"},
    "data": JOBS | {"models", "registry"},
    "models": JOBS | {"data", "output"},
    "bulk": JOBS - {"bulk"},
    "evaluate": JOBS - {"evaluate", "annotate", "bulk"},
    "comparison": JOBS - {"comparison", "evaluate", "annotate", "bulk", "train"},
    "annotate": JOBS - {"annotate", "bulk"},
    "predict": JOBS - {"predict", "bulk"},
    "train": JOBS - {"train", "evaluate"},
    "panoptic": (JOBS - {"panoptic", "export"}) | {"data", "models", "registry"},
    "selection": JOBS - {"selection", "annotate", "predict", "bulk"},
    "export": (JOBS - {"export"}) | {"data", "models", "registry"},
    "importer": (JOBS - {"importer", "export"}) | {"models", "registry"},
    "preview": (JOBS - {"preview", "drift"}) | {"data", "models", "registry"},
}
"""What the files of a room do not import, not even inside a function."""

RAY = {
    "bulk.pipeline", "bulk.streaming", "bulk.waiting", "cluster", "data.read_tasks", "data.scan_stream",
    "data.window_reader",
    "evaluate.shards_on_ray", "own_ray", "prometheus", "ray_private", "submit.following",
    "submit.ray_cluster", "train.loader", "train.process_group", "train.sampler", "train.trainer",
}  # fmt: skip
"""The files that import Ray; everything else is plain Python that a test can call without a cluster."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name without `segray.`."""
    paths = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")
    }
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


@cache
def imported(path: Path, *, lazily: bool) -> set[str]:
    """Return the dotted names that a file imports; lazily: also inside functions and for type checkers."""
    tree = ast.parse(path.read_text())
    found = set[str]()
    for node in ast.walk(tree) if lazily else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return found


def ours(path: Path, *, lazily: bool) -> set[str]:
    """Return which of `modules` a file imports."""
    return {name.removeprefix("segray.") for name in imported(path, lazily=lazily)} & set(modules())


def test_rooms_import_only_what_is_more_basic() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in sorted(ours(path, lazily=True))
        if other.split(".")[0] in NEVER.get(name.split(".")[0], ())
    ]
    assert wrong == []


def test_there_is_no_circle() -> None:
    graph = {name: ours(path, lazily=False) - {name} for name, path in modules().items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names it


def test_few_files_import_ray() -> None:
    found = {
        name
        for name, path in modules().items()
        if any(each.split(".")[0] == "ray" for each in imported(path, lazily=True))
    }
    assert found == RAY
