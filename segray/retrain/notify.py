"""Notify commands and webhooks of the user about the end of a retraining."""

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.request import Request, urlopen

from pydantic import SecretStr

from segray.log import say

PATIENCE_S = 30.0


def notify(targets: Sequence[SecretStr], record: Mapping[str, Any]) -> None:
    """Send the record, as JSON, to each target; a failure causes a warning without the target."""
    data = json.dumps(record, ensure_ascii=False, default=str).encode()
    for number, target in enumerate(targets, start=1):
        try:
            _tell(target.get_secret_value(), data)
        except (OSError, ValueError, HTTPException, subprocess.SubprocessError) as error:
            say(f"notify: number {number} failed: {_reason(error)}", "warning")


def _tell(target: str, data: bytes) -> None:
    if target.startswith(("https://", "http://")):
        request = Request(target, data, {"Content-Type": "application/json"}, method="POST")
        with urlopen(request, timeout=PATIENCE_S) as answer:
            answer.read(1)
        return
    subprocess.run(_words(target), input=data, check=True, timeout=PATIENCE_S, stdout=subprocess.DEVNULL)


def _words(command: str) -> list[str]:
    """Split a command into words. Raises ValueError for an empty or invalid one."""
    words = shlex.split(command)
    if not words:
        raise ValueError("no command")
    return words


def _reason(error: Exception) -> str:
    """Describe an error without the target, which may be a secret."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"it ended with exit code {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took longer than {PATIENCE_S:g} s"
    status = getattr(error, "code", None)
    return f"HTTP {status}" if status else type(error).__name__
