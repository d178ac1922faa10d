"""Ctrl-C, SIGTERM and SIGHUP end a run in words, whatever the libraries in between make of them."""

import ctypes
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

IMPATIENCE_S = 5.0
"""An interrupt so soon after another is ignored: it would break what the first one ends."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; `ray job stop`, a preempted pod, systemd; a terminal that goes away."""


class Interrupts:
    """Context manager, and one for all (`INTERRUPTS`): entered again inside itself, it stays as it is.

    Each of `SIGNALS` is a KeyboardInterrupt, but not twice within `IMPATIENCE_S`.
    """

    def __init__(self) -> None:
        self.struck = threading.Event()
        """A library may swallow what is raised: who works on asks here."""
        self._depth = 0
        self._last = -math.inf
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        self._depth += 1
        if self._depth == 1:
            self.forget()
            is_main = threading.current_thread() is threading.main_thread()
            self._before = {
                number: signal.getsignal(number)
                for number in (SIGNALS if is_main else ())
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN  # nohup
            }
            for number in self._before:
                signal.signal(number, self._interrupt)
        return self

    def _interrupt(self, *_: Any) -> None:
        now = time.monotonic()
        if now - self._last > IMPATIENCE_S:
            self._last = now
            self.struck.set()
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """Another one must not break what ends here."""
        self._last = math.inf

    def forget(self) -> None:
        """There was none, or we raised it ourselves and report the error behind it."""
        self._last = -math.inf
        self.struck.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if error is not None and self.struck.is_set() and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from None


INTERRUPTS = Interrupts()


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put back what C++ code puts in the place of signal handlers, from whatever thread it runs in.

    Ray installs abseil's failure handler, which ends the process at SIGTERM. Python can only set handlers in
    the main thread, which has other work; sigaction(2) has no such limit, and its struct is not looked into.
    """
    libc = ctypes.CDLL(None)
    kept = {number: ctypes.create_string_buffer(512) for number in SIGNALS}
    for number, action in kept.items():
        libc.sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in kept.items():
            libc.sigaction(int(number), action, None)
