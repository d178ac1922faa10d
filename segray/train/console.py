"""Console output while a model is trained: a line per epoch, as it is added to metrics.jsonl."""

import _thread
import json
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from segray.errors import JobFailedError
from segray.log import say
from segray.output.folder import Output
from segray.output.lease import Lease
from segray.output.names import METRICS
from segray.output.progress import clock, pace

_LOOK_EVERY_S = 2.0
_SHOWN = {"train_loss": "loss", "val_loss": "val", "miou": "mIoU", "ap": "AP", "ap50": "AP50"}
_EXPORTED = {
    "epoch": "epoch", "train_loss": "train_loss", "val_loss": "val_loss", "images_per_s": "images_per_second",
}  # fmt: skip


def metrics(store: Output) -> list[dict[str, Any]]:
    """Return the finished epochs, as lines of metrics.jsonl."""
    return [json.loads(line) for line in (store.read(METRICS) or b"").decode().splitlines()]


def figure(value: float | None) -> str:
    """Format a figure of metrics.jsonl; None where there was nothing to score."""
    return "none" if value is None else f"{value:.4f}"


class Watch:
    """Context manager: prints each epoch with the remaining time, and notices when the lease is lost."""

    def __init__(
        self, store: Output, epochs: int, lock: Lease[Output], warning: Callable[[], str | None]
    ) -> None:
        """Store the arguments; warning: returns the workers' message, called at the start and the end."""
        self._warning: Callable[[], str | None] | None = warning
        self._store, self._epochs, self._lock = store, epochs, lock
        self.error: JobFailedError | None = None
        """The error, set before the main thread is interrupted."""
        self._last = dict[str, Any]()
        self._failed = ""
        """Why the last poll failed."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="segray-watch", daemon=True)

    def exported(self) -> dict[str, float | None]:
        """Return the last epoch that was printed, as metrics; any thread may call this."""
        return {name: self._last.get(key) for key, name in _EXPORTED.items()}

    def __enter__(self) -> "Watch":
        self._shown = len(metrics(self._store))
        self._first = self._shown
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if error is None:
            self._try_to_show()

    def _watch(self) -> None:
        while not self._done.wait(_LOOK_EVERY_S):
            try:
                self._lock.check()
            except Exception as error:  # noqa: BLE001 - the lease is no longer watched, so training must end
                self.error = error if isinstance(error, JobFailedError) else JobFailedError(repr(error))
                _thread.interrupt_main()
                return
            self._try_to_show()

    def _try_to_show(self) -> None:
        """Print new epochs; on an error a later poll prints them, and training continues."""
        try:
            self._show()
            self._failed = ""
        except Exception as error:  # noqa: BLE001 - errors of the storage, of Ray, or of a half-written file
            if str(error) != self._failed:
                say(f"the epochs cannot be printed now, training continues: {error}", "warning")
            self._failed = str(error)

    def _show(self) -> None:
        done = metrics(self._store)
        if self._warning is not None and len(done) > self._shown:
            if word := self._warning():
                say(word)
            self._warning = None
        for line in done[self._shown :]:
            self._shown += 1
            self._last = line
            left = self._left(done[self._first : self._shown])
            shown = ", ".join(f"{name} {figure(line[key])}" for key, name in _SHOWN.items() if key in line)
            say(
                f"epoch {line['epoch']} of {self._epochs}: {shown}, {pace(line['images_per_s'])}"
                f"{'' if left is None else f', {clock(left)} left'}",
                **{name: value for name, value in line.items() if name != "time"},
                epochs=self._epochs,
                left_s=left,
            )

    def _left(self, done: list[dict[str, Any]]) -> float | None:
        """Return the seconds left, from this run's epochs after its first, in which the workers started."""
        if len(done) < 2 or "time" not in done[0]:
            return None
        return float(done[-1]["time"] - done[0]["time"]) / (len(done) - 1) * (self._epochs - self._shown)
