"""What the user named -> Sources: on local disk and on the three object stores."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from segray.errors import SettingsError
from segray.sources.item import Source
from segray.sources.listing import Listing
from segray.storage import S3Settings, StorageSettings
from tests.faults import Fault, failing
from tests.servers import Server

STORAGE = StorageSettings()


def listed(*sources: str | Path, storage: StorageSettings = STORAGE) -> tuple[list[Source], int]:
    """(Sources, number of ignored names)."""
    listing = Listing([str(source) for source in sources], storage)
    return list(listing), listing.ignored


def names(found: list[Source], root: str | Path) -> list[str]:
    """The uris below `root`."""
    return [source.uri.removeprefix(f"file://{root}/").removeprefix(str(root)) for source in found]


def make(root: Path, *paths: str) -> None:
    """Files that hold their own name."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def test_folder(tmp_path: Path) -> None:
    make(tmp_path, "b.JPG", "a/2.png", "a/1.jpeg", ".hidden/x.tif", "_under/y.webp", "notes.txt", "c.parquet")
    make(tmp_path, "s.tar", "s.tgz", "z.zip", "a/t.tar.gz", "odd [1]*?#.gif", ".jpg")
    found, ignored = listed(tmp_path)
    assert names(found, tmp_path) == [
        ".hidden/x.tif", ".jpg", "_under/y.webp", "a/1.jpeg", "a/2.png", "a/t.tar.gz", "b.JPG",
        "odd [1]*?#.gif", "s.tar", "s.tgz", "z.zip",
    ]  # fmt: skip
    assert [source.kind for source in found if source.kind != "file"] == ["tar", "tar", "tar", "zip"]
    assert ignored == 2
    status = (tmp_path / "b.JPG").stat()
    assert found[6] == Source(
        f"file://{tmp_path}/b.JPG", f"{tmp_path}/b.JPG", "file", f"5-{status.st_mtime_ns}", status.st_size
    )


def test_file_is_an_item_whatever_its_name(tmp_path: Path) -> None:
    make(tmp_path, "picture", "a.tar", "b.zip")
    found, _ = listed(tmp_path / "picture", tmp_path / "a.tar", f"file://{tmp_path}/b.zip")
    assert [source.kind for source in found] == ["file", "tar", "zip"]


def test_relative_and_absolute_are_one_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)
    found, _ = listed("a.png", "./a.png", ".", tmp_path)
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["1.jpg"]),
        ("**/*.jpg", ["1.jpg", "a/2.jpg", "a/b/3.jpg"]),
        ("a/**", ["a/2.jpg", "a/b/3.jpg", "a/b/4.png"]),
        ("a/b/[34].*", ["a/b/3.jpg", "a/b/4.png"]),
        ("a/?.jpg", ["a/2.jpg"]),
        ("*", ["1.jpg", "a/2.jpg", "a/b/3.jpg", "a/b/4.png", "c[1].jpg"]),
        ("c[1].jpg", ["c[1].jpg"]),
        ("*/b", ["a/b/3.jpg", "a/b/4.png"]),
    ],
)
def test_glob(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    make(tmp_path, "1.jpg", "a/2.jpg", "a/b/3.jpg", "a/b/4.png", "c[1].jpg", "a/b/5.txt")
    found, _ = listed(tmp_path / pattern)
    if pattern in ("*.jpg", "**/*.jpg"):
        expected = sorted([*expected, "c[1].jpg"])
    assert names(found, tmp_path) == expected


def test_glob_does_not_walk_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/x/1.jpg", "b/x/2.jpg", "b/y/3.jpg")
    (tmp_path / "b/y").chmod(0)
    seen: list[str] = []
    real = os.scandir

    def scandir(path: str) -> Any:
        seen.append(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert names(listed(tmp_path / "*/x/*.jpg")[0], tmp_path) == ["a/x/1.jpg", "b/x/2.jpg"]
    assert f"{tmp_path}/b/y" not in seen
    (tmp_path / "b/y").chmod(0o700)


def test_links(tmp_path: Path) -> None:
    make(tmp_path, "real/a.jpg")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "second").symlink_to(tmp_path / "real")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    found, ignored = listed(tmp_path)
    assert names(found, tmp_path) == ["circle.png", "gone.jpg", "real/a.jpg", "second/a.jpg"]
    assert [source.error_type for source in found] == ["storage", "missing", None, None]
    assert ignored == 1


def test_special_files_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe.tar")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        found, _ = listed(tmp_path)
    assert [(source.error_type, source.error) for source in found] == [
        ("unsupported", "a named pipe, not a file"),
        ("unsupported", "a named pipe, not a file"),
        ("unsupported", "a socket, not a file"),
    ]


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_text("x")
    (found,), _ = listed(tmp_path)
    assert found.uri == f"file://{tmp_path}/caf\\xe9.jpg"
    assert found.error_type == "unsupported"


@pytest.mark.parametrize("source", ["nothing", "nothing/*.jpg", "s3x://bucket/x"])
def test_what_is_not_there(tmp_path: Path, source: str) -> None:
    url = source if "://" in source else f"{tmp_path}/{source}"
    with pytest.raises(SettingsError, match=r"nothing|s3x"):
        listed(url)


def test_empty_folder(tmp_path: Path) -> None:
    assert listed(tmp_path) == ([], 0)


def fill(server: Server, prefix: str) -> None:
    """A few objects below `prefix`."""
    for name in ("a/1.jpg", "a/.2.png", "_b/3 [x]*.tif", "_b/s.tar", "notes.txt", "folder/", "a-b.jpg"):
        server.put(f"{prefix}/{name}", name.encode())


def test_object_store(server: Server) -> None:
    fill(server, "list")
    found, ignored = listed(server.url("list"), storage=server.storage)
    below = names(found, server.url("list/"))
    assert below == sorted(["a/1.jpg", "a/.2.png", "_b/3 [x]*.tif", "_b/s.tar", "a-b.jpg"])
    assert ignored == 1
    assert len({source.version for source in found}) == 5
    assert not any('"' in source.version for source in found)
    by_name = dict(zip(below, found, strict=True))
    assert by_name["_b/s.tar"].kind == "tar"
    assert by_name["a/1.jpg"].size == 7
    named, _ = listed(server.url("list/a/1.jpg"), server.url("list/_b/3 [x]*.tif"), storage=server.storage)
    assert named == [
        by_name["a/1.jpg"],
        by_name["_b/3 [x]*.tif"],
    ]  # versions of HEAD and of the listing agree


def test_object_store_glob(server: Server) -> None:
    fill(server, "glob")
    found, _ = listed(server.url("glob/**/*.jpg"), storage=server.storage)
    assert names(found, server.url("glob/")) == ["a-b.jpg", "a/1.jpg"]
    found, _ = listed(server.url("glob/a*"), storage=server.storage)
    assert names(found, server.url("glob/")) == ["a-b.jpg", "a/.2.png", "a/1.jpg"]


def test_pages(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segray.sources.remote._PAGE", 3)
    for number in range(8):
        server.put(f"pages/{number}.jpg", b"x")
    found, _ = listed(server.url("pages/"), storage=server.storage)
    assert names(found, server.url("pages/")) == [f"{number}.jpg" for number in range(8)]


def test_a_slash_at_the_end_means_the_names_below(s3_server: Server) -> None:
    """Also where an object has the folder's own name, and where a name is empty."""
    below = ("a.jpg", "/b.jpg", "sub.jpg/h.jpg")
    for key in ("photos", *(f"photos/{name}" for name in below), "photos*/f.jpg", "photoshop.jpg"):
        s3_server.put(f"slash/{key}", b"x")
    for source, expected in {
        "photos/": ["/b.jpg", "a.jpg", "sub.jpg/h.jpg"],
        "photos//": ["b.jpg"],
        "photos*/": ["f.jpg"],
        "photos/sub.jpg/": ["h.jpg"],
    }.items():
        found, ignored = listed(s3_server.url(f"slash/{source}"), storage=s3_server.storage)
        assert (names(found, s3_server.url(f"slash/{source}")), ignored) == (expected, 0), source
    found, _ = listed(s3_server.url("slash/photos"), storage=s3_server.storage)
    assert names(found, s3_server.url("slash/")) == ["photos"]
    with pytest.raises(SettingsError, match="no such file, folder or bucket"):
        listed(s3_server.url("slash/photos/none/"), storage=s3_server.storage)


@pytest.mark.parametrize(
    "path", ["test-bucket/nothing", "no-such-bucket", "no-such-bucket/a", "no-such-bucket/*"]
)
def test_object_that_is_not_there(server: Server, path: str) -> None:
    with pytest.raises(SettingsError, match=f"^{server.protocol}://{path.rstrip('*')}"):
        listed(f"{server.protocol}://{path}", storage=server.storage)


@pytest.mark.parametrize("fault", [503, "reset"])
def test_faults_that_pass(server: Server, fault: Fault) -> None:
    server.put("patient/a.jpg", b"a")
    with failing(server, fault, times=2) as proxy:
        found, _ = listed(server.url("patient"), storage=server.storage_at(proxy.endpoint))
    assert names(found, server.url("patient/")) == ["a.jpg"]


def test_access_denied(server: Server) -> None:
    with failing(server, 403) as proxy, pytest.raises(SettingsError) as caught:
        listed(server.url("x"), storage=server.storage_at(proxy.endpoint))
    assert str(caught.value).startswith(server.url("x: "))
    assert len(proxy.seen) <= 3
    assert "RequestId" not in str(caught.value)


def test_wrong_endpoint_is_told_in_seconds() -> None:
    storage = StorageSettings(s3=S3Settings(endpoint_url="http://127.0.0.1:1", key="a", secret="b"))
    with pytest.raises(SettingsError, match=r"s3://bucket/x: .*127\.0\.0\.1"):
        listed("s3://bucket/x", storage=storage)


def test_brackets_in_a_folder_that_exists_are_no_pattern(tmp_path: Path) -> None:
    for name in ("photos [2020]/a.png", "photos [2020]/b.jpg", "photos 2/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def names(pattern: str) -> list[str]:
        return sorted(Path(found.address).name for found in Listing([f"{tmp_path}/{pattern}"], STORAGE))

    assert names("photos [2020]/*.png") == ["a.png"]
    assert names("photos [2]/*") == ["c.png"]
    assert names("photos*/*.png") == ["a.png", "c.png"]
