"""The folder of a preview: built next to its place and renamed, so that it is whole or not there."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from segray.errors import HeldError, SettingsError
from segray.output.io import check_output
from segray.storage import StorageSettings, shown, split_protocol

RECORD = "preview.json"
"""Marks a folder as a preview: which runs it shows."""
OWN = {RECORD, "index.html", "data", "pictures", "web"}
"""Everything that a preview holds at its top."""


class PageFolder:
    """The files of a preview while they are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("data", "pictures"):
            (path / name).mkdir()
        shutil.copytree(Path(str(files(__package__) / "web")), path / "web")
        (path / "web/index.html").rename(path / "index.html")

    def put(self, script: str, **values: Any) -> None:
        """Append values to data/SCRIPT.js, which the page loads as a script.

        JSON is ASCII here and `<` is escaped, so that no name ends a script or begins a comment in it.
        """
        path = self.path / "data" / f"{script}.js"
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="ascii") as file:
            for name, value in values.items():
                file.write(f"segray.put({literal(name)}, {literal(value)});\n")

    def picture(self, name: str, data: bytes) -> str:
        """Write pictures/NAME; return its address in the page."""
        (self.path / "pictures" / name).write_bytes(data)
        return f"pictures/{name}"


def literal(value: Any) -> str:
    """Return a value as JSON that may stand in any script; NaN and infinity raise ValueError."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def check_folder(output: str, storage: StorageSettings) -> Path:
    """Return the path of the output, without symbolic links.

    Raises SettingsError where a preview cannot be written there.
    """
    if split_protocol(output)[0] != "file":
        raise SettingsError(f"output: {shown(output)}: a preview is a local folder; copy it there afterwards")
    path = Path(os.path.realpath(output.removeprefix("file://")))  # of a link, where it points
    check_output(str(path), storage)
    there = {each.name for each in path.iterdir()} if path.is_dir() else set[str]()
    if there and RECORD not in there:
        raise SettingsError(f"output: {path} holds something else; choose a new folder")
    if others := sorted(there - OWN):
        raise SettingsError(f"output: {path} holds {others[0]!r} next to a preview; choose a new folder")
    return path


@contextmanager
def page_folder(path: Path, record: dict[str, Any]) -> Iterator[PageFolder]:
    """Give a folder to write into; without an error it then replaces the one at `path`.

    Raises HeldError where another preview is being written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HeldError(f"output: another preview is being written to {path}") from error
        try:
            for each in (part, old):
                shutil.rmtree(each, ignore_errors=True)
            part.mkdir()
            yield PageFolder(part)
            (part / RECORD).write_text(json.dumps(record, indent=2) + "\n")
            if path.exists():
                path.rename(old)
            part.rename(path)
        finally:
            for each in (part, old):
                shutil.rmtree(each, ignore_errors=True)
            Path(lock.name).unlink(missing_ok=True)
