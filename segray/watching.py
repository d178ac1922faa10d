"""Figures of a run as Prometheus metrics, through the endpoints that each node of Ray has.

Ray adds `ray_` in front of their names, and `_total` behind a counter's. The driver tells its figures again
and again, for Ray forgets one that is not; model actors count the seconds in which they compute.
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
"""Between two reports of a process to the endpoint of a Ray of our own; Ray's default is 10 s."""

GAUGES = {
    "items_done": "Items that are done, by earlier attempts too.",
    "items_left": "Items that are not done yet, once their number is known.",
    "items_rejected": "Items that this attempt rejected.",
    "instances": "Instances that this attempt found.",
    "tiles": "Tiles that are done, by earlier attempts too.",
    "images_per_second": "Images and tiles a second over the last minute; of training, in the last epoch.",
    "epoch": "Epochs that are done.",
    "train_loss": "Mean loss of the last epoch.",
    "val_loss": "The same over the validation split.",
}
MODEL_SECONDS = "segray_model_seconds"


def labels(verb: str, output: str) -> Labels:
    """The verb, and the run by the last folder of its output."""
    return {"verb": verb, "run": shown(output).partition("?")[0].rstrip("/").rpartition("/")[2]}


@contextmanager
def exported(run: Labels | None, read: Callable[[], Figures]) -> Iterator[None]:
    """Tell Ray what `read` returns, until the end and at it; nothing for None. Ray must run."""
    if run is None:
        yield
        return
    gauges, over = _gauges(run), threading.Event()

    def tell() -> None:
        for name, value in read().items():
            gauges[name].set(value)

    def watch() -> None:
        while not over.wait(EVERY_S):
            tell()

    thread = threading.Thread(target=watch, name="segray-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tell()


def _gauges(run: Labels) -> dict[str, Any]:
    from ray.util.metrics import Gauge

    found = {}
    for name, about in GAUGES.items():
        found[name] = Gauge(f"segray_{name}", about, tuple(run))
        found[name].set_default_tags(dict(run))
    return found


def model_clock(run: Labels | None) -> Callable[[float], None]:
    """To be called with the seconds of each batch, in a worker."""
    if run is None:
        return lambda _: None
    from ray.util.metrics import Counter

    counter = Counter(MODEL_SECONDS, "Seconds in which model actors answered batches.", tuple(run))
    counter.set_default_tags(dict(run))
    return lambda seconds: counter.inc(max(seconds, 1e-9))
