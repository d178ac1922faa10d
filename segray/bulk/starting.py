"""Ray starts in a thread, while the model is loaded: both take seconds, and Ray's are mostly waiting."""

import os
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

from segray.cluster import Cluster, start_ray
from segray.settings import BulkSettings


class StartingRay:
    """A Ray of our own, or the connection to a cluster; nothing happens before `begin` or `cluster`."""

    def __init__(self, settings: BulkSettings, log: Path) -> None:
        self.in_cluster = _in_cluster(settings)
        self._settings, self._log = settings, log
        self._begun: Future[Cluster] | None = None

    def begin(self) -> None:
        """Start it in a thread, or connect to it."""
        if self._begun is None:
            self._begun = Future()
            threading.Thread(target=self._start, name="segray-start-ray", daemon=True).start()

    def cluster(self) -> Cluster:
        """What there is, once it runs."""
        self.begin()
        assert self._begun is not None
        return self._begun.result()

    def undo(self) -> None:
        """Stop a Ray of our own that was started for nothing."""
        if self._begun is not None and not self.in_cluster:
            self._begun.exception()
            import ray

            ray.shutdown()

    def _start(self) -> None:
        assert self._begun is not None
        try:
            from segray.bulk import pipeline  # noqa: F401 - Ray Data is loaded meanwhile, too

            self._begun.set_result(start_ray(self._settings.ray, self._log))
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._begun.set_exception(error)
        threading.Event().wait()  # Linux kills the processes of Ray with the thread that started them


def _in_cluster(settings: BulkSettings) -> bool:
    """Whether a Ray is named, or runs in this process already; a local one is only started for work."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            return True
    return bool(settings.ray.address or os.environ.get("RAY_ADDRESS"))
