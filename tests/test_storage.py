"""Storage against real servers: what is written is what others read, and every failure is told and timed."""

import errno
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from pydantic import SecretStr

from segray.annotate.settings import AnnotateSettings
from segray.atomic import create_atomically, put_atomically
from segray.errors import SettingsError
from segray.retries import error_type, is_transient, retrying
from segray.sources.item import Source
from segray.sources.listing import Listing
from segray.sources.read_step import read_all
from segray.sources.reader import open_source
from segray.sources.remote import list_files
from segray.storage import (
    AzureSettings,
    GcsSettings,
    S3Settings,
    StorageSettings,
    canonical_uri,
    open_filesystem,
    split_protocol,
)
from tests import servers
from tests.faults import Fault, failing, wanting, wrong_key
from tests.servers import BUCKET, Server

DATA = bytes(range(256)) * 500
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens
FEW_SECONDS = 10.0


def versions(server: Server, folder: str) -> dict[str, str]:
    """Address -> version of the objects in a folder, as the listing of a source gives them."""
    filesystem, path = open_filesystem(server.url(folder), server.storage)
    files = list_files(filesystem, server.protocol, path + "/", lambda _: True, server.storage)
    return {file.address: file.version for file in files}


def test_round_trip(server: Server) -> None:
    filesystem, path = open_filesystem(server.url("round/a.bin"), server.storage)
    put_atomically(filesystem, path, DATA)
    assert server.get("round/a.bin") == DATA
    assert filesystem.cat_file(path) == DATA
    assert filesystem.cat_file(path, start=1000, end=1300) == DATA[1000:1300]
    assert filesystem.info(path)["size"] == len(DATA)
    server.put("round/b.bin", b"")
    before = versions(server, "round")
    assert list(before) == [server.url("round/a.bin"), server.url("round/b.bin")]
    put_atomically(filesystem, path, DATA[::-1])
    after = versions(server, "round")
    assert after[server.url("round/a.bin")] != before[server.url("round/a.bin")]
    assert after[server.url("round/b.bin")] == before[server.url("round/b.bin")] != ""
    filesystem.rm_file(path)
    assert server.names("round/") == ["round/b.bin"]


@pytest.mark.parametrize("last", [b"\r", b"\n", b"\r\n", b"--", b"\n\r", b"\0"])
def test_every_last_byte_is_kept(server: Server, last: bytes) -> None:
    filesystem, path = open_filesystem(server.url("last.bin"), server.storage)
    put_atomically(filesystem, path, b"x" + last)
    assert server.get("last.bin") == b"x" + last


@pytest.mark.parametrize(
    "name",
    ["é ü.png", "a b+c.png", "q?x=1.png", "h#1.png", "p%20q.png", "a@b:c.png", "it's [1].png", "日本/語"],
)
def test_odd_names(server: Server, name: str) -> None:
    filesystem, path = open_filesystem(server.url(f"odd/{name}"), server.storage)
    put_atomically(filesystem, path, name.encode())
    assert server.names("odd/") == [f"odd/{name}"]
    assert filesystem.cat_file(path) == name.encode()
    assert list(versions(server, "odd")) == [server.url(f"odd/{name}")]
    filesystem.rm_file(path)
    assert server.names("odd/") == []


def one_winner(url: str, storage: StorageSettings) -> bytes:
    """Eight callers create the same object at once; the bytes of the one that won."""
    filesystem, path = open_filesystem(url, storage)

    def create(caller: int) -> bytes | None:
        try:
            create_atomically(filesystem, path, b"%d" % caller * 1000)
        except FileExistsError:
            return None
        return b"%d" % caller * 1000

    with ThreadPoolExecutor(8) as pool:
        won = [data for data in pool.map(create, range(8)) if data is not None]
    assert len(won) == 1
    return won[0]


def test_create_has_one_winner(server: Server) -> None:
    assert one_winner(server.url("create/lease"), server.storage) == server.get("create/lease")


def test_create_has_one_winner_on_disk(tmp_path: Path) -> None:
    assert one_winner(str(tmp_path / "new/lease"), StorageSettings()) == (tmp_path / "new/lease").read_bytes()


@pytest.mark.parametrize("place", ["nothing/here.png", f"../no-such-bucket/{BUCKET}.png"])
def test_what_is_missing_is_told_as_missing(server: Server, place: str) -> None:
    url = server.url(place).replace(f"{BUCKET}/../", "")
    filesystem, path = open_filesystem(url, server.storage)
    for request in (filesystem.cat_file, filesystem.info):
        with pytest.raises(FileNotFoundError) as caught:
            retrying(partial(request, path), server.storage)
        assert error_type(caught.value) == "missing"
    if "no-such-bucket" in url:
        with pytest.raises(FileNotFoundError):
            retrying(lambda: put_atomically(filesystem, path, b"x"), server.storage)


def test_wrong_credentials_are_told_at_once(server: Server) -> None:
    server.put("secret.bin", DATA)
    with wrong_key(server) as storage:
        filesystem, path = open_filesystem(server.url("secret.bin"), storage)
        requests: list[Callable[[], Any]] = [
            lambda: filesystem.cat_file(path),
            lambda: filesystem.ls(BUCKET),
            lambda: filesystem.info(path),
            lambda: put_atomically(filesystem, path, b"x"),
        ]
        started = time.monotonic()
        for request in requests:
            with pytest.raises(PermissionError):
                retrying(request, storage)
        assert time.monotonic() - started < FEW_SECONDS
    assert server.get("secret.bin") == DATA


def test_no_server_is_told_in_seconds(server: Server) -> None:
    storage = server.storage_at(NOWHERE).model_copy(update={"attempts": 2})
    filesystem, path = open_filesystem(server.url("x"), storage)
    for request in (filesystem.cat_file, filesystem.info, filesystem.ls):
        started = time.monotonic()
        with pytest.raises(OSError, match=r"(?i)connect") as caught:
            retrying(partial(request, path), storage)
        assert time.monotonic() - started < FEW_SECONDS
        assert is_transient(caught.value)
        assert error_type(caught.value) == "storage"


@pytest.mark.parametrize("fault", [503, 500, 502, 429, 408, "reset", "cut"])
def test_what_passes_is_tried_again(server: Server, fault: Fault) -> None:
    server.put("again.bin", DATA)
    with failing(server, fault, times=2) as proxy:
        storage = server.storage_at(proxy.endpoint)
        filesystem, path = open_filesystem(server.url("again.bin"), storage)
        assert retrying(lambda: filesystem.cat_file(path, start=7, end=99_999), storage) == DATA[7:99_999]
        proxy.left = 1
        retrying(lambda: put_atomically(filesystem, path + "2", DATA), storage)
        proxy.left = 1
        assert retrying(lambda: filesystem.info(path), storage)["size"] == len(DATA)
    assert server.get("again.bin2") == DATA


def test_silence_ends_and_is_tried_again(server: Server) -> None:
    server.put("again.bin", DATA)
    with failing(server, "stall", times=1) as proxy:
        storage = server.storage_at(proxy.endpoint).model_copy(update={"timeout_s": 0.5})
        filesystem, path = open_filesystem(server.url("again.bin"), storage)
        assert retrying(lambda: filesystem.cat_file(path, start=0, end=9), storage) == DATA[:9]


@pytest.mark.parametrize("fault", [401, 403])
def test_what_stays_is_not_tried_again(server: Server, fault: Fault) -> None:
    with failing(server, fault) as proxy:
        storage = server.storage_at(proxy.endpoint)
        filesystem, path = open_filesystem(server.url("network/500/timeout.bin"), storage)
        with pytest.raises(PermissionError):
            retrying(lambda: filesystem.cat_file(path, start=0, end=9), storage)
        assert len(proxy.seen) == 1


def test_errors_that_never_pass_end_after_all_attempts(server: Server) -> None:
    with failing(server, 503) as proxy:
        storage = server.storage_at(proxy.endpoint).model_copy(update={"attempts": 3})
        filesystem, path = open_filesystem(server.url("x"), storage)
        with pytest.raises(OSError, match=r"Busy|SlowDown|Backend") as caught:
            retrying(lambda: filesystem.cat_file(path, start=0, end=9), storage)
        assert "\n" not in str(caught.value)
        assert len(proxy.seen) == 3  # ours alone: the libraries' own retries are off


@pytest.mark.parametrize("names", ["env", "native_env"])
def test_environment_reaches_the_server(names: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.put("env.txt", b"here")
    for name, value in getattr(server, names).items():
        monkeypatch.setenv(name, value)
    storage = AnnotateSettings(sources=["x"], output="y").storage
    filesystem, path = open_filesystem(server.url("env.txt"), storage)
    try:
        assert filesystem.cat_file(path) == b"here"
    finally:
        type(filesystem).clear_instance_cache()  # fsspec keeps instances by their arguments alone


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("s3://bucket/a/b.png", "s3://bucket/a/b.png"),
        ("s3a://bucket/a", "s3://bucket/a"),
        ("S3://bucket/Key", "s3://bucket/Key"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("s3://key:sec/ret+/x=@bucket/a@b/c:d.png", "s3://bucket/a@b/c:d.png"),
        (
            "s3://arn:aws:s3:eu-west-1:123:accesspoint/mine/a@b",
            "s3://arn:aws:s3:eu-west-1:123:accesspoint/mine/a@b",
        ),
        ("s3://bucket/a:b@c.png", "s3://bucket/a:b@c.png"),
        ("s3://bucket/a?X-Amz-Credential=AKIA&X-Amz-Signature=0f", "s3://bucket/a"),
        ("s3://bucket/a?AWSAccessKeyId=AKIA&Signature=x&Expires=1", "s3://bucket/a"),
        ("gs://bucket/q?x=1?X-Goog-Signature=0f", "gs://bucket/q?x=1"),
        ("az://container/a?sv=2024-11-04&se=2026&sr=b&sp=r&sig=aB%3D", "az://container/a"),
        ("az://container/a?sp=r&sig=aB%3D#x", "az://container/a"),
        ("az://container/a?sig=aB3deF6hiJ9lmN2pqR5tuV8xyZ1bcD4fgH7jkL0%3D", "az://container/a"),
        ("abfss://container@account.dfs.core.windows.net/a?sv=1&sig=x", "az://container/a"),
        ("az://container/a?sig=1.png", "az://container/a?sig=1.png"),
        ("az://container/q?sv=1&sp=2.png", "az://container/q?sv=1&sp=2.png"),
        ("https://user:wo/rd@host:8443/a@b:c.png?x", "https://host:8443/a@b:c.png"),
        ("https://host:8443/a@b.png", "https://host:8443/a@b.png"),
        ("s3://bucket/a@b/q?x=1#2.png", "s3://bucket/a@b/q?x=1#2.png"),  # a key may hold anything
        ("s3://bucket/é ü+%20.png", "s3://bucket/é ü+%20.png"),
        ("gcs://bucket/a", "gs://bucket/a"),
        ("az://container/a", "az://container/a"),
        ("abfs://container/a", "az://container/a"),
        ("abfss://container@account.dfs.core.windows.net/a/b", "az://container/a/b"),
        ("abfs://container@account.blob.core.windows.net", "az://container"),
        ("abfs://container@account.dfs.core.chinacloudapi.cn/a@b", "az://container/a@b"),
        ("https://user:word@host:8443/a b.png?sig=secret#part", "https://host:8443/a b.png"),
        ("file:///a/b.png", "file:///a/b.png"),
        ("/a/q?x=1#2.png", "file:///a/q?x=1#2.png"),
    ],
)
def test_canonical_uri(url: str, canonical: str) -> None:
    assert canonical_uri(url) == canonical
    assert canonical_uri(canonical) == canonical
    assert split_protocol(canonical)[0] == canonical.partition(":")[0]


@pytest.mark.parametrize(
    ("url", "setting"),
    [
        ("s3://AKIAWHO:hun/ter2@bucket/a", "storage.s3.key"),
        ("s3://AKIAWHO:hunter2@bucket/a", "storage.s3.key"),
        ("s3://bucket/a?X-Amz-Signature=hunter2", "storage.s3.key"),
        ("gs://bucket/a?X-Goog-Credential=x&X-Goog-Signature=hunter2", "storage.gcs.token"),
        ("az://container/a?sv=1&sig=hunter2", "storage.azure.sas_token"),
    ],
)
def test_secrets_in_an_address_are_refused_and_not_shown(url: str, setting: str) -> None:
    with pytest.raises(SettingsError, match=rf"are not used; set {setting}") as caught:
        open_filesystem(url, StorageSettings())
    assert not re.search("hun|ter2|AKIA", str(caught.value))


def test_a_listed_key_that_looks_signed_is_read_and_keeps_its_name(s3_server: Server) -> None:
    """`wget` names files so."""
    name = "signed/a.png?X-Amz-Credential=x&X-Amz-Signature=0f"
    s3_server.put(name, DATA)
    (address,) = versions(s3_server, "signed")
    assert address == s3_server.url(name)
    source = Source(address, address, "file", "", len(DATA))
    assert read_all([source], s3_server.storage) == [DATA]
    with open_source(source, s3_server.storage) as file:
        assert file.read() == DATA


def test_canonical_uri_of_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert canonical_uri("a/b.png") == f"file://{tmp_path}/a/b.png"
    assert canonical_uri("~/b.png") == "file:///home/somebody/b.png"


def test_azure_address_with_account(azure_server: Server) -> None:
    azure_server.put("account.txt", b"here")
    address = f"abfss://{BUCKET}@{servers.AZURITE_ACCOUNT}.dfs.core.windows.net/account.txt"
    filesystem, path = open_filesystem(address, azure_server.storage)
    assert filesystem.cat_file(path) == b"here"
    with pytest.raises(SettingsError, match="names the storage account other, the settings name devstore"):
        open_filesystem("abfss://c@other.dfs.core.windows.net/x", azure_server.storage)


@pytest.mark.parametrize(
    ("url", "storage", "words"),
    [
        ("nope://bucket/a", StorageSettings(), "unknown protocol nope://"),
        ("az://container/a", StorageSettings(), "set storage.azure.account_name"),
        (
            "az://container/a",
            StorageSettings(azure=AzureSettings(connection_string=SecretStr("AccountName"))),
            "set storage.azure",
        ),
        ("gs://bucket/a", StorageSettings(gcs=GcsSettings(token=SecretStr(__file__))), "gs://bucket/a: "),
    ],
)
def test_settings_that_cannot_work(
    url: str, storage: StorageSettings, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_STORAGE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(SettingsError, match=words):
        open_filesystem(url, storage)


@pytest.mark.parametrize(
    ("number", "passes"),
    [
        (errno.EIO, True),
        (errno.ESTALE, True),
        (errno.ECONNRESET, True),
        (errno.ENOSPC, False),
        (errno.EROFS, False),
        (errno.EACCES, False),
        (errno.ENOENT, False),
    ],
)
def test_local_errors_that_pass(number: int, passes: bool) -> None:
    assert is_transient(OSError(number, os.strerror(number))) is passes


def test_our_own_mistakes_stay_what_they_are() -> None:
    calls = []

    def mistake() -> None:
        calls.append(1)
        raise KeyError("timeout_s")

    with pytest.raises(KeyError):
        retrying(mistake, StorageSettings())
    assert len(calls) == 1


def test_a_profile_of_the_aws_configuration_signs_the_requests(
    s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.put("profile/a.png", DATA)
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = USUAL\naws_secret_access_key = s\n"
        "[labels]\naws_access_key_id = LABELS\naws_secret_access_key = s\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with wanting(s3_server, "authorization", "Credential=LABELS/") as proxy:
        for profile in ("labels", "default"):
            storage = StorageSettings(
                attempts=1, s3=S3Settings(endpoint_url=proxy.endpoint, region="us-east-1", profile=profile)
            )
            filesystem, path = open_filesystem(s3_server.url("profile/a.png"), storage)
            if profile == "labels":
                assert filesystem.cat_file(path) == DATA
            else:
                with pytest.raises(PermissionError):
                    filesystem.cat_file(path)


def test_of_a_versioned_bucket_the_newest_objects_are_listed(s3_server: Server) -> None:
    """Nothing that was deleted; a version that is newer has another identity."""
    storage = s3_server.storage
    assert storage.s3.key is not None
    assert storage.s3.secret is not None
    client = boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=storage.s3.key.get_secret_value(),
        aws_secret_access_key=storage.s3.secret.get_secret_value(),
    )
    client.create_bucket(Bucket="versioned")
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    for name in ("a.png", "gone.png", "b.png"):
        client.put_object(Bucket="versioned", Key=f"in/{name}", Body=b"first")
    before = {source.uri: source.version for source in Listing(["s3://versioned/in"], storage)}
    client.delete_object(Bucket="versioned", Key="in/gone.png")
    client.put_object(Bucket="versioned", Key="in/a.png", Body=b"second")
    sources = list(Listing(["s3://versioned/in"], storage))
    assert [source.uri.rpartition("/")[2] for source in sources] == ["a.png", "b.png"]
    assert read_all(sources, storage) == [b"second", b"first"]
    assert [before[source.uri] == source.version for source in sources] == [False, True]
