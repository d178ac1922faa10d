"""Ctrl-C, SIGTERM and SIGHUP end a run with a message, even if libraries convert or swallow them."""

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
"""Seconds within which another interrupt is ignored: it would break the clean-up of the first one."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; `ray job stop`, a preempted pod, systemd; a terminal that is closed."""


class Interrupts:
    """Context manager, one for all (`INTERRUPTS`): entering it again inside itself has no effect.

    Each of `SIGNALS` raises KeyboardInterrupt, but not twice within `IMPATIENCE_S`.
    """

    def __init__(self) -> None:
        self.struck = threading.Event()
        """Set by an interrupt, for code that must know of one that a library swallowed."""
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
        """Ignore further interrupts, which must not break the clean-up."""
        self._last = math.inf

    def forget(self) -> None:
        """Forget the last interrupt: we raised it ourselves, so report the error behind it."""
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
    """Restore the signal handlers that C++ code replaces, from any thread.

    Ray installs abseil's failure handler, which ends the process at SIGTERM. Python can only set handlers in
    the main thread, which has other work; sigaction(2) has no such limit, and its struct is copied as bytes.
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
