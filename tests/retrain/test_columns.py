"""The column that names the groups of the gate: what is wrong with it is a line, not a traceback."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.errors import SettingsError
from segray.retrain.columns import values_by_image
from segray.storage import StorageSettings


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"{", "cannot be read"),
        ("a.json", b"[]", "cannot be read"),
        ("a.json", b'{"images": [3]}', "cannot be read"),
        ("a.json", b'{"images": [{"file_name": "x.png"}]}', "has no camera"),
        ("a.parquet", b"no table", "cannot be read"),
        ("a.csv", "images,masks,camera\n\u00e4.png,b.png,x\n".encode("latin-1"), "cannot be read"),
        ("a.csv", b"Images,masks,camera\na.png,b.png,x\n", "has no column images"),
        ("a.csv", b"images,masks\na.png,b.png\n", "has no column camera"),
        ("a.txt", b"a.png b.png\n", "use a manifest or COCO JSON"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=words):
        values_by_image(str(path), "camera", None, StorageSettings())


def test_a_table_without_pictures_and_a_folder_of_them_are_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"camera": ["left"]}), tmp_path / "a.parquet")
    for data, words in ((tmp_path / "a.parquet", "has no column images"), (tmp_path, "has no columns")):
        with pytest.raises(SettingsError, match=words):
            values_by_image(str(data), "camera", None, StorageSettings())


def test_names_are_taken_as_training_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"images,masks,camera\na b.png,m.png,left\n{tmp_path}/c.png,m.png,right\nd.png,m.png,\n")
    found = values_by_image(str(path), "camera", None, StorageSettings())
    assert found == {f"file://{tmp_path}/a b.png": "left", f"file://{tmp_path}/c.png": "right"}
