"""`--keep-columns`: what a manifest says of its rows travels with them, as text."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.errors import SettingsError
from segray.sources.listing import Listing
from segray.storage import StorageSettings

KEEP = ("camera", "region", "nowhere")
STORAGE = StorageSettings()


def kept(path: Path) -> list[list[str | None] | None]:
    return [
        json.loads(row.kept) if row.kept else None for row in Listing([str(path)], STORAGE, keep_columns=KEEP)
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "region,uri,camera\nnorth,a.png,7\n,b.png,\nnorth\n"),
        ("m.tsv", "region\turi\tcamera\nnorth\ta.png\t7\n\tb.png\t\nnorth\n"),
        ("m.jsonl", '{"uri": "a.png", "camera": 7, "region": "north"}\n{"uri": "b.png", "region": ""}\n'
         '{"camera": null, "uri": null, "region": "north"}\n'),
    ],
)  # fmt: skip
def test_of_text(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert kept(tmp_path / name) == [["7", "north", None], None, [None, "north", None]]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array(["b", "", None]), ["b", None, None]),
        (pa.array(["b", "b", None]).dictionary_encode(), ["b", "b", None]),
        (pa.array([3, 0, None]), ["3", "0", None]),
        (pa.array([1.5, float("nan"), None]), ["1.5", None, None]),
        (pa.array([date(2026, 1, 2), None, None]), ["2026-01-02", None, None]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array([b"x", None, None]), ["x", None, None]),
    ],
)
def test_of_parquet(tmp_path: Path, values: Any, texts: list[str | None]) -> None:
    pq.write_table(pa.table({"camera": values, "uri": ["a", "b", "c"]}), tmp_path / "m.parquet")
    assert kept(tmp_path / "m.parquet") == [None if text is None else [text, None, None] for text in texts]


def test_values_that_are_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"camera": [[1, 2]], "uri": ["a"]}), tmp_path / "m.parquet")
    with pytest.raises(SettingsError, match=r"keep_columns: .*m\.parquet: camera must hold plain values"):
        kept(tmp_path / "m.parquet")
    (tmp_path / "m.jsonl").write_text('{"uri": "a", "camera": [1]}\n')
    with pytest.raises(SettingsError, match=r"keep_columns: .*m\.jsonl: camera holds lists"):
        kept(tmp_path / "m.jsonl")
    pq.write_table(pa.table({"camera": [b"\xff"], "uri": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(SettingsError, match="cannot be read"):
        kept(tmp_path / "b.parquet")
