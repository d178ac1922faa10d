"""A proxy on loopback that fails on purpose, in the words of S3, Azure or Google, then lets requests pass."""

import http.client
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pydantic import SecretStr

from segray.storage import AzureSettings, S3Settings, StorageSettings
from tests.servers import LoopbackServer, Server, azurite_connection

Fault = int | Literal["reset", "lost", "cut", "stall"]
"""An HTTP status; no answer but a TCP reset, before or (`lost`) after the server did what was asked; half of
the true answer; two seconds of silence."""
IN_TURN: tuple[Fault, ...] = (500, 503, 429, "reset", "lost", "cut", "stall")

_NAMES = {  # status -> how the servers of S3, Azure and Google name it
    401: ("InvalidAccessKeyId", "InvalidAuthenticationInfo", "Invalid Credentials"),
    403: ("AccessDenied", "AuthorizationFailure", "tester does not have storage.objects.get access"),
    408: ("RequestTimeout", "OperationTimedOut", "Request Timeout"),
    429: ("TooManyRequests", "TooManyRequests", "The rate of requests is too high"),
    500: ("InternalError", "InternalError", "Internal Error"),
    502: ("BadGateway", "BadGateway", "Bad Gateway"),
    501: ("NotImplemented", "NotImplemented", "Not Implemented"),
    503: ("SlowDown", "ServerBusy", "Backend Error"),
}
_Headers = list[tuple[str, str]]


@dataclass
class Proxy:
    """Stands before a server; its first `left` requests fail with `fault`, of the rest a seeded `share`."""

    server: Server
    fault: Fault = 500
    left: int = 0
    only: str = ""  # the method of the requests that fail; empty: any
    ignores: str = ""  # a header, or a parameter of the query, that the server never sees
    share: float = 0.0
    seed: int = 0
    endpoint: str = ""  # http://127.0.0.1:PORT of the proxy
    latency_s: float = 0.0  # added to every request
    seen: list[str] = field(default_factory=list)  # METHOD path of every request
    ranges: list[tuple[int, int]] = field(
        default_factory=list
    )  # first and last byte of those that ask for some
    holds: bool = False  # objects that are read by range: see `_Handler._part`
    wants: tuple[str, str] | None = None  # a header, and what is in it, without which a request is refused
    held: dict[str, tuple[_Headers, bytes]] = field(default_factory=dict, repr=False)
    failed: Counter[Fault] = field(default_factory=Counter)  # how often in which way
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def is_range(asked: list[str]) -> bool:
        """Whether a range has both ends."""
        return len(asked) == 2 and all(asked)

    def next_fault(self, request: str) -> Fault | None:
        """How this request fails, if it does."""
        with self.lock:
            self.seen.append(request)
            if not request.startswith(self.only):
                return None
            self.left -= 1
            draw = random.Random(f"{self.seed} {len(self.seen)}")
            if self.left < 0 and draw.random() >= self.share:
                return None
            fault = self.fault if self.left >= 0 else draw.choice(IN_TURN)
            self.failed[fault] += 1
            return fault


@contextmanager
def failing(server: Server, fault: Fault, times: int = 1_000_000) -> Iterator[Proxy]:
    """A proxy before `server` whose first `times` requests fail with `fault`."""
    with _serving(Proxy(server, fault, times)) as proxy:
        yield proxy


@contextmanager
def flaky(server: Server, share: float, seed: int) -> Iterator[Proxy]:
    """A proxy before `server` that fails a seeded `share` of all requests, in every way."""
    with _serving(Proxy(server, share=share, seed=seed)) as proxy:
        yield proxy


@contextmanager
def distant(server: Server, latency_s: float) -> Iterator[Proxy]:
    """A proxy before `server` that answers later; objects that are read by range must not change."""
    with _serving(Proxy(server, latency_s=latency_s, holds=True)) as proxy:
        yield proxy


@contextmanager
def ignoring(server: Server, condition: str) -> Iterator[Proxy]:
    """A proxy that makes of `server` one that does not know a conditional header or parameter."""
    with _serving(Proxy(server, ignores=condition)) as proxy:
        yield proxy


@contextmanager
def wanting(server: Server, name: str, value: str) -> Iterator[Proxy]:
    """A proxy that refuses requests without `value` in this header."""
    with _serving(Proxy(server, wants=(name, value))) as proxy:
        yield proxy


@contextmanager
def _serving(proxy: Proxy) -> Iterator[Proxy]:
    class Handler(_Handler):
        plan = proxy

    loopback = LoopbackServer(Handler)
    proxy.endpoint = loopback.endpoint
    with loopback.serving():
        yield proxy


class _Handler(BaseHTTPRequestHandler):
    plan: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: requests are in `Proxy.seen`."""

    def _pass_on(self) -> None:
        plan = self.plan
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = plan.next_fault(f"{self.command} {self.path}")
        if plan.wants is not None and plan.wants[1] not in self.headers.get(plan.wants[0], ""):
            fault = 403
        asked = self.headers.get("Range", "").removeprefix("bytes=").split("-")
        if plan.is_range(asked):
            plan.ranges.append((int(asked[0]), int(asked[1])))
        time.sleep(plan.latency_s)
        if fault in ("reset", "lost"):
            if fault == "lost":
                self._ask(body)
            self._reset()
        elif isinstance(fault, int):
            self._answer(fault, *refusal(plan.server.protocol, fault))
        else:
            time.sleep(2 if fault == "stall" else 0)
            part = self._part(int(asked[0]), int(asked[1])) if plan.holds and plan.is_range(asked) else None
            self._answer(*(part or self._ask(body)), cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _ask(self, body: bytes) -> tuple[int, _Headers, bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.plan.server.endpoint).netloc, timeout=30)
        ignored = self.plan.ignores
        headers = {name: value for name, value in self.headers.items() if name.lower() != ignored.lower()}
        path = self.path
        if ignored and "=" not in ignored:  # `name=0` and `name` are two conditions
            path = re.sub(rf"&{ignored}=(?!0(&|$))[^&]*", "", path)
        elif ignored:
            path = path.replace(f"&{ignored}", "")
        connection.request(self.command, path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        dropped = ("transfer-encoding", "connection", "keep-alive")
        return answer.status, [pair for pair in answer.getheaders() if pair[0].lower() not in dropped], data

    def _part(self, first: int, last: int) -> tuple[int, _Headers, bytes] | None:
        """A range of an object that was fetched whole once; None where the server gives no such object.

        moto copies the whole object for each range of it: 0.1 s for 80 MB, so a large one is never read.
        """
        plan = self.plan
        with plan.lock:
            if self.path not in plan.held:
                del self.headers["Range"]
                status, headers, data = self._ask(b"")
                if status != 200:
                    return None
                of_whole = ("content-length", "x-amz-checksum")
                kept = [pair for pair in headers if not pair[0].lower().startswith(of_whole)]
                plan.held[self.path] = (kept, data)
            headers, data = plan.held[self.path]
        part = data[first : last + 1]
        place = ("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        return 206, [*headers, place], part

    def _answer(self, status: int, headers: _Headers, data: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if "content-length" not in (name.lower() for name, _ in headers):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection |= cut

    def _reset(self) -> None:
        """End the connection as a server does that dies: linger 0 makes close() send RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.wfile = BytesIO()
        self.close_connection = True


def refusal(protocol: str, status: int) -> tuple[_Headers, bytes]:
    """Headers and body of an error as the provider sends it: XML (S3, Azure) or JSON (Google)."""
    s3, azure, google = _NAMES[status]
    if protocol == "gs":
        error = {"code": status, "message": google, "errors": [{"message": google, "domain": "global"}]}
        return [("Content-Type", "application/json")], json.dumps({"error": error}).encode()
    name = s3 if protocol == "s3" else azure
    xml = f'<?xml version="1.0"?><Error><Code>{name}</Code><Message>No, {name}.</Message></Error>'
    return [("Content-Type", "application/xml"), ("x-ms-error-code", azure)], xml.encode()


@contextmanager
def wrong_key(server: Server) -> Iterator[StorageSettings]:
    """Settings with a wrong key, for a server that looks at it while the block lasts.

    Azurite always does, moto when told to; the Google emulator never does: a proxy says what Google says.
    """
    if server.protocol == "az":
        connection = azurite_connection(server.endpoint, key="d3Jvbmc=")
        yield StorageSettings(azure=AzureSettings(connection_string=SecretStr(connection)))
    elif server.protocol == "gs":
        with failing(server, 401) as proxy:
            yield server.storage_at(proxy.endpoint)
    else:
        _check_s3_keys(server, after_requests="0")
        try:
            s3 = S3Settings(endpoint_url=server.endpoint, key="who", secret=SecretStr("wrong"))
            yield StorageSettings(s3=s3)
        finally:
            _check_s3_keys(server, after_requests="inf")


def _check_s3_keys(server: Server, after_requests: str) -> None:
    """https://docs.getmoto.org/en/latest/docs/iam.html: moto looks at keys from the n-th request on."""
    address = server.endpoint + "/moto-api/reset-auth"
    switch = Request(address, after_requests.encode(), {"Content-Type": "text/plain"})
    urlopen(switch, timeout=10).close()
