"""An S3 of any number of keys that exist by formula only: listings cost it nothing, every key is one picture.

python -m tests.many_keys NUMBER PICTURE      prints its address, then serves until it is killed
"""

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pydantic import SecretStr

from segray.storage import S3Settings, StorageSettings

BUCKET = "many"
_PAGE = 1000
_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
)


def key(index: int) -> str:
    """The name of one object; they sort as they count."""
    return f"photos/{index // 1000:05d}/{index:09d}.png"


@contextmanager
def many_keys(number: int, picture: Path, seconds: float = 0.0) -> Iterator[StorageSettings]:
    """The server in a process of its own, so that what it costs is not on the tested side."""
    command = [sys.executable, "-m", "tests.many_keys", str(number), str(picture), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            yield StorageSettings(
                s3=S3Settings(endpoint_url=url, key=SecretStr("key"), secret=SecretStr("secret"))
            )
        finally:
            server.kill()


class _Answers(BaseHTTPRequestHandler):
    """ListObjectsV2 with a delimiter or without, HEAD and GET; the number of keys is the class's."""

    protocol_version = "HTTP/1.1"
    number = 0
    picture = b""
    etag = ""
    seconds = 0.0

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if "list-type" in query:
            time.sleep(self.seconds if "continuation-token" in query else 0)
            self._send(self._page(query).encode(), "application/xml")
        else:
            self._send_object(parts.path)

    def do_HEAD(self) -> None:
        self._send_object(urlsplit(self.path).path)

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _page(self, query: dict[str, str]) -> str:
        first = int(query.get("continuation-token", "0"))
        size = min(_PAGE, int(query.get("max-keys", _PAGE)), self.number - first)
        files = "".join(
            f"<Contents><Key>{key(index)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{self.etag}&quot;</ETag><Size>{len(self.picture)}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for index in range(first, first + size)
        )
        more = first + size < self.number
        mark = f"<NextContinuationToken>{first + size}</NextContinuationToken>" if more else ""
        about = f"<Name>{BUCKET}</Name><KeyCount>{size}</KeyCount><MaxKeys>{_PAGE}</MaxKeys>"
        return f"{_HEAD}{about}<IsTruncated>{str(more).lower()}</IsTruncated>{mark}{files}</ListBucketResult>"

    def _send_object(self, path: str) -> None:
        if not path.endswith(".png"):
            self._send(b"", "application/xml", status=404)
            return
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        data = self.picture[int(first or 0) : int(last) + 1 if last else None]
        self._send(data, "image/png", status=206 if first else 200)

    def _send(self, data: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{self.etag}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def main(number: str, picture: str, seconds: str = "0") -> None:
    """Serve on a free port of loopback; the address is the first line of output."""
    _Answers.number, _Answers.picture = int(number), Path(picture).read_bytes()
    _Answers.seconds = float(seconds)
    _Answers.etag = hashlib.md5(_Answers.picture).hexdigest()
    with _Server(("127.0.0.1", 0), _Answers) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
