"""How a model in a registry is written."""

from pathlib import Path

import pytest

from segray.annotate.settings import AnnotateSettings
from segray.errors import SettingsError
from segray.registry.address import RegistryAddress, absolute, parse
from segray.settings import printable


@pytest.mark.parametrize(
    ("spec", "url", "model", "which", "again"),
    [
        ("registry://b/p/q#m@champion", "s3://b/p/q", "m", "champion", "registry://b/p/q#m@champion"),
        ("registry://b#m", "s3://b", "m", "champion", "registry://b#m@champion"),
        ("registry+s3://b/p#m@previous", "s3://b/p", "m", "previous", "registry://b/p#m@previous"),
        ("registry+gs://b/p#m@challenger", "gs://b/p", "m", "challenger", "registry+gs://b/p#m@challenger"),
        ("registry+abfs://b/p#m", "az://b/p", "m", "champion", "registry+az://b/p#m@champion"),
        (
            "registry:///data/r#m.v-2_x",
            "/data/r",
            "m.v-2_x",
            "champion",
            "registry:///data/r#m.v-2_x@champion",
        ),
        ("registry:r/s#m@0123456789ab", "r/s", "m", "0123456789ab", "registry:r/s#m@0123456789ab"),
        (
            "registry+abfss://c@lake.dfs.core.windows.net/p#m",
            "az://c@lake.dfs.core.windows.net/p",
            "m",
            "champion",
            "registry+az://c@lake.dfs.core.windows.net/p#m@champion",
        ),
        (f"registry://b#m@{'ab' * 32}", "s3://b", "m", "abababababab", "registry://b#m@abababababab"),
    ],
)
def test_addresses(spec: str, url: str, model: str, which: str, again: str) -> None:
    assert parse(spec) == RegistryAddress(url, model, which)
    assert str(parse(spec)) == again
    assert parse(again) == parse(spec)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("registry://bucket/models", "write registry://BUCKET/PATH#MODEL@ALIAS"),
        ("registry://#m", "write registry://"),
        ("registry+ftp://b#m", "registry\\+ftp is not one of"),
        ("registry+s3:b#m", "write registry\\+s3://"),
        ("registry://b#m@chmpion", "neither a version .12 hex digits. nor an alias .champion"),
        ("registry://b#m@", "neither a version"),
        ("registry://b#m@0123", "neither a version"),
        ("registry://b#../x@champion", "use letters, digits"),
        ("registry://b#a/b", "use letters, digits"),
    ],
)
def test_wrong_ones_are_told(spec: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parse(spec)


def test_a_folder_is_made_absolute_where_settings_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("registry:r#m") == f"registry://{tmp_path}/r#m@champion"
    settings = AnnotateSettings(sources=["a"], output="o", weights="registry:r#m@previous")
    assert settings.weights == f"registry://{tmp_path}/r#m@previous"
    assert f"weights: registry://{tmp_path}/r#m@previous" in printable(settings)
    assert absolute("registry:nothing") == "registry:nothing"


@pytest.mark.parametrize(
    "spec",
    [
        "registry://KEY:hidden@bucket/models#m@champion",
        "registry://KEY:hid/den@bucket/models#m",
        "registry://KEY:hidden@bucket/models",
        "registry+https://user:hidden@host/models#m",
        "registry://bucket/models?X-Amz-Signature=hidden#m",
    ],
)
def test_keys_in_an_address_are_refused_and_never_shown(spec: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse(spec)
    settings = AnnotateSettings(sources=["a"], output="o", weights=spec)
    for told in (str(refused.value), printable(settings)):
        assert "hid" not in told
        assert "den" not in told
