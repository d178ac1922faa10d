"""Real storage servers on loopback: S3 (moto), Azure Blob (Azurite) and Google Cloud Storage (an emulator).

Plain helpers, no pytest. Each function is a context manager that starts one server on a free port, makes one
bucket and gives a `Server`; `put`, `get` and `names` go through the provider's own client library, so that a
test compares what segray did with what another program sees.
"""

import base64
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import SecretStr

from segray.storage import AzureSettings, GcsSettings, S3Settings, StorageSettings

BUCKET = "test-bucket"
AZURITE_VERSION = "3.35.0"  # the newest that runs on every supported node (3.36 asks for 21, 3.37 for 22)
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = base64.b64encode(b"any key will do for a server that lives as long as a test run").decode()


@dataclass(frozen=True)
class Server:
    """A storage server that runs, with one bucket."""

    protocol: str  # as it stands in a URL: s3, az, gs
    endpoint: str  # http://127.0.0.1:PORT
    storage_at: Callable[[str], StorageSettings] = field(repr=False)  # settings for the server behind a URL
    native_env: dict[str, str]  # the provider's own variables, with which a subprocess reaches it too
    put: Callable[[str, bytes], None] = field(repr=False)  # (name, bytes): through the provider's client
    get: Callable[[str], bytes] = field(repr=False)
    list_names: Callable[[str], list[str]] = field(repr=False)

    @property
    def storage(self) -> StorageSettings:
        """Settings that reach the server from this process."""
        return self.storage_at(self.endpoint)

    @property
    def env(self) -> dict[str, str]:
        """Variables with which a `segray` subprocess reaches the server."""
        return env_of(self.storage)

    def url(self, name: str = "") -> str:
        """`s3://test-bucket/name`."""
        return f"{self.protocol}://{BUCKET}/{name}"

    def names(self, prefix: str = "") -> list[str]:
        """Names in the bucket that begin with `prefix`, sorted."""
        return sorted(self.list_names(prefix))


def env_of(storage: StorageSettings) -> dict[str, str]:
    """The settings that are not the defaults as SEGRAY_STORAGE__… variables."""
    found: dict[str, str] = {}
    for part, values in storage.model_dump(exclude_defaults=True).items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            plain = value.get_secret_value() if isinstance(value, SecretStr) else value
            found["__".join(filter(None, ["SEGRAY_STORAGE", part, name])).upper()] = str(plain)
    return found


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[Server]:
    """moto in a thread of this process; it takes any credentials unless a test asks for checks."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        endpoint = "http://{}:{}".format(*moto.get_host_and_port())
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="tester",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)
        yield _s3(endpoint, client)
    finally:
        moto.stop()


def _s3(endpoint: str, client: Any) -> Server:
    def names(prefix: str) -> list[str]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    return Server(
        protocol="s3",
        endpoint=endpoint,
        storage_at=lambda at: StorageSettings(
            s3=S3Settings(endpoint_url=at, key="tester", secret="secret", region="us-east-1")
        ),
        native_env={
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        },
        put=lambda name, data: client.put_object(Bucket=BUCKET, Key=name, Body=data),
        get=lambda name: client.get_object(Bucket=BUCKET, Key=name)["Body"].read(),
        list_names=names,
    )


def azurite_connection(endpoint: str, key: str = AZURITE_KEY) -> str:
    """The connection string for Azurite at `endpoint`."""
    return (
        f"DefaultEndpointsProtocol=http;AccountName={AZURITE_ACCOUNT};AccountKey={key};"
        f"BlobEndpoint={endpoint}/{AZURITE_ACCOUNT};"
    )


def install_azurite() -> Path:
    """The folder of the pinned Azurite, installed with npm into the user's cache when it is not there.

    Raises RuntimeError when node or npm are missing or npm fails. The install is moved into place in one
    step, so two test runs that start together do not see half of it.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    target = caches / "segray-tests" / f"azurite-{AZURITE_VERSION}"
    if target.is_dir():
        return target
    if not (shutil.which("node") and (npm := shutil.which("npm"))):
        raise RuntimeError("the Azure tests start Azurite: install Node.js 20 or newer, with npm")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        options = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(
            [npm, "install", *options, "--prefix", folder, f"azurite@{AZURITE_VERSION}"],
            capture_output=True,
            text=True,
            timeout=600,
        )
        if done.returncode:
            raise RuntimeError(f"npm install azurite@{AZURITE_VERSION} failed: {done.stderr.strip()}")
        with suppress(OSError):  # another test run was faster
            Path(folder).rename(target)
    return target


# Azurite would outlive a pytest that is killed: it ends when the pipe to its standard input closes.
_END_WITH_PARENT = "data:text/javascript,process.stdin.on('end',()=>process.exit()).resume()"


@contextmanager
def azurite_process() -> Iterator[str]:
    """Azurite's blob service in memory on a free port; gives its endpoint."""
    main = install_azurite() / "node_modules/azurite/dist/src/blob/main.js"
    options = ["--blobPort", "0", "--inMemoryPersistence", "--silent", "--skipApiVersionCheck"]
    with subprocess.Popen(
        ["node", "--import", _END_WITH_PARENT, str(main), *options, "--loose", "--disableTelemetry"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"AZURITE_ACCOUNTS": f"{AZURITE_ACCOUNT}:{AZURITE_KEY}"},
    ) as process:
        try:
            yield _listening(process)
        finally:
            process.kill()


def _listening(process: subprocess.Popen[str]) -> str:
    """The address that Azurite prints once it answers."""
    said = []
    for line in process.stdout or ():
        said.append(line)
        if found := re.search(r"listens on (http://\S+)", line):
            return found[1]
    raise RuntimeError(f"Azurite ended with {process.wait()}: {''.join(said)}")


@contextmanager
def azure_server() -> Iterator[Server]:
    """Azurite in a process of its own; it checks the account key as Azure does."""
    from azure.storage.blob import BlobServiceClient

    with azurite_process() as endpoint:
        connection = azurite_connection(endpoint)
        with BlobServiceClient.from_connection_string(connection) as client:
            yield _azure(endpoint, connection, client.create_container(BUCKET))


def _azure(endpoint: str, connection: str, container: Any) -> Server:
    return Server(
        protocol="az",
        endpoint=endpoint,
        storage_at=lambda at: StorageSettings(azure=AzureSettings(connection_string=azurite_connection(at))),
        native_env={"AZURE_STORAGE_CONNECTION_STRING": connection},
        put=lambda name, data: container.upload_blob(name, data, overwrite=True),
        get=lambda name: container.download_blob(name).readall(),
        list_names=lambda prefix: list(container.list_blob_names(name_starts_with=prefix)),
    )


class LoopbackServer(ThreadingHTTPServer):
    """An HTTP server on a free port of 127.0.0.1; a client that goes away early is no news."""

    def __init__(self, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def endpoint(self) -> str:
        """http://127.0.0.1:PORT."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback, as the base class does, of anything but a lost connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer requests in threads of this process until the block ends."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


@contextmanager
def gcs_server() -> Iterator[Server]:
    """gcp-storage-emulator (BSD-3) in threads of this process; it never asks for credentials."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    for name in ("gcp_storage_emulator", "api.object"):  # else a line for each object that is not there
        logging.getLogger(name).setLevel(logging.CRITICAL)
    http = _gcs_http()
    with http.serving():
        anonymous = AnonymousCredentials()  # type: ignore[no-untyped-call]
        client = Client("test", credentials=anonymous, client_options={"api_endpoint": http.endpoint})
        yield _gcs(http.endpoint, client.create_bucket(BUCKET))


def _gcs_http() -> LoopbackServer:
    """The emulator's requests and store in a server with threads (its own takes one connection at a time).

    Added: an upload or a removal with ifGenerationMatch answers 412 when the object is another generation (0:
    when it exists), which the emulator ignores
    (https://cloud.google.com/storage/docs/request-preconditions).
    """
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    one_at_a_time = threading.Lock()

    class Handler(RequestHandler):  # type: ignore[misc]
        rfile: Any

        def do_POST(self) -> None:
            body = _with_crlf(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.rfile = BytesIO(body)
            del self.headers["Content-Length"]
            self.headers["Content-Length"] = str(len(body))
            with one_at_a_time:
                wanted = parse_qs(urlsplit(self.path).query).get("ifGenerationMatch")
                if wanted and wanted[0] != _generation(self.storage.objects, self.path, body):
                    self.send_error(412)
                else:
                    super().do_POST()

        def do_DELETE(self) -> None:
            with one_at_a_time:
                url = urlsplit(self.path)
                wanted = parse_qs(url.query).get("ifGenerationMatch")
                bucket, _, name = url.path.split("/b/")[1].partition("/o/")
                there = self.storage.objects.get(bucket, {}).get(unquote(name))
                if wanted and there is not None and wanted[0] != str(there["generation"]):
                    self.send_error(412)
                else:
                    super().do_DELETE()

    return LoopbackServer(partial(Handler, Storage(use_memory_fs=True)))


def _with_crlf(body: bytes) -> bytes:
    """A multipart body whose last boundary follows CRLF.

    gcsfs ends the data with a bare LF, which Google takes. The emulator's parser then takes a CR at the end
    of the data for half of the line end, and the object loses its last byte.
    """
    end = b"\n--==0==--"  # gcsfs' fixed boundary
    return body.removesuffix(end) + b"\r" + end if body.endswith(end) else body


def _generation(objects: dict[str, dict[str, Any]], path: str, body: bytes) -> str:
    """Of the object that an upload names, in its query or in the JSON its body begins with; 0 without one."""
    url = urlsplit(path)
    named = parse_qs(url.query).get("name")
    text = body.decode("ascii", "replace")
    name = named[0] if named else json.JSONDecoder().raw_decode(text[text.index("{") :])[0]["name"]
    there = objects.get(url.path.split("/b/")[1].split("/")[0], {}).get(name)
    return "0" if there is None else str(there["generation"])


def _gcs(endpoint: str, bucket: Any) -> Server:
    return Server(
        protocol="gs",
        endpoint=endpoint,
        storage_at=lambda at: StorageSettings(gcs=GcsSettings(endpoint_url=at, token="anon")),
        native_env={
            "STORAGE_EMULATOR_HOST": endpoint,
            "NO_GCE_CHECK": "true",
        },  # do not look for Google's VMs
        put=lambda name, data: bucket.blob(name).upload_from_string(data),
        get=lambda name: bucket.blob(name).download_as_bytes(),
        list_names=lambda prefix: [blob.name for blob in bucket.list_blobs(prefix=prefix)],
    )
