"""What a scan says of pairs, that it is not made twice, and how pairs are split. No Ray."""

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segray.data import scan as scan_module
from segray.data.dataset import Data, assign_splits, splits_csv
from segray.data.label_sample import decide_from
from segray.data.labels import LabelRules
from segray.data.pair_reader import Example, Reader, Reading
from segray.data.pairs import Pair, Pairs, list_pairs
from segray.data.scan import FIGURES, SCAN, Scan, figures, mean_and_deviation
from segray.data.splits import SplitRule
from segray.errors import ItemError, SettingsError
from segray.output.store import Store
from segray.storage import StorageSettings
from segray.train.settings import TrainSettings
from segray.train.tasks.semantic import SemanticTask
from tests.train.squares import SCORED, TRAINED, write_squares

RULES, MAX_PIXELS = LabelRules(2, "binary"), 10_000
COUNTS = Reading(RULES, MAX_PIXELS, StorageSettings()).counts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Squares."""
    return write_squares(tmp_path / "data, all")


def listing(data: object) -> Pairs:
    return list_pairs(str(data), StorageSettings())


def begin(pairs: Sequence[Pair], output: Path, *, begun: bool = False, rules: LabelRules = RULES) -> Scan:
    return Scan(pairs, rules, MAX_PIXELS, Store(str(output), StorageSettings()), begun=begun)


def look_at(scan: Scan, pairs: Sequence[Pair], indices: Sequence[int]) -> None:
    """As the Ray side does it: a few at a time, in any order."""
    reader = Reader(RULES, MAX_PIXELS, StorageSettings())
    for some in (indices[1::2], indices[::2]):
        rows = [figures(example, COUNTS) for example in reader.read([pairs[index] for index in some])]
        table = pa.Table.from_pylist(rows, FIGURES).append_column("index", pa.array(some, pa.int64()))
        scan.add(table)
    scan.save()


def scanned(data: object, output: Path) -> tuple[Pairs, pa.Table]:
    listed = listing(data)
    scan = begin(listed.pairs, output)
    look_at(scan, listed.pairs, scan.missing)
    return listed, scan.rows()


def split(data: object, output: Path) -> Data:
    listed, rows = scanned(data, output)
    return assign_splits(listed, rows, SplitRule.of(listed.pairs, 0))


def test_pictures_and_labels_are_decoded_in_a_child(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        pytest.fail("a picture was opened here")

    monkeypatch.setattr(Image, "open", opened)
    pairs = listing(folder).pairs
    assert decide_from([pair.label for pair in pairs], MAX_PIXELS, StorageSettings()).values == "binary"
    read = Reader(RULES, MAX_PIXELS, StorageSettings()).read(pairs)
    assert len(read) == 19
    assert [getattr(each, "error_type", None) for each in read].count(None) == 18


def test_what_surveys_and_draws_orders_loads_no_torch() -> None:
    """Seconds and half a GiB in each process of Ray's."""
    names = "train.sampler", "data.scan_stream", "data.scene_windows"
    program = "; ".join(f"import segray.{name}" for name in names)
    program += "; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_figures_are_those_of_the_pixels(folder: Path, tmp_path: Path) -> None:
    listed, rows = scanned(folder, tmp_path / "out")
    arrays = []
    for pair, row in zip(listed.pairs, rows.to_pylist(), strict=True):
        if pair.name.endswith("broken.png"):
            assert (row["error_type"], row["digest"]) == ("corrupt", None)
            continue
        pixels = np.asarray(Image.open(pair.image.address))
        truth = np.asarray(Image.open(pair.label.address)) == 255
        assert row["counts"] == [(~truth).sum(), truth.sum()]
        assert row["pixels"] == truth.size
        arrays.append(pixels.reshape(-1, 3) / 255)
    everything = np.concatenate(arrays)
    good = rows.filter(pa.array([row is None for row in rows["error_type"].to_pylist()]))
    mean, deviation = mean_and_deviation(good)
    assert np.allclose(mean, everything.mean(axis=0), atol=1e-4)
    assert np.allclose(deviation, everything.std(axis=0), atol=1e-4)


def test_what_is_known_is_not_read_again(folder: Path, tmp_path: Path) -> None:
    listed, rows = scanned(folder, tmp_path / "out")
    again = begin(listed.pairs, tmp_path / "out")
    assert again.missing == []
    assert again.rows().equals(rows)
    assert b"segray" in pq.read_schema(tmp_path / "out" / SCAN).metadata


def test_only_what_is_new_or_changed_is_read(folder: Path, tmp_path: Path) -> None:
    scanned(folder, tmp_path / "out")
    changed, touched_label = folder / "images/train/3.png", folder / "labels/val/2.png"
    changed.write_bytes((folder / "images/train/4.png").read_bytes())
    os.utime(touched_label, ns=(1, 1))
    for part in ("images", "labels"):
        (folder / part / "train/0.png").unlink()
        Image.new("L", (40, 36), 255).save(folder / part / "train/new.png")
    listed = listing(folder)
    scan = begin(listed.pairs, tmp_path / "out")
    names = [listed.pairs[index].name for index in scan.missing]
    assert names == ["images/train/3.png", "images/train/new.png", "images/val/2.png"]
    look_at(scan, listed.pairs, scan.missing)
    _, fresh = scanned(folder, tmp_path / "another")
    assert scan.rows().equals(fresh)


def test_labels_that_are_read_otherwise_are_read_again(folder: Path, tmp_path: Path) -> None:
    listed, _ = scanned(folder, tmp_path / "out")
    assert len(begin(listed.pairs, tmp_path / "out", rules=LabelRules(2, "indices")).missing) == 19


def test_a_version_that_is_not_told_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    """As of a web server without ETag."""
    listed, _ = scanned(folder, tmp_path / "out")
    first = listed.pairs[0]
    for part in ("image", "label"):
        pair = replace(first, **{part: replace(getattr(first, part), version="")})
        output = tmp_path / part
        scan = begin([pair], output)
        look_at(scan, [pair], scan.missing)
        assert begin([pair], output).missing == [0]


@pytest.mark.parametrize(("kind", "again"), [("corrupt", []), ("storage", [0])])
def test_errors_that_pass_are_tried_again_until_something_was_trained(
    folder: Path, tmp_path: Path, kind: str, again: list[int]
) -> None:
    pairs = listing(folder).pairs
    scan = begin(pairs, tmp_path / "out")
    rows = [figures(ItemError(kind, "it broke"), COUNTS)]  # type: ignore[arg-type]
    scan.add(pa.Table.from_pylist(rows, FIGURES).append_column("index", pa.array([0])))
    look_at(scan, pairs, scan.missing)
    assert begin(pairs, tmp_path / "out").missing == again
    assert begin(pairs, tmp_path / "out", begun=True).missing == []


def test_the_copy_is_kept_while_the_survey_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "_SAVE_EVERY_S", -1.0)
    pairs = listing(folder).pairs
    scan = begin(pairs, tmp_path / "out")
    row = pa.Table.from_pylist([figures(ItemError("corrupt", "it broke"), COUNTS)], FIGURES)
    scan.add(row.append_column("index", pa.array([5])))
    assert 5 not in begin(pairs, tmp_path / "out").missing


def test_a_damaged_copy_costs_a_survey_and_no_more(folder: Path, tmp_path: Path) -> None:
    listed, _ = scanned(folder, tmp_path / "out")
    (tmp_path / "out" / SCAN).write_bytes(b"PAR1 half of it")
    assert len(begin(listed.pairs, tmp_path / "out").missing) == 19


def test_the_manifest_of_the_splits_gives_the_same_data(folder: Path, tmp_path: Path) -> None:
    """Dealt by chance from a folder without splits; read back they are named."""
    flat = tmp_path / "flat"
    for part in ("images", "labels"):
        (flat / part).mkdir(parents=True)
        for index in range(TRAINED):
            (flat / part / f'a "quoted", name {index}.png').write_bytes(
                (folder / part / f"train/{index}.png").read_bytes()
            )
    data = split(flat, tmp_path / "out")
    assert min(data.sizes.values()) > 0
    manifest = tmp_path / "elsewhere" / "splits.csv"
    manifest.parent.mkdir()
    manifest.write_bytes(splits_csv(data))
    back = split(manifest, tmp_path / "back")
    assert (back.digest, back.sizes, back.summary()) == (data.digest, data.sizes, data.summary())
    rows = list(csv.DictReader(manifest.read_text().splitlines()))
    tested = {Path(row["images"]).name for row in rows if row["split"] == "test"}
    named = {pair.image.uri: split for pair, split in zip(data.pairs, data.splits, strict=True)}
    assert tested == {uri.rpartition("/")[2] for uri, split in named.items() if split == "test"}
    assert all(Path(row[column]).is_absolute() for row in rows for column in ("images", "masks"))


def test_the_digest_is_of_images_and_labels_and_splits_and_of_no_names(folder: Path, tmp_path: Path) -> None:
    digest = split(folder, tmp_path / "0").digest
    moved = folder.rename(tmp_path / "moved")
    for part in ("images", "labels"):
        (moved / part / "train/1.png").rename(moved / part / "train/other.png")
    assert split(moved, tmp_path / "1").digest == digest
    label = moved / "labels/train/2.png"
    label.write_bytes((moved / "labels/train/3.png").read_bytes())
    corrected = split(moved, tmp_path / "2").digest
    assert corrected != digest
    for part in ("images", "labels"):
        (moved / part / "train/3.png").rename(moved / part / "val/3x.png")
    assert split(moved, tmp_path / "3").digest not in (digest, corrected)


def test_data_count_what_was_rejected_and_hold_train_first(folder: Path, tmp_path: Path) -> None:
    (folder / "images/train/alone.png").write_bytes(b"")
    data = split(folder, tmp_path / "out")
    assert data.sizes == {"train": TRAINED, "val": SCORED, "test": 0}
    assert data.listed == TRAINED + SCORED + 2
    assert data.rejected_share == pytest.approx(2 / data.listed)
    assert {Path(address).name for address, _ in data.rejected} == {"alone.png", "broken.png"}
    splits = [name.split("/")[1] for name in data.table["name"].to_pylist()]
    assert splits == ["train"] * TRAINED + ["val"] * SCORED


def test_no_pair_to_validate_with_is_told(tmp_path: Path) -> None:
    folder = write_squares(tmp_path / "data")
    for file in (folder / "images/val").iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(SettingsError, match=r"no pair is left in val \(13 can be used\)"):
        split(folder, tmp_path / "out")


def frames(folder: Path, number: int = 60) -> Path:
    """Of a fixed camera: something small moves before a street that stays; a manifest of them."""
    ground = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    rows = ["images,masks"]
    folder.mkdir()
    for index in range(number):
        pixels, label = ground.copy(), np.zeros((72, 96), np.uint8)
        pixels[40:44, index : index + 8], label[40:44, index : index + 8] = 255, 255
        Image.fromarray(pixels).save(folder / f"{index}.png")
        Image.fromarray(label).save(folder / f"{index}-mask.png")
        rows.append(f"{index}.png,{index}-mask.png")
    (folder / "all.csv").write_text("\n".join(rows))
    return folder / "all.csv"


def test_frames_of_a_fixed_camera(tmp_path: Path) -> None:
    manifest = frames(tmp_path / "in")
    listed, rows = scanned(manifest, tmp_path / "out")
    with pytest.raises(
        SettingsError, match=r"60 can be used in 1 group kept together.*group_look_alikes off"
    ):
        assign_splits(listed, rows, SplitRule.of(listed.pairs, 0))
    data = assign_splits(listed, rows, SplitRule.of(listed.pairs, 0), look_alikes="off")
    assert min(data.sizes.values()) > 0
    assert data.alike == 1
    lines = manifest.read_text().splitlines()
    days = [f"day {index // 3}" for index in range(60)]
    named = [f"{line},{day}" for line, day in zip(lines[1:], days, strict=True)]
    manifest.write_text("\n".join([lines[0] + ",group", *named]))
    listed, rows = scanned(manifest, tmp_path / "named")
    data = assign_splits(listed, rows, SplitRule.of(listed.pairs, 0))
    assert min(data.sizes.values()) > 0
    indices = {pair.name: split for pair, split in zip(data.pairs, data.splits, strict=True)}
    for first in range(0, 60, 3):
        assert len({indices[f"{index}.png"] for index in range(first, first + 3)}) == 1


def test_labels_in_colour_are_counted_as_the_numbers_they_stand_for(folder: Path, tmp_path: Path) -> None:
    listed, rows = scanned(folder, tmp_path / "out")
    for path in (folder / "labels").rglob("*.png"):
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(np.stack([grey, 0 * grey, 255 - grey], axis=-1)).save(path)
    given: dict[str, Any] = {
        "data": str(folder),
        "output": str(tmp_path),
        "colours": {"0,0,255": 0, "255,0,0": 1},
    }
    task = SemanticTask.of(TrainSettings(**given), listing(folder))
    assert task.names == ("background", "foreground")
    reader = Reader(task.rules, MAX_PIXELS, StorageSettings())
    found = [figures(each, COUNTS) for each in reader.read(listed.pairs)]
    assert [row.get("counts") for row in found] == rows["counts"].to_pylist()
    with pytest.raises(ValueError, match="colours: not for footprints"):
        TrainSettings(**given, footprints="f.gpkg")


def test_examples_know_their_files(folder: Path) -> None:
    reader = Reader(RULES, MAX_PIXELS, StorageSettings())
    pairs = [pair for pair in listing(folder).pairs if "broken" not in pair.name]
    (folder / "labels/train/0.png").unlink()
    found = dict(zip((pair.name for pair in pairs), reader.read(pairs), strict=True))
    lost = found["images/train/0.png"]
    assert isinstance(lost, ItemError)
    assert lost.reason.startswith("label: ")
    first, second = found["images/train/1.png"], found["images/train/2.png"]
    assert isinstance(first, Example)
    assert isinstance(second, Example)
    assert len({first.digest, first.label_digest, second.digest, second.label_digest}) == 4
