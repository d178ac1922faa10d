"""Without a network the hub is not waited for; its cache, its mirror and proxies work."""

import logging
import socket
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from segray.errors import SettingsError
from segray.models.hub import fetching, why_unreachable
from segray.models.sam_files import check_sam
from segray.models.semantic import build_semantic
from segray.storage import StorageSettings

DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "hf_hub_offline"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_ENDPOINT", DEAD)
    monkeypatch.setattr(constants, "ENDPOINT", DEAD)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def test_one_error_at_once(caplog: pytest.LogCaptureFixture) -> None:
    begun = time.monotonic()
    with pytest.raises(SettingsError, match=r"sam2-tiny: cannot be .* \(no connection to 127.0.0.1: Conn"):
        check_sam("sam2-tiny", StorageSettings())
    with pytest.raises(SettingsError, match=r"resnet18: no pretrained .* \(no connection to 127.0.0.1: Conn"):
        build_semantic("unet:resnet18", 3, 1, {}, pretrained=True)
    assert time.monotonic() - begun < 20
    library = [each for each in caplog.records if each.name.startswith("huggingface_hub")]
    assert not [each for each in library if each.levelno >= logging.WARNING]
    assert not constants.HF_HUB_OFFLINE


def test_the_cache_is_read(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    (repository / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (repository / "snapshots" / ("a" * 40) / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    with fetching() as reason:
        assert reason is not None
        assert Path(huggingface_hub.hf_hub_download("a/b", "config.json")).read_text() == "{}"


def test_a_mirror_and_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        lives = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", f"http://{lives}")
        assert why_unreachable() is None
        monkeypatch.setenv("HF_ENDPOINT", "https://nowhere.invalid")
        monkeypatch.setenv("HTTPS_PROXY", f"http://{lives}")
        assert why_unreachable() is None
        monkeypatch.setenv("HTTPS_PROXY", lives)
        assert why_unreachable() is None
        monkeypatch.setenv("NO_PROXY", "nowhere.invalid")
        assert "no connection to nowhere.invalid" in str(why_unreachable())
        monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("HTTPS_PROXY", DEAD)
    assert "no connection to the proxy 127.0.0.1: Connection refused" in str(why_unreachable())
