"""Prometheus metrics of a run, exported by the metrics endpoint of each Ray node.

Ray adds the prefix `ray_` to their names, and the suffix `_total` to a counter's. The driver sets its gauges
at a fixed interval, because Ray drops those that are not updated; model actors count their compute seconds.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from segray.storage import shown

Labels = Mapping[str, str]
Figures = Mapping[str, float | None]

EVERY_S = 0.5
REPORT_MS = 1000
"""Report interval of a process to the metrics endpoint of a local Ray; Ray's default is 10 s."""

GAUGES = {
    "items_done": "Items done, including those of earlier attempts.",
    "items_left": "Items left, once the total is known.",
    "items_rejected": "Items rejected by this attempt.",
    "instances": "Instances found by this attempt.",
    "tiles": "Tiles done, including those of earlier attempts.",
    "images_per_second": "Images and tiles a second over the last minute; in training, over the last epoch.",
    "epoch": "Epochs done.",
    "train_loss": "Mean training loss of the last epoch.",
    "val_loss": "Mean validation loss of the last epoch.",
}
MODEL_SECONDS = "segray_model_seconds"


def labels(verb: str, output: str) -> Labels:
    """Return the metric labels of a run: its verb, and the last folder name of its output."""
    return {"verb": verb, "run": shown(output).partition("?")[0].rstrip("/").rpartition("/")[2]}


@contextmanager
def exported(run: Labels | None, read: Callable[[], Figures]) -> Iterator[None]:
    """Export what `read` returns every EVERY_S seconds and at the end; do nothing for None. Ray must run."""
    if run is None:
        yield
        return
    gauges, over = _gauges(run), threading.Event()

    def export() -> None:
        for name, value in read().items():
            gauges[name].set(value)

    def watch() -> None:
        while not over.wait(EVERY_S):
            export()

    thread = threading.Thread(target=watch, name="segray-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        export()


def _gauges(run: Labels) -> dict[str, Any]:
    from ray.util.metrics import Gauge

    found = {}
    for name, about in GAUGES.items():
        found[name] = Gauge(f"segray_{name}", about, tuple(run))
        found[name].set_default_tags(dict(run))
    return found


def model_clock(run: Labels | None) -> Callable[[float], None]:
    """Return a function to call, in a worker, with the compute seconds of each batch."""
    if run is None:
        return lambda _: None
    from ray.util.metrics import Counter

    counter = Counter(MODEL_SECONDS, "Compute seconds of model actors.", tuple(run))
    counter.set_default_tags(dict(run))
    return lambda seconds: counter.inc(max(seconds, 1e-9))
