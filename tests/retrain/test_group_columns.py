"""A column of the data, whatever form they have: which group each picture is of."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.errors import SettingsError
from segray.retrain.columns import values_by_image
from segray.storage import StorageSettings

VALUES = {"a.png": "north", "b.png": "south", "c.png": None}


def write(folder: Path, kind: str) -> str:
    """Data of three pictures, of which one has no value; returns their address."""
    if kind in ("coco", "folder"):
        images = [{"file_name": name, "camera": value} for name, value in VALUES.items()]
        path = folder / "instances.json"
        path.write_text(json.dumps({"images": images}))
        return str(path if kind == "coco" else folder)
    if kind == "csv":
        rows = [f"{name},m.png,{value or ''}" for name, value in VALUES.items()]
        (folder / "list.csv").write_text("\n".join(["images,masks,camera", *rows]))
        return str(folder / "list.csv")
    table = pa.table({"images": list(VALUES), "uri": list(VALUES), "camera": list(VALUES.values())})
    if kind == "parquet":
        pq.write_table(table, folder / "list.parquet")
        return str(folder / "list.parquet")
    (folder / "images").mkdir()
    pq.write_table(table, folder / "images/part.parquet")
    return str(folder)


@pytest.mark.parametrize("kind", ["coco", "folder", "csv", "parquet", "labels"])
def test_values_are_found_by_the_pictures_addresses(tmp_path: Path, kind: str) -> None:
    data = write(tmp_path, kind)
    base = f"file://{tmp_path}" + "/images" * (kind == "folder")
    expected = {f"{base}/a.png": "north", f"{base}/b.png": "south"}
    assert values_by_image(data, "camera", None, StorageSettings()) == expected
    with pytest.raises(SettingsError, match=r"has no (column )?camra"):
        values_by_image(data, "camra", None, StorageSettings())


def test_names_are_relative_to_a_root_where_one_is_said(tmp_path: Path) -> None:
    data = write(tmp_path, "csv")
    found = values_by_image(data, "camera", "s3://bucket/photos", StorageSettings())
    assert found == {"s3://bucket/photos/a.png": "north", "s3://bucket/photos/b.png": "south"}
