"""Bins, counts and divergences against brute force and known values."""

import json
import math
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.drift.divergence import chi_square, common_classes, js, merged_bins, psi
from segray.drift.profile import SCALES, Profile, Sample
from segray.drift.reading import profile_of
from segray.errors import SettingsError
from segray.storage import StorageSettings
from tests.bulk.tables import answer, table
from tests.drift.made import Archive, archive, write
from tests.evaluate.made import write_annotated

STORAGE = StorageSettings()


def brute(made: Archive, group: str | None) -> Sample:
    """By a loop over rows, and a loop over bins."""
    sample, inside = Sample(), set()
    for row in pa.table(made.images).to_pylist():
        if group is not None and row["camera"] != group:
            continue
        inside.add(row["image_id"])
        if row["status"] != "annotated":
            sample.rejected += 1
            continue
        sample.images += 1
        sample.instances += row["instances"]
        sample.squares += row["instances"] ** 2
        for name in ("instances", "brightness", "sharpness"):
            _count(sample, name, row[name])
    for row in pa.table(made.instances).to_pylist():
        if row["image_id"] in inside:
            _count(sample, "score", row["score"])
            _count(sample, "area", row["area"])
            sample.classes[row["category"]] += 1
    return sample


def _count(sample: Sample, name: str, value: float | None) -> None:
    if value is not None and math.isfinite(value):
        sample.counts[name][sum(edge <= value for edge in SCALES[name].edges)] += 1


@pytest.fixture
def made() -> Archive:
    """With rejected images, values that are not known, and images of no camera."""
    made = archive(8, 700)
    random = np.random.default_rng(8)
    has_any = np.asarray(made.images["instances"]) > 0
    made.images["status"] = np.where(~has_any & (random.random(700) < 0.5), "rejected", "annotated")
    made.images["brightness"] = np.where(random.random(700) < 0.1, np.nan, made.images["brightness"])
    made.instances["score"] = np.where(random.random(len(made.instances["score"])) < 0.1, np.nan, 0.7)
    made.images["camera"] = np.where(random.random(700) < 0.2, None, made.images["camera"])
    return made


@pytest.mark.parametrize("layout", ["parts", "one part", "other names"])
def test_counts_are_those_of_a_loop(layout: str, made: Archive, tmp_path: Path) -> None:
    run = write(tmp_path / "run", made, parts=1 if layout == "one part" else 4)
    if layout == "other names":
        for path in (tmp_path / "run/instances").iterdir():
            path.rename(path.with_name(f"x{path.name}"))
    found = profile_of(run, STORAGE, "camera")
    assert found.overall.as_plain() == brute(made, None).as_plain()
    assert set(found.groups) == {"left", "right", "top", None}
    assert found.groups["left"].as_plain() == brute(made, "left").as_plain()
    assert profile_of(run, STORAGE).overall.as_plain() == found.overall.as_plain()
    assert found.overall.rejected > 10
    assert sum(found.overall.counts["brightness"]) < found.overall.images


def test_what_annotate_writes(tmp_path: Path) -> None:
    """Its own tables; a corrected row has no score."""
    rows = [
        answer(uri, instances=count) | {"brightness": 30.0} for uri, count in (("a", 3), ("b", 0), ("c", 1))
    ]
    rows[0]["found"][0]["score"] = None
    write_annotated(str(tmp_path), [rows[:2], [*rows[2:], answer("d", error_type="corrupt")]])
    overall = profile_of(str(tmp_path), STORAGE).overall
    assert (overall.images, overall.rejected, overall.instances, overall.squares) == (3, 1, 4, 10)
    assert overall.classes == Counter({"nucleus": 4})
    assert overall.counts["score"].sum() == 3
    assert overall.counts["score"][25] == 3  # 0.5 is the first value of its bin
    assert overall.counts["brightness"][7] == 3
    assert overall.counts["instances"].tolist()[:5] == [1, 1, 0, 1, 0]
    assert table(*rows).num_rows == 3


def test_parts_add_to_the_whole(made: Archive, tmp_path: Path) -> None:
    which = np.arange(700) % 3 == 0
    whole = profile_of(write(tmp_path / "whole", made), STORAGE).overall
    added = Sample()
    for name, some in (("a", which), ("b", ~which)):
        added.add(profile_of(write(tmp_path / name, made.part(some)), STORAGE).overall)
    assert added.as_plain() == whole.as_plain()


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    def peak(number: int) -> int:
        folder = tmp_path / str(number)
        (folder / "images").mkdir(parents=True)
        (folder / "run.json").write_text('{"verb": "predict"}')
        images = archive(1, 20_000).images
        with pq.ParquetWriter(folder / "images/part-000001.parquet", pa.table(images).schema) as writer:
            for _ in range(number):
                writer.write_table(pa.table(images))
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        found = profile_of(str(folder), STORAGE, "camera")
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.overall.images == 20_000 * number
        assert pa.total_allocated_bytes() - before < 1 << 20
        return used

    peak(1)  # what is imported
    assert peak(16) < 1.3 * peak(4) < 64 << 20


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: plain.pop("overall"),
        lambda plain: plain.update(format=2),
        lambda plain: plain["overall"].update(images=-1),
        lambda plain: plain["overall"].update(images=1.5),
        lambda plain: plain["overall"]["counts"]["score"].pop(),
        lambda plain: plain["overall"]["counts"].pop("area"),
        lambda plain: plain.update(groups=[1]),
        lambda plain: plain["overall"].update(classes=[]),
    ],
)
def test_what_is_no_profile(damage: Any, made: Archive, tmp_path: Path) -> None:
    plain = json.loads(profile_of(write(tmp_path, made), STORAGE).to_json())
    damage(plain)
    with pytest.raises(SettingsError, match=r"^kept is not a segray profile: "):
        Profile.from_json(json.dumps(plain), "kept")
    for text in ("", "[]", "7", "null"):
        with pytest.raises(SettingsError):
            Profile.from_json(text)


def counts(*values: int) -> Any:
    return np.array(values, np.int64)


def test_divergences_of_known_distributions() -> None:
    """By hand: (0.2 - 0.4) ln(0.2 / 0.4) + (0.8 - 0.6) ln(0.8 / 0.6), and entropies in bits."""
    big = 10**9
    run, against = counts(2 * big, 8 * big), counts(4 * big, 6 * big)
    assert psi(run, against) == pytest.approx(0.2 * math.log(2) + 0.2 * math.log(4 / 3), rel=1e-6)

    def entropy(p: float) -> float:
        return -p * math.log2(p) - (1 - p) * math.log2(1 - p)

    assert js(run, against) == pytest.approx(entropy(0.3) - (entropy(0.2) + entropy(0.4)) / 2)
    assert psi(run, against) == pytest.approx(psi(against, run))
    assert js(counts(5, 0), counts(0, 9)) == 1.0
    assert psi(counts(7, 3), counts(7, 3)) == js(counts(7, 3), counts(70, 30)) == 0.0
    half = (0.5 / 11, 10.5 / 11)
    empty = (half[0] - half[1]) * math.log(half[0] / half[1]) * 2
    assert psi(counts(0, 10), counts(10, 0)) == pytest.approx(empty)


@pytest.mark.parametrize(
    ("degrees", "chance", "value"),
    [(3, 0.01, 11.345), (9, 0.001, 27.877), (9, 0.05, 16.919), (30, 0.01, 50.892), (1, 0.001, 10.828)],
)
def test_quantiles_of_chi_square(degrees: int, chance: float, value: float) -> None:
    """NIST, Engineering Statistics Handbook, 1.3.6.7.4."""
    assert chi_square(degrees, chance) == pytest.approx(value, rel=0.01 if degrees > 2 else 0.05)


def test_bins_are_put_together_until_they_hold_enough() -> None:
    run, against = counts(0, 2, 2, 96, 0, 0, 0), counts(0, 0, 0, 0, 0, 100, 0)
    assert merged_bins(run, against, 100) == [(0, 3), (4, 6)]  # neither side's own bins would tell them apart
    many = counts(*[10] * 40)
    assert len(merged_bins(many, many, 400)) == 10
    assert merged_bins(many, many, 10) == [(0, 19), (20, 39)]  # a bin must hold five values
    assert merged_bins(many, many, 1) == [(0, 39)]
    assert merged_bins(counts(0, 9), counts(0, 9), 9) == [(0, 1)]
    assert common_classes(counts(90, 9, 1), counts(90, 9, 1), 100).tolist() == [True, True, False]


@pytest.mark.parametrize("name", SCALES)
def test_scales_rise_and_say_their_bounds(name: str) -> None:
    scale = SCALES[name]
    assert list(scale.edges) == sorted(set(scale.edges))
    values = np.array([scale.low, *scale.edges])
    assert scale.bin_of(values).tolist() == list(range(scale.bins))
    assert [scale.bounds(place, place)[0] for place in range(scale.bins)] == values.tolist()
    assert scale.bounds(0, scale.bins - 1) == (scale.low, scale.high)


def test_instances_of_one_image_are_counted_as_few() -> None:
    assert Sample(images=4, instances=20, squares=4 * 25).clusters == 4
    assert Sample(images=4, instances=20, squares=400).clusters == 1
    assert Sample().clusters == 0
