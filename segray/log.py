"""Log of the command: plain lines or, with `--log-format json`, one JSON object a line on stderr."""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

Level = Literal["info", "warning", "error"]

FLAG, VARIABLE, SETTING = "--log-format", "SEGRAY_LOG_FORMAT", "log_format"


class Log:
    """The process-wide log (`LOG`); each command calls `begin` with its verb and arguments."""

    def __init__(self) -> None:
        self.as_json = False
        self.outcome: Mapping[str, Any] = {}
        """Fields of the last JSON object, next to the exit code."""
        self._verb = ""

    def begin(self, verb: str, arguments: Sequence[str]) -> None:
        """Start the log of a command."""
        self._verb, self.outcome = verb, {}
        self.choose(arguments)

    def choose(self, arguments: Sequence[str], file: Mapping[str, Any] | None = None) -> None:
        """Choose the format by flag, environment and config file, before settings are validated."""
        wanted = _flagged(arguments) or os.environ.get(VARIABLE) or (file or {}).get(SETTING)
        self.as_json = wanted == "json"

    def say(self, line: str, level: Level = "info", **figures: Any) -> None:
        """Print a message to stderr; `figures` become fields of the JSON object (plain lines omit them)."""
        whole = self.line(line, level, **figures) + "\n"  # one write, so that threads do not interleave
        print(whole, end="", file=sys.stderr, flush=True)

    def line(self, line: str, level: Level = "info", time: str | None = None, **figures: Any) -> str:
        """Format a message as `say` prints it; time: timestamp to use in place of the present."""
        if not self.as_json:
            return f"segray: {line}"
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        about = {"time": time or now, "level": level, "verb": self._verb, "message": line.strip()}
        return json.dumps(about | {name: _finite(each) for name, each in figures.items()}, default=str)

    def conclude(self, lines: Sequence[str]) -> None:
        """Print the summary of a job: to stdout, or as JSON objects to stderr."""
        if self.as_json:
            for line in lines:
                self.say(line)
        else:
            answer(lines)

    def end(self, code: int) -> None:
        """Print the last JSON object, with the exit code; nothing in the plain format."""
        if self.as_json:
            level: Level = "info" if code == 0 else "error" if code in (1, 2) else "warning"
            self.say(f"ended with exit code {code}", level, exit_code=code, **self.outcome)
            self.as_json = False


LOG = Log()
say = LOG.say


def answer(lines: Sequence[str]) -> None:
    """Print lines to stdout; a closed pipe (`| head`) is ignored and does not change the exit code."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - Python flushes it when it ends


def _finite(figure: Any) -> Any:
    """Return None for NaN and infinity, which JSON does not have."""
    return None if isinstance(figure, float) and not math.isfinite(figure) else figure


def _flagged(arguments: Sequence[str]) -> str | None:
    """Return the value of `--log-format`, the last one if it is repeated; None without it."""
    found = None
    for following, flag in enumerate(arguments, start=1):
        name, equals, value = flag.partition("=")
        if name == FLAG:
            found = value if equals else "".join(arguments[following : following + 1])
    return found
