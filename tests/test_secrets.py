"""What a file holds is not printed because it cannot be read: it may be a key."""

from pathlib import Path

import pytest

from segray.annotate.settings import AnnotateSettings
from segray.command_line import load_settings
from segray.data.vector_files import find_file, open_features
from segray.errors import ItemError, SegrayError, SettingsError
from segray.settings import printable
from segray.sources.decode import decode_rgb
from segray.storage import StorageSettings
from segray.train.settings import TrainSettings

SECRET = "hunter2-AKIA"


@pytest.mark.parametrize("suffix", [b"", b"\xff" * 600])
def test_the_first_bytes_of_what_is_no_image_are_not_told(suffix: bytes) -> None:
    with pytest.raises(ItemError, match="not an image") as caught:
        decode_rgb(SECRET.encode() + suffix, 1000)
    told = str(caught.value)
    assert SECRET[:4] not in told
    assert SECRET.encode()[:2].hex(" ") not in told
    assert SECRET.encode()[:2].hex() not in told


@pytest.mark.parametrize("content", [b'{"a": "%s \xff"}', b"{%s", b'{"features": "%s"}', b"%s"])
def test_a_broken_vector_file_is_not_quoted(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.geojson"
    file.write_bytes(content.replace(b"%s", SECRET.encode()))
    storage = StorageSettings()
    with pytest.raises(SegrayError) as caught, open_features(find_file(str(file), storage), None, storage):
        pass
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("line", [f"  secret: {SECRET}\n :", f"  secret: '{SECRET}", f"secret: [{SECRET}"])
def test_a_broken_config_is_not_quoted(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"storage:\n {line}")
    with pytest.raises(SettingsError, match=r"config: .*, line \d+ is not YAML: ") as caught:
        load_settings(
            AnnotateSettings, ["x", "--output", "o", "--config", str(tmp_path / "a.yaml")], "segray"
        )
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "form",
    ["s3://AKIAX:{}@b/a", "s3://AKIAX:x/{}@b/a", "az://c/a?sv=1&sig={}", "gs://b/a?X-Goog-Signature={}"],
)
def test_settings_are_printed_without_secrets_of_addresses(form: str) -> None:
    url = form.format(SECRET)
    annotate = AnnotateSettings(sources=[url], output=url, weights=url)
    train = TrainSettings(data=url, output=url, root=url)
    for settings in (annotate, train):
        assert SECRET not in printable(settings)
        assert "AKIAX" not in printable(settings)


@pytest.mark.parametrize("pasted", [f'{{"private_key": "{SECRET}{400 * "x"}"}}', f"~nobody-here/{SECRET}"])
def test_a_key_in_the_place_of_the_file_that_holds_it_is_not_told(
    pasted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGRAY_STORAGE__GCS__TOKEN", pasted)
    settings = load_settings(AnnotateSettings, ["x", "--output", "o"], "segray")
    assert settings.storage.gcs.token is not None
    assert settings.storage.gcs.token.get_secret_value() == pasted
    assert SECRET not in printable(settings)
