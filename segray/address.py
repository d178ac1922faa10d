"""Addresses as settings hold them: absolute, so that they mean the same in every process and every folder.

Workers of Ray run in folders of their own, and a run is gone on with from wherever its user stands.
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

    Symbolic links stay. Raises ValueError for the `~` of a user that there is not, and for `s3:/bucket`.
    """
    if slip := _ONE_SLASH.match(address):
        raise ValueError(f"{slip[1]}:/ has one slash; write {slip[1]}://")
    address = plain_file_url(address)
    scheme, is_url, path = address.partition("://")
    if not is_url:
        return absolute_path(address)
    return f"{scheme}://{absolute_path(path)}" if scheme.lower() == "file" else address


def plain_file_url(address: str) -> str:
    """`file:/path` (Spark, Hadoop), `file://localhost/path` and escapes (`Path.as_uri`) as `file:///path`.

    A path that exists as it stands is meant so; otherwise its escapes are undone (RFC 8089). Other addresses
    are returned as they are.
    """
    match = _FILE_URL.match(address)
    if match is None:
        return address
    path = address[match.end() :]
    return f"{address[:4]}://{path if os.path.lexists(path) else unquote(path)}"


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
