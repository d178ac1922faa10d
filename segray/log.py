"""What segray says: lines for people or, with `--log-format json`, one JSON object a line on stderr."""

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
    """One for all (`LOG`); the command says once what it is and which format is wanted."""

    def __init__(self) -> None:
        self.as_json = False
        self.outcome: Mapping[str, Any] = {}
        """What the last object says beside the exit code."""
        self._verb = ""

    def begin(self, verb: str, arguments: Sequence[str]) -> None:
        """A command starts."""
        self._verb, self.outcome = verb, {}
        self.choose(arguments)

    def choose(self, arguments: Sequence[str], file: Mapping[str, Any] | None = None) -> None:
        """The format by flag, environment and config file: before settings are checked, for their errors."""
        wanted = _flagged(arguments) or os.environ.get(VARIABLE) or (file or {}).get(SETTING)
        self.as_json = wanted == "json"

    def say(self, line: str, level: Level = "info", **figures: Any) -> None:
        """To stderr; `figures` are fields of the JSON object, and in `line` for people."""
        whole = self.line(line, level, **figures) + "\n"  # else another thread's may come before its end
        print(whole, end="", file=sys.stderr, flush=True)

    def line(self, line: str, level: Level = "info", time: str | None = None, **figures: Any) -> str:
        """As it is said. time: to be told in place of the present."""
        if not self.as_json:
            return f"segray: {line}"
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        about = {"time": time or now, "level": level, "verb": self._verb, "message": line.strip()}
        return json.dumps(about | {name: _finite(each) for name, each in figures.items()}, default=str)

    def conclude(self, lines: Sequence[str]) -> None:
        """The summary of a job, to stdout for people."""
        if self.as_json:
            for line in lines:
                self.say(line)
        else:
            answer(lines)

    def end(self, code: int) -> None:
        """The last object, with the exit code, which a person sees in the shell."""
        if self.as_json:
            level: Level = "info" if code == 0 else "error" if code in (1, 2) else "warning"
            self.say(f"ended with exit code {code}", level, exit_code=code, **self.outcome)
            self.as_json = False


LOG = Log()
say = LOG.say


def answer(lines: Sequence[str]) -> None:
    """Print; a reader that has gone away (`| head`) is no error and must not change the exit code."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - Python flushes it when it ends


def _finite(figure: Any) -> Any:
    """JSON has no NaN and no infinity: they are null."""
    return None if isinstance(figure, float) and not math.isfinite(figure) else figure


def _flagged(arguments: Sequence[str]) -> str | None:
    """What the flag says, the last one if there are several."""
    found = None
    for place, flag in enumerate(arguments, start=1):
        name, equals, value = flag.partition("=")
        if name == FLAG:
            found = value if equals else "".join(arguments[place : place + 1])
    return found
