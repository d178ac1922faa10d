"""Versions and aliases on disk and on real servers: written once, changed by one writer at a time."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segray.errors import JobFailedError, SettingsError
from segray.models.weights import load_weights
from segray.output.names import MODEL, RUN
from segray.registry.address import RegistryAddress
from segray.registry.aliases import Aliases
from segray.registry.registry import Registry, pinned, read_model
from segray.registry.verify_and_gc import disposable, faults
from segray.storage import StorageSettings
from tests.faults import flaky
from tests.registry.models import write_model
from tests.servers import Server


def add(registry: Registry, tmp_path: Path, seed: int) -> str:
    data = write_model(tmp_path / f"{seed}.pt", seed)
    return registry.add("roads", {MODEL: data, "card.md": b"# card"}, {"verb": "train", "seed": seed})


def promote(registry: Registry, version: str, why: str = "") -> Aliases:
    return registry.change("roads", lambda now: now.promoted(version, why, None))


def story(url: str, storage: StorageSettings, tmp_path: Path) -> None:
    registry = Registry(url, storage)
    assert registry.models() == []
    assert registry.versions("roads") == []
    with pytest.raises(SettingsError, match="has no model roads; it has none"):
        registry.resolve("roads", "champion")
    first, second = add(registry, tmp_path, 1), add(registry, tmp_path, 2)
    assert first == hashlib.sha256((tmp_path / "1.pt").read_bytes()).hexdigest()[:12]
    assert add(registry, tmp_path, 1) == first
    assert {version.digest for version in registry.versions("roads")} == {first, second}
    with pytest.raises(SettingsError, match="roads has no champion"):
        registry.resolve("roads", "champion")
    promote(registry, first, "the first")
    now = promote(registry, second)
    assert (now.champion, now.previous, now.generation) == (second, first, 2)
    back = registry.change("roads", lambda aliases: aliases.rolled_back("worse", None))
    assert (back.champion, back.previous) == (first, second)
    assert registry.aliases("roads") == back
    lines = [(event.what, event.before, event.after, event.why) for event in back.history]
    assert lines == [
        ("promote", None, first, "the first"), ("promote", first, second, ""),
        ("rollback", second, first, "worse"),
    ]  # fmt: skip
    address = pinned(RegistryAddress(url, "roads", "champion"), storage)
    assert address.which == first
    assert read_model(address, storage) == (tmp_path / "1.pt").read_bytes()
    assert registry.models() == ["roads"]
    assert faults(registry, "roads") == []
    registry.note_run("roads", first, {"verb": "annotate", "output": "s3://b/o", "finished_at": "2026"})
    assert [run["version"] for run in registry.runs("roads")] == [first]
    registry.delete("roads", second)
    assert [version.digest for version in registry.versions("roads")] == [first]
    assert faults(registry, "roads") == [f"roads: previous is {second}, which does not exist"]


def test_the_story_of_a_model_on_disk(tmp_path: Path) -> None:
    story(str(tmp_path / "registry"), StorageSettings(), tmp_path)


def test_the_story_of_a_model_in_a_bucket(server: Server, tmp_path: Path) -> None:
    story(server.url("registry/a b"), server.storage, tmp_path)


def test_a_version_is_never_written_over(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "r"), StorageSettings())
    version = add(registry, tmp_path, 1)
    folder = tmp_path / "r/roads/versions" / version
    (folder / RUN).unlink()  # as if killed before the last word
    assert registry.versions("roads") == []
    assert add(registry, tmp_path, 1) == version
    assert json.loads((folder / RUN).read_text())["registered"]["version"] == version
    (folder / RUN).unlink()
    (folder / "card.md").write_text("another")
    with pytest.raises(JobFailedError, match=r"card.md exists already, with other contents"):
        add(registry, tmp_path, 1)
    assert (folder / "card.md").read_text() == "another"


def test_damage_is_found_and_not_loaded(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "r"), StorageSettings())
    version = add(registry, tmp_path, 1)
    promote(registry, version)
    folder = tmp_path / "r/roads/versions" / version
    data = bytearray((folder / MODEL).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / MODEL).write_bytes(data)
    (folder / "card.md").unlink()
    lines = [f"roads@{version}: {MODEL} was changed", f"roads@{version}: card.md is missing"]
    assert sorted(faults(registry, "roads")) == sorted(lines)
    with pytest.raises(SettingsError, match=r"its model.pt is damaged \(sha256 differs\)"):
        load_weights(f"registry:{tmp_path}/r#roads", StorageSettings(), "semantic")
    (tmp_path / "r/roads/aliases.json").write_text("{")
    assert "damaged" in faults(registry, "roads")[0]
    with pytest.raises(JobFailedError, match="restore its last good version"):
        promote(registry, version)


def test_many_writers_make_one_history(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "r"), StorageSettings())

    def work(caller: int) -> None:
        for number in range(5):
            promote(registry, f"{caller:06x}{number:06x}", f"{caller}.{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    found = registry.aliases("roads")
    assert found.generation == len(found.history) == 40
    assert len({event.why for event in found.history}) == 40
    for before, after in zip(found.history, found.history[1:], strict=False):
        assert after.before == before.after


def test_a_storage_that_fails_doubles_no_event(azure_server: Server, tmp_path: Path) -> None:
    with flaky(azure_server, 0.1, seed=3) as proxy:
        from pydantic import SecretStr

        from segray.storage import AzureSettings
        from tests.servers import azurite_connection

        connection = SecretStr(azurite_connection(proxy.endpoint))
        storage = StorageSettings(azure=AzureSettings(connection_string=connection))
        registry = Registry(azure_server.url("registry-flaky"), storage)

        def work(caller: int) -> None:
            for number in range(4):
                promote(registry, f"{caller:06x}{number:06x}", f"{caller}.{number}")

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(work, range(3)))
        found = registry.aliases("roads")
    assert sorted(event.why for event in found.history) == [f"{a}.{b}" for a in range(3) for b in range(4)]


def test_what_an_alias_means_is_never_disposable(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "r"), StorageSettings())
    versions = [add(registry, tmp_path, seed) for seed in range(5)]
    for place, version in enumerate(versions):  # as if a day lay between them
        path = tmp_path / "r/roads/versions" / version / RUN
        run = json.loads(path.read_text())
        run["registered"]["added_at"] = f"2026-01-0{place + 1}T00:00:00Z"
        path.write_text(json.dumps(run))
    promote(registry, versions[0])
    promote(registry, versions[1])
    found = [version.digest for version in disposable(registry, "roads", 1, None)]
    assert found == versions[2:4]
    assert [version.digest for version in disposable(registry, "roads", 0, 1)] == versions[2:]
    assert disposable(registry, "roads", None, 1e6) == []
