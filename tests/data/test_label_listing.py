"""Labels in annotate's shape as data: whose rows count, splits and groups, and what is wrong with a table."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from segray.cli import main
from segray.data.coco_listing import AnnotatedPair, instances_of
from segray.data.label_listing import holds_labels, list_labels
from segray.errors import SettingsError
from segray.schema import IMAGES, INSTANCES
from segray.storage import StorageSettings
from tests.train.test_instances_job import train

SIDE = 96


def instance(image: str, number: int, score: float | None, **more: Any) -> dict[str, Any]:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[10 * number : 10 * number + 12, 20:40] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    row = {"image_id": image, "instance_id": f"{image}-{number:07d}", "category_id": 3, "category": "roof"}
    row |= {
        "score": score,
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }
    return row | more


def image(name: str, **more: Any) -> dict[str, Any]:
    row = {
        "image_id": name,
        "uri": f"photos/{name}.png",
        "height": SIDE,
        "width": SIDE,
        "status": "annotated",
    }
    return row | more


def write(folder: Path, images: list[dict[str, Any]], instances: list[dict[str, Any]]) -> Path:
    """Tables with the columns of the contract, and those that rows have besides."""
    for name, rows, schema in (("images", images, IMAGES), ("instances", instances, INSTANCES)):
        more = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in schema.names]
        whole = pa.schema([*schema, *((key, pa.string()) for key in more)])
        (folder / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, whole), folder / name / "part-0.parquet")
    for row in images:
        path = folder / row["uri"]
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (SIDE, SIDE), (len(path.name) * 9, 80, 10)).save(path)
    return folder


def listed(folder: Path, min_score: float | None = None) -> dict[str, AnnotatedPair]:
    found = list_labels(str(folder), StorageSettings(), min_score)
    pairs = [pair for pair in found.pairs if isinstance(pair, AnnotatedPair)]
    return {Path(pair.image.uri).stem: pair for pair in pairs}


def numbers(pairs: dict[str, AnnotatedPair]) -> dict[str, int]:
    return {name: len(instances_of(pair.annotations, {3: "roof"})[1]) for name, pair in pairs.items()}


def test_a_persons_rows_count_and_others_above_a_score(tmp_path: Path) -> None:
    images = [image("a", split="train", group="north"), image("b", split="val"), image("empty", split="test")]
    scores = {"a": (None, 0.95, 0.5), "b": (None, None)}
    rows = [instance(name, place, score) for name, them in scores.items() for place, score in enumerate(them)]
    folder = write(tmp_path, images, rows)
    assert holds_labels(str(folder), StorageSettings())
    pairs = listed(folder)
    assert numbers(pairs) == {"a": 1, "b": 2, "empty": 0}
    assert [pairs[name].split for name in ("a", "b", "empty")] == ["train", "val", "test"]
    assert (pairs["a"].group, pairs["b"].group) == ("north", None)
    assert numbers(listed(folder, 0.5)) == {"a": 2, "b": 2, "empty": 0}
    assert numbers(listed(folder, 0.1)) == {"a": 3, "b": 2, "empty": 0}
    ((size, (first, *_)), *_) = [instances_of(pairs["b"].annotations, {3: "roof"})]
    assert size == (SIDE, SIDE)
    assert coco_mask.area(first.mask) == 240


def test_a_picture_that_nobody_looked_at_yet_is_not_an_empty_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person began with `a`, and found `empty` to be so; `b` is as the model left it."""
    images = [image("a"), image("b"), image("empty")]
    rows = [instance("a", 0, None), instance("a", 1, 0.9), instance("b", 0, 0.9), instance("b", 1, 0.4)]
    folder = write(tmp_path, images, rows)
    assert numbers(listed(folder)) == {"a": 1, "empty": 0}
    assert "1 images are left out: no instance of theirs was confirmed by a person" in capsys.readouterr().err
    assert numbers(listed(folder, 0.5)) == {"a": 2, "b": 1, "empty": 0}
    assert numbers(listed(folder, 0.95)) == {"a": 1, "b": 0, "empty": 0}


def test_the_same_labels_have_one_version_however_they_are_cut_into_files(tmp_path: Path) -> None:
    rows = [instance("a", place, None) for place in range(3)]
    one = listed(write(tmp_path / "one", [image("a")], rows))["a"]
    folder = write(tmp_path / "two", [image("a")], rows[2:])
    table = pa.Table.from_pylist(rows[:2][::-1], INSTANCES)
    pq.write_table(table, folder / "instances/part-1.parquet")
    assert listed(folder)["a"].label.version == one.label.version
    rows[0] = instance("a", 5, None)
    assert listed(write(tmp_path / "three", [image("a")], rows))["a"].label.version != one.label.version


def test_what_cannot_be_learned_from_is_rejected_with_its_reason(tmp_path: Path) -> None:
    images = [
        image("a"),
        image("b", status="rejected", error_type="corrupt", error="no JPEG"),
        image("c", member="x/y.png"),
        image("d", height=None),
        image("gone"),
    ]
    folder = write(tmp_path, images, [instance("a", 0, None), instance("stray", 0, None)])
    (folder / "photos/gone.png").unlink()
    found = list_labels(str(folder), StorageSettings())
    assert [Path(pair.image.uri).stem for pair in found.pairs] == ["a"]
    reasons = {Path(one.uri).stem: one.error for one in found.rejected}
    assert reasons["b"] == "rejected as corrupt: no JPEG"
    assert "is in an archive" in reasons["y"]
    assert "no height and width" in reasons["d"]
    assert len(reasons) == 4
    assert found.ignored == 1


@pytest.mark.parametrize(
    ("images", "instances", "words"),
    [
        ([image("a")], [instance("a", 0, 0.9)], "no instance was drawn or confirmed by a person"),
        ([image("a"), image("a")], [instance("a", 0, None)], "two rows of images have the image_id a"),
        ([image("a", uri="")], [instance("a", 0, None)], "no image_id, or no uri"),
        ([image("a")], [instance("a", 0, None, category=None)], "has no category_id, or no category"),
        (
            [image("a")],
            [instance("a", 0, None), instance("a", 1, None, category="wall")],
            "category 3 is named roof and wall",
        ),
        ([image("a", split="dev")], [instance("a", 0, None)], "split 'dev' is not one of"),
    ],
)
def test_wrong_tables_are_told(
    tmp_path: Path, images: list[dict[str, Any]], instances: list[dict[str, Any]], words: str
) -> None:
    folder = tmp_path / "labels"
    (folder / "photos").mkdir(parents=True)
    write(folder, [row for row in images if row["uri"]], instances)
    table = pa.Table.from_pylist(images, pa.schema([*IMAGES, ("split", pa.string())]))
    pq.write_table(table, folder / "images/part-0.parquet")
    with pytest.raises(SettingsError, match=words):
        list_labels(str(folder), StorageSettings())


def test_a_missing_column_and_a_damaged_file_are_told(tmp_path: Path) -> None:
    folder = write(tmp_path, [image("a")], [instance("a", 0, None)])
    path = folder / "instances/part-0.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["segmentation"]), path)
    with pytest.raises(SettingsError, match=r"part-0.parquet: it has no column segmentation"):
        list_labels(str(folder), StorageSettings())
    path.write_bytes(b"PAR1 no table")
    with pytest.raises(SettingsError, match=r"part-0.parquet: it cannot be read"):
        list_labels(str(folder), StorageSettings())


def test_training_takes_what_annotate_wrote_and_a_person_corrected(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's own output, of which a person confirmed what has the higher scores."""
    from tests.train.cells import write_cells

    monkeypatch.chdir(tmp_path)
    write_cells(tmp_path / "cells", images=6)
    found = ("annotate", "cells/images", "--weights", "nuclei-small", "--output", "labels")
    assert main([*found, "--score-threshold", "0.3"]) == 0
    assert train("labels", "none", "--epochs", 1) == 2
    assert "set --min-score to learn from the model's own above it" in capsys.readouterr().err
    (path,) = (tmp_path / "labels/instances").glob("*.parquet")
    table = pq.read_table(path)
    scores = [None if score > 0.6 else score for score in table["score"].to_pylist()]
    assert None in scores
    place = table.schema.get_field_index("score")
    pq.write_table(table.set_column(place, "score", pa.array(scores, pa.float32())), path)
    (path,) = (tmp_path / "labels/images").glob("*.parquet")
    table = pq.read_table(path)
    splits = ["train", "val"] * (table.num_rows // 2)
    pq.write_table(table.append_column("split", pa.array(splits)), path)
    assert train("labels", "out", "--epochs", 1) == 0
    told = capsys.readouterr().err
    assert f"{len(scores) - scores.count(None):,} instances with a score are left out" in told
    assert "3 train, 3 val" in told
