"""Turn a URL into an fsspec filesystem and a path, with one set of settings for every storage.

s3fs, gcsfs and adlfs bring the protocols (extras `s3`, `gcs`, `azure`); credentials come from the settings,
else from the default locations of each provider's tools. Each library retries some errors, some for minutes;
those retries are switched off: `retries.retrying` is the one rule.
"""

import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import MethodType
from typing import Annotated, Any, cast
from urllib.parse import urlsplit, urlunsplit

import fsspec
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from segray.address import SecretOrFile
from segray.errors import SettingsError

EXTRAS = {"s3": "s3", "gs": "gcs", "az": "azure", "http": "s3", "https": "s3"}
"""Protocol -> the extra that installs it (http needs aiohttp, which s3fs brings)."""
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
_AZURE_ACCOUNT = re.compile(r"^([a-z]+://[^/@]+)@([^/@.]+)\.(?:dfs|blob)\.core\.[^/]+")
"""Azure's own URL form: abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/path."""
OBJECT_STORES = ("s3", "gs", "az")
_PORT_OR_ARN = re.compile(r"[^:]*:\d*$|arn:")
"""Colons that do not mark a secret: `host:8443`, `arn:aws:s3:…:accesspoint`."""
_SIGNED_WITH = {"sv", "se", "sp", "sr", "st", "ss", "srt", "expires", "awsaccesskeyid", "googleaccessid"}
_SIGNATURE_LENGTH = 20
"""Base64 characters; a shorter `sig` counts only next to the fields above: a key may contain `?sig=1`."""
_SECRETS_GO = {
    "s3": "storage.s3.key and storage.s3.secret",
    "gs": "storage.gcs.token",
    "az": "storage.azure.sas_token or account_key",
}
_CONNECT_S = 10.0
"""Seconds to wait for a connection; a reachable server accepts one much sooner."""


Endpoint = Annotated[str, Field(pattern=r"^https?://[^@?]+$")]
"""An http(s) URL without user and password, because it is shown and stored."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class S3Settings(_Part):
    """S3 access; empty fields fall back to the AWS environment, profile and instance role."""

    endpoint_url: Endpoint | None = Field(
        None, description="endpoint URL of an S3 server other than AWS (MinIO, Ceph, moto)"
    )
    key: SecretStr | None = Field(None, description="AWS access key id")
    secret: SecretStr | None = Field(None, description="AWS secret access key")
    token: SecretStr | None = Field(None, description="AWS session token")
    region: str | None = Field(None, description="AWS region name")
    profile: str | None = Field(None, description="profile of the AWS configuration files")
    anonymous: bool = Field(False, description="access public buckets without credentials")
    requester_pays: bool = Field(
        False, description="pay for requests (requester-pays buckets: NAIP, Landsat, Sentinel-2 L1C)"
    )


class GcsSettings(_Part):
    """Google Cloud Storage access; empty fields fall back to the application default credentials."""

    endpoint_url: Endpoint | None = Field(None, description="endpoint URL of a server other than Google's")
    project: str | None = Field(None, description="Google Cloud project to bill")
    token: SecretOrFile | None = Field(None, description="path of a credentials JSON, or 'anon', 'cloud'")


class AzureSettings(_Part):
    """Azure Blob Storage access; empty fields fall back to AZURE_STORAGE_… and the default credential."""

    account_name: str | None = Field(None, description="name of the storage account")
    account_key: SecretStr | None = Field(None, description="key of the storage account")
    connection_string: SecretStr | None = Field(
        None, description="connection string, instead of account name and key"
    )
    sas_token: SecretStr | None = Field(None, description="shared access signature (SAS) token")
    anonymous: bool = Field(False, description="access public containers without credentials")


class LeaseSettings(_Part):
    """Timing of the lease that lets one run at a time write to an output."""

    renew_s: float = Field(15.0, gt=0, description="seconds between renewals of a live run's lease")
    expires_s: float = Field(
        90.0, gt=0, description="seconds without renewal before another machine's lease is taken over"
    )
    probe: bool = Field(
        True,
        description="refuse an output whose storage ignores conditional writes; if false, you must make sure "
        "that only one run at a time writes to an output",
    )

    @model_validator(mode="after")
    def _renewed_in_time(self) -> "LeaseSettings":
        if self.expires_s < 3 * self.renew_s:
            raise ValueError(f"expires_s {self.expires_s:g} is below three times renew_s {self.renew_s:g}")
        return self


_FIRST_ATTEMPTS = 3


class StorageSettings(_Part):
    """How URLs are opened: endpoints, credentials, retries, timeouts."""

    s3: S3Settings = S3Settings()
    gcs: GcsSettings = GcsSettings()
    azure: AzureSettings = AzureSettings()
    lease: LeaseSettings = LeaseSettings()
    attempts: int = Field(9, ge=1, description="attempts of a request before it fails; 9 take 45 s")
    timeout_s: float = Field(60.0, gt=0, description="read timeout of a request in seconds")

    @property
    def hasty(self) -> "StorageSettings":
        """Return the settings with few attempts, for the first request: a wrong endpoint fails fast."""
        return self.model_copy(update={"attempts": min(_FIRST_ATTEMPTS, self.attempts)})


def split_protocol(url: str) -> tuple[str, str]:
    """Return protocol and URL: `s3a://b/k` -> ("s3", "s3://b/k"); a local path -> ("file", path).

    Aliases become one protocol.
    Azure's abfss://container@account.dfs.core.windows.net/path becomes az://container/path.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", url)
    if match is None:
        return "file", url
    protocol = _ALIASES.get(match[1].lower(), match[1].lower())
    if protocol == "file":
        return "file", url[len(match[0]) :]
    rest = protocol + url[len(match[1]) :]
    return protocol, _AZURE_ACCOUNT.sub(r"\1", rest) if protocol == "az" else rest


def canonical_uri(url: str) -> str:
    """Return the URL for ids and the ledger: without credentials, query string or fragment.

    Local paths become `file:///absolute/path` (symbolic links are not resolved). Keys of object stores may
    contain `?` and `#`: only a query with a signature is removed.
    """
    protocol, rest = split_protocol(url)
    if protocol == "file":
        return "file://" + _absolute(rest)
    scheme, _, path = rest.partition("://")
    if protocol in OBJECT_STORES:
        return f"{scheme}://{_without_signature(_without_user(path))}"
    parts = urlsplit(f"{scheme}://{_without_user(path)}")
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def _without_user(path: str) -> str:
    """Remove a user: `key:secret@bucket/name` -> `bucket/name`.

    A secret may contain a slash, a name `@` and `:`.
    """
    first = path.partition("/")[0]
    if "@" in first:
        return path[first.rindex("@") + 1 :]
    is_split = ":" in first and "@" in path and not _PORT_OR_ARN.match(first)
    return path[path.index("@") + 1 :] if is_split else path


def _holds_secrets(path: str) -> bool:
    user = path[: len(path) - len(_without_user(path))]
    return ":" in user or _without_signature(path) != path


def _without_signature(path: str) -> str:
    """Remove a query with a signature: `sig` next to other fields of a SAS token, `X-Amz-…`, `X-Goog-…`."""
    for mark in reversed([match.start() for match in re.finditer(r"\?", path)]):
        fields = dict(part.partition("=")[::2] for part in path[mark + 1 :].lower().split("&"))
        signature = fields.get("sig", fields.get("signature", ""))
        if (
            any(name.startswith(("x-amz-", "x-goog-")) for name in fields)
            or (signature and not _SIGNED_WITH.isdisjoint(fields))
            or len(signature) >= _SIGNATURE_LENGTH
        ):
            return path[:mark]
    return path


def _absolute(path: str) -> str:
    """Return an absolute path without `~`, `.` and `..`; symbolic links are kept."""
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - Path.absolute keeps `..`


def shown(url: str) -> str:
    """Return a URL or path as the user gave it, without credentials and query string."""
    if url.startswith(("registry:", "registry+")):
        return _shown_registry(url)
    return canonical_uri(url) if "://" in url else url


def _shown_registry(address: str) -> str:
    """Return `registry://BUCKET/PATH#MODEL@ALIAS` without credentials; the last `#` separates the model."""
    scheme, is_url, path = address.partition("://")
    if not is_url or _AZURE_ACCOUNT.match(f"az://{path}"):
        return address
    bucket, mark, model = path.rpartition("#") if "#" in path else (path, "", "")
    return f"{scheme}://{_without_signature(_without_user(bucket))}{mark}{model}"


def open_filesystem(
    url: str, storage: StorageSettings, *, is_listed: bool = False
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem for `url` and the path inside it; `is_listed`: the name comes from a listing.

    Raises SettingsError for an unknown protocol, a library that is not installed, settings with which it
    cannot be opened, and keys or a signature in the URL, which the libraries do not read from there.
    """
    protocol, rest = split_protocol(url)
    if protocol == "file":
        return fsspec.filesystem("file"), _absolute(rest)
    if protocol in OBJECT_STORES and not is_listed and _holds_secrets(rest.partition("://")[2]):
        raise SettingsError(
            f"{canonical_uri(url)}: keys and signatures in a URL are not used; "
            f"set {_SECRETS_GO[protocol]} (by environment or --config, not visible in process lists)"
        )
    kind = _filesystem_class(protocol, canonical_uri(url))
    try:
        filesystem = kind(**_OPTIONS.get(protocol, _no_options)(storage))
    except Exception as error:  # no request yet: only invalid names, keys and key files fail here
        hint = "; set storage.azure.account_name or storage.azure.connection_string" * (protocol == "az")
        raise SettingsError(f"{canonical_uri(url)}: {error}{hint}") from error
    if protocol == "az":
        _check_account(url, filesystem)
    _leave_retries_to_us(protocol, filesystem)
    return filesystem, rest if protocol in ("http", "https") else filesystem._strip_protocol(rest)


def _filesystem_class(protocol: str, shown: str) -> Any:
    try:
        if protocol != "gs":
            return fsspec.get_filesystem_class(protocol)
        # The package's default asks a gRPC service for the layout of each bucket, to support zonal buckets;
        # where only HTTP gets through (proxies, emulators) each request hangs for a minute.
        from gcsfs.core import GCSFileSystem
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(protocol)
        if extra is None:
            raise SettingsError(f"{shown}: unknown protocol {protocol}://") from error
        raise SettingsError(
            f"{shown}: {protocol}:// needs an extra: uv sync --extra {extra} ({error})"
        ) from error
    return GCSFileSystem


def _check_account(url: str, filesystem: Any) -> None:
    """Raise SettingsError when the URL names another account than the settings: one run, one account."""
    named = _AZURE_ACCOUNT.match(url)
    if named and named[2] != filesystem.service_client.account_name:
        raise SettingsError(
            f"{canonical_uri(url)}: the URL names the storage account {named[2]}, the settings name "
            f"{filesystem.service_client.account_name}; set storage.azure.account_name"
        )


def _leave_retries_to_us(protocol: str, filesystem: Any) -> None:
    """Switch off the libraries' retries, which multiply with ours; gcsfs and adlfs have no setting for it.

    With them an attempt at a wrong endpoint took 5 s (S3), 34 s (Google), 86 s (Azure).
    """
    if protocol == "s3":
        filesystem.retries = 1
        _parse_times_fast(filesystem)
    elif protocol == "gs":
        filesystem._request = MethodType(type(filesystem)._request.__wrapped__, filesystem)
    elif protocol == "az":
        filesystem.service_client._config.retry_policy.total_retries = 0


def _parse_times_fast(filesystem: Any) -> None:
    """Parse timestamps with `fromisoformat`: botocore's dateutil takes 60 % of the time of a listing."""
    from aiobotocore.session import AioSession
    from botocore.utils import parse_timestamp

    def parse(value: str) -> datetime:
        try:
            return datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return cast(datetime, parse_timestamp(value))

    if filesystem.session is None:
        filesystem.session = AioSession(**filesystem.kwargs)  # as s3fs makes it
        filesystem.session.get_component("response_parser_factory").set_parser_defaults(
            timestamp_parser=parse
        )


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()


def _given(**options: Any) -> dict[str, Any]:
    """Return the constructor arguments that are set; listings are never cached, so a run sees changes."""
    given = {name: value for name, value in options.items() if value is not None}
    return given | {"use_listings_cache": False}


def _no_options(storage: StorageSettings) -> dict[str, Any]:
    return _given()


def _s3_options(storage: StorageSettings) -> dict[str, Any]:
    s3 = storage.s3
    return _given(
        endpoint_url=s3.endpoint_url,
        key=_secret(s3.key),
        secret=_secret(s3.secret),
        token=_secret(s3.token),
        profile=s3.profile,
        anon=s3.anonymous,
        requester_pays=s3.requester_pays,
        client_kwargs={"region_name": s3.region} if s3.region else {},
        config_kwargs={
            "connect_timeout": _CONNECT_S,
            "read_timeout": storage.timeout_s,
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": 100,  # as many as the other two libraries use; the default is 10
        },
    )


def _gcs_options(storage: StorageSettings) -> dict[str, Any]:
    from aiohttp import ClientTimeout

    gcs = storage.gcs
    return _given(
        endpoint_url=gcs.endpoint_url,
        project=gcs.project,
        token=_secret(gcs.token),
        requests_timeout=ClientTimeout(sock_connect=_CONNECT_S, sock_read=storage.timeout_s),
    )


def _azure_options(storage: StorageSettings) -> dict[str, Any]:
    azure = storage.azure
    return _given(
        account_name=azure.account_name,
        account_key=_secret(azure.account_key),
        connection_string=_secret(azure.connection_string),
        sas_token=_secret(azure.sas_token),
        anon=True if azure.anonymous else None,
        connection_timeout=_CONNECT_S,
        read_timeout=storage.timeout_s,
    )


_OPTIONS: dict[str, Callable[[StorageSettings], dict[str, Any]]] = {
    "s3": _s3_options,
    "gs": _gcs_options,
    "az": _azure_options,
}
