"""The same images from and to S3, Azure and Google storage: the same instances as from a folder."""

import io
import tarfile
from pathlib import Path

import pytest

from segray.storage import open_filesystem
from tests.annotate.runs import MODELS, annotate, by_base_name, tables
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
