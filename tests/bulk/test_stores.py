"""The same images from and to S3, Azure and Google storage: the same instances as from a folder."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from segray.sources.read_step import WHOLE_BYTES
from segray.storage import open_filesystem
from tests.bulk.runs import MODELS, TILING, annotate, by_base_name, tables
from tests.faults import wanting
from tests.scenes.made import town, write
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_bucket_gives_what_a_folder_gives_and_takes_the_output(
    server: Server, images: Path, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    files = sorted(images.iterdir())
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as archive:
        for file in files[60:]:
            archive.add(file, f"deep/{file.name}")
    for file in files[:60]:
        server.put(f"job/in/loose/{file.name}", file.read_bytes())
    server.put("job/in/shards/0.tar", shard.getvalue())
    run = (server.url("job/in"), "--output", server.url("job/out"), "--weights", MODELS + "seeded")
    assert annotate(*run) == 0
    filesystem, root = open_filesystem(server.url("job/out"), server.storage)
    assert by_base_name(root, filesystem) == by_base_name(expected)
    uris = {row["uri"] for row in tables(root, filesystem)[0]}
    assert server.url("job/in/shards/0.tar") in uris
    names = set(server.names("job/out/"))
    assert annotate(*run) == 0
    assert set(server.names("job/out/")) == names
    assert not [name for name in names if "staging" in name]


def test_a_bucket_whose_reader_pays(s3_server: Server, images: Path, tmp_path: Path) -> None:
    """Every request agrees to it: of the listing, files, archives, a scene that is read by window."""
    for path in sorted(images.iterdir())[:2]:
        s3_server.put(f"pays/{path.name}", path.read_bytes())
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(next(images.iterdir()), "one.png")
    s3_server.put("pays/x.zip", (tmp_path / "x.zip").read_bytes())
    scene = write(tmp_path / "scene.tif", town(1700, 1700), compress=None)
    assert scene.stat().st_size > WHOLE_BYTES
    s3_server.put("pays/scene.tif", scene.read_bytes())
    with wanting(s3_server, "x-amz-request-payer", "requester") as proxy:
        storage = s3_server.storage_at(proxy.endpoint).s3
        assert storage.key is not None
        assert storage.secret is not None
        run = (
            s3_server.url("pays"), "--output", tmp_path / "out", "--weights", MODELS + "seeded",
            "--storage.s3.endpoint-url", proxy.endpoint, "--storage.s3.key", storage.key.get_secret_value(),
            "--storage.s3.secret", storage.secret.get_secret_value(), *TILING,
        )  # fmt: skip
        assert annotate(*run) == 2
        assert annotate(*run, "--storage.s3.requester-pays") == 0
    assert len(tables(tmp_path / "out")[0]) == 4
