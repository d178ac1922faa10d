"""Addresses as settings hold them: absolute, so that they mean the same in every process and every folder.

Workers of Ray run in folders of their own, and a run is gone on with from wherever its user stands.
"""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr


def absolute_address(address: str) -> str:
    """Return a URL as it is, and a local path, glob or `file://` URL absolute, without `~`, `.` and `..`.

    Symbolic links stay. Raises ValueError for the `~` of a user that there is not.
    """
    scheme, is_url, path = address.partition("://")
    if not is_url:
        return absolute_path(address)
    return f"{scheme}://{absolute_path(path)}" if scheme.lower() == "file" else address


def absolute_path(path: str) -> str:
    """Return a local path as `absolute_address` does."""
    try:
        return os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - Path.absolute keeps `..`
    except RuntimeError as error:
        raise ValueError(f"no home folder is known for {path}") from error


def _absolute_if_file(given: SecretStr) -> SecretStr:
    try:
        path = Path(given.get_secret_value()).expanduser()
        return SecretStr(absolute_path(str(path))) if path.is_file() else given
    except (
        OSError,
        RuntimeError,
        ValueError,
    ):  # the secret itself, which no error may show
        return given


Address = Annotated[str, Field(pattern=r"\S"), AfterValidator(absolute_address)]
"""A file, folder or glob on local disk, or a URL."""
LocalFile = Annotated[Path, AfterValidator(lambda path: Path(absolute_path(str(path))))]
SecretOrFile = Annotated[SecretStr, AfterValidator(_absolute_if_file)]
"""A secret that may be the name of the file that holds it."""
