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
