"""Ctrl-C and SIGTERM end a run in words, whatever the libraries in between make of them."""

import math
import signal
import threading
import time
from types import TracebackType
from typing import Any

IMPATIENCE_S = 5.0
"""An interrupt so soon after another is ignored: it would break what the first one ends."""


class Interrupts:
    """Context manager: SIGTERM (`ray job stop`, a preempted pod) is a KeyboardInterrupt, too."""

    def __enter__(self) -> "Interrupts":
        self._last, self._is_main = -math.inf, threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if self._is_main else ()
        self._before = {number: signal.getsignal(number) for number in numbers}
        self.catch()
        return self

    def catch(self) -> None:
        """Again once Ray has started: its C++ puts a handler of its own in the place of SIGTERM's."""
        for number in self._before:
            signal.signal(number, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        now = time.monotonic()
        if now - self._last > IMPATIENCE_S:
            self._last = now
            raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if error is not None and self._last > 0 and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from None

    def forget(self) -> None:
        """The last one was our own doing: what is raised now is to be told."""
        self._last = -math.inf
