"""Manifests: each row is an item, whatever is wrong with it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.errors import SettingsError
from segray.sources.item import Source
from segray.sources.listing import Listing
from segray.storage import StorageSettings
from tests.servers import Server

STORAGE = StorageSettings()


def write(path: Path, uris: list[str | None]) -> Path:
    """A manifest of the kind that the suffix says, with a second column."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"label": range(len(uris)), "uri": uris}), path, row_group_size=3)
    else:
        path.write_text("label,uri\n" + "".join(f'7,"{uri or ""}"\n' for uri in uris), encoding="utf-8-sig")
    return path


def rows(path: Path | str, storage: StorageSettings = STORAGE) -> list[Source]:
    """The Sources of a manifest."""
    return list(Listing([str(path)], storage))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "in").mkdir()
    for name in ("in/a b,c.jpg", "shard.tar"):
        (tmp_path / name).write_text(name)
    uris = ["in/a b,c.jpg", str(tmp_path / "shard.tar"), f"file://{tmp_path}/in/a b,c.jpg", None, "gone.png",
            "in", "ftpx://host/x.jpg"]  # fmt: skip
    manifest = write(tmp_path / f"m{suffix}", uris)
    found = rows(manifest)
    assert [source.error_type for source in found] == [
        None, None, None, "missing", "missing", "unsupported", "unsupported"
    ]  # fmt: skip
    assert found[0] == found[2]
    assert found[0].uri == f"file://{tmp_path}/in/a b,c.jpg"
    assert found[1].kind == "file"
    assert found[3].uri == f"file://{manifest}#row=4"
    assert all(source.error for source in found[3:])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_many_rows_keep_their_order(tmp_path: Path, suffix: str) -> None:
    uris: list[str | None] = [f"{number}.jpg" for number in range(1200)]
    found = rows(write(tmp_path / f"m{suffix}", uris))
    assert [Path(source.address).name for source in found] == uris


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.tsv", b"caption\turi\nwith, comma\ta.jpg\n\tb c.jpg\n"),
        ("m.jsonl", b'{"uri": "a.jpg", "n": 1}\n\n{"n": [], "uri": "b c.jpg"}\r\n'),
        ("m.ndjson", b'{"uri": "a.jpg"}\n{"uri": "b c.jpg"}'),
        ("m.txt", b"\xef\xbb\xbfa.jpg\r\n\n  b c.jpg"),
        ("m.csv", b"caption,uri\n" + b"x" * 200_000 + b",a.jpg\n,b c.jpg\n"),
        ("M.TXT", b"a.jpg\nb c.jpg\n"),
    ],
)
def test_forms(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    found = rows(tmp_path / name)
    assert [row.address for row in found] == [f"{tmp_path}/a.jpg", f"{tmp_path}/b c.jpg"]


def test_a_line_of_json_without_an_address_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"uri": null}\n{"uri": 7}\n{"uri": ""}\n')
    assert [row.error_type for row in rows(tmp_path / "m.jsonl")] == ["missing"] * 3


def test_parts_of_a_manifest(tmp_path: Path, server: Server) -> None:
    """As Spark writes one: a folder with its suffix, and words of its own in it; and as a pattern."""
    folder = tmp_path / "list.parquet"
    folder.mkdir()
    for number in range(3):
        write(folder / f"part-{number}.parquet", [f"{tmp_path}/{number}.jpg"])
    (folder / "_SUCCESS").touch()
    write(folder / "_metadata.parquet", ["/not/meant.jpg"])
    (folder / ".part-0.parquet.crc").touch()
    expected = [f"{tmp_path}/{number}.jpg" for number in range(3)]
    for source in (folder, f"{folder}/", f"{folder}/part-*.parquet", f"{tmp_path}/*.parquet"):
        assert [row.address for row in rows(source)] == expected, source
    prefix = f"parts/{tmp_path.name}"
    for path in folder.iterdir():
        server.put(f"{prefix}/list.parquet/{path.name}", path.read_bytes())
    for source in (
        f"{prefix}/list.parquet",
        f"{prefix}/list.parquet/",
        f"{prefix}/list.parquet/part-*.parquet",
    ):
        assert [row.address for row in rows(server.url(source), server.storage)] == expected, source


def test_addresses_as_other_tools_write_them(tmp_path: Path) -> None:
    """`Path.as_uri`, Spark and Hadoop; a name that exists with its `%` is meant so."""
    paths = [tmp_path / name for name in ("a b.jpg", "c#1.jpg", "ü.jpg", "d%20e.jpg")]
    for path in paths:
        path.write_bytes(b"x")
    uris = [path.as_uri() for path in paths[:3]] + [f"file://{paths[3]}"]
    uris += [f"file:{paths[0]}", f"file://localhost{paths[2]}"]
    found = rows(write(tmp_path / "m.csv", list(uris)))
    assert [row.error for row in found] == [None] * 6
    assert [row.address for row in found] == [*map(str, paths), str(paths[0]), str(paths[2])]
    assert found[0] == found[4]


def test_manifests_that_cannot_be_used(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["a"], "split": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(SettingsError, match="column uri; it has: url, split"):
        rows(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("nonsense")
    with pytest.raises(SettingsError, match=r"b\.parquet: the manifest cannot be read"):
        rows(tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_bytes(b"uri\n\xff\xfe\n")
    with pytest.raises(SettingsError, match=r"c\.csv: the manifest cannot be read"):
        rows(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("")
    with pytest.raises(SettingsError, match="it has: none"):
        rows(tmp_path / "d.csv")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_object_store(server: Server, tmp_path: Path, suffix: str) -> None:
    server.put("manifest/in/a.jpg", b"12345")
    uris = ["in/a.jpg", "../manifest/in/a.jpg", server.url("manifest/in/a.jpg"), "in/b.jpg", "in"]
    local = write(tmp_path / f"m{suffix}", list(uris))
    server.put(f"manifest/m{suffix}", local.read_bytes())
    found = rows(server.url(f"manifest/m{suffix}"), server.storage)
    assert found[0] == found[1] == found[2]
    assert found[0].size == 5
    assert found[:1] == rows(server.url("manifest/in"), server.storage)
    assert [source.error_type for source in found[3:]] == ["missing", "missing"]
    assert found[3].uri == server.url("manifest/in/b.jpg")


def test_credentials_in_an_address_are_never_shown(tmp_path: Path) -> None:
    hasty = StorageSettings(attempts=1, timeout_s=2)
    secret: list[str | None] = [
        "s3://user:hunter2@bucket/a.png",
        "s3://user:x/hunter2@bucket/a.png",
        "az://container/a.png?sv=1&sig=hunter2",
        "https://user:x/hunter2@127.0.0.1:9/a.png",
        "https://user:hunter2\uff0f@host/a.png",
    ]
    found = rows(write(tmp_path / "m.csv", [str(tmp_path / "none.png"), *secret]), hasty)
    assert len(found) == 1 + len(secret)
    for source in found:
        assert source.error_type is not None
        assert "hunter2" not in f"{source.uri} {source.error}"
    with pytest.raises(SettingsError, match=r"s3://bucket/a\.png: keys .* are not used") as told:
        rows(write(tmp_path / "m.csv", secret), hasty)
    assert "hunter2" not in str(told.value)
    (tmp_path / "no.csv").write_text("https://user:hunter2@host/a.png?X-Amz-Signature=abc123,label\n")
    with pytest.raises(SettingsError, match="column uri") as told:
        rows(tmp_path / "no.csv")
    assert "hunter2" not in str(told.value)
    assert "abc123" not in str(told.value)


def test_a_folder_with_a_question_mark(tmp_path: Path) -> None:
    folder = tmp_path / "a?b"
    folder.mkdir()
    (folder / "x.png").write_text("x")
    assert [source.error_type for source in rows(write(folder / "m.csv", ["x.png"]))] == [None]
