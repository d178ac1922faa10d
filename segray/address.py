"""Paths and URLs as settings hold them: absolute, so that every process resolves them alike.

Ray workers run in working directories of their own, and a run may be continued from another directory.
"""

import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from pydantic import AfterValidator, Field, SecretStr

_FILE_URL = re.compile(r"file:(//localhost|//)?(?=/(?!/))", re.IGNORECASE)
_ONE_SLASH = re.compile(r"(s3a?|gs|gcs|az|abfss?|https?):/(?!/)", re.IGNORECASE)


def absolute_address(address: str) -> str:
    """Return a URL as it is, and a local path, glob or `file://` URL absolute, without `~`, `.` and `..`.

    Symbolic links are kept. Raises ValueError for the `~` of an unknown user, and for `s3:/bucket`.
    """
    if slip := _ONE_SLASH.match(address):
        raise ValueError(f"{slip[1]}:/ has one slash; write {slip[1]}://")
    address = plain_file_url(address)
    scheme, is_url, path = address.partition("://")
    if not is_url:
        return absolute_path(address)
    return f"{scheme}://{absolute_path(path)}" if scheme.lower() == "file" else address


def plain_file_url(address: str) -> str:
    """Return `file:/path` (Spark, Hadoop), `file://localhost/path` and escapes (`Path.as_uri`) as `file:///path`.

    A path that exists literally is kept; otherwise percent-escapes are decoded (RFC 8089). Other addresses
    are returned unchanged.
    """
    match = _FILE_URL.match(address)
    if match is None:
        return address
    path = address[match.end() :]
    return f"{address[:4]}://{path if os.path.lexists(path) else unquote(path)}"


def absolute_path(path: str) -> str:
    """Return a local path absolute, as `absolute_address` does. Raises ValueError for an unknown `~user`."""
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
    ):  # the value is the secret itself, which must not appear in an error
        return given


Address = Annotated[str, Field(pattern=r"\S"), AfterValidator(absolute_address)]
"""A file, folder or glob on local disk, or a URL."""
LocalFile = Annotated[Path, AfterValidator(lambda path: Path(absolute_path(str(path))))]
SecretOrFile = Annotated[SecretStr, AfterValidator(_absolute_if_file)]
"""A secret, or the path of the file that contains it."""
