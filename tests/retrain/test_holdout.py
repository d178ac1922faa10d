"""Who is held out: for ever, with look-alikes, and nobody who trained."""

import hashlib
import random

import numpy as np
import pyarrow as pa
import pytest

from segray.data.pairs import Pair
from segray.errors import JobFailedError
from segray.retrain.holdout import Holdout, assign_splits
from segray.retrain.labels import (
    LEFT_OUT,
    TEST,
    from_bytes,
    name_of,
    news,
    snapshot_of,
    to_bytes,
    unread_news,
)
from segray.sources.item import Source


def pair(number: int, split: str | None = None, group: str | None = None) -> Pair:
    image = Source(f"s3://b/{number}.png", f"s3://b/{number}.png", "file", f"v{number}", 1)
    label = Source(f"s3://b/{number}.json", "", "file", f"l{number}", 1)
    return Pair(f"{number:032x}", str(number), image, label, split, group=group)


def likeness(number: int) -> int:
    return random.Random(number).getrandbits(64)


def rows(pairs: list[Pair], alike: dict[int, int] | None = None) -> pa.Table:
    """FIGURES, as far as they are looked at; alike: number -> hash."""
    numbers = [int(each.name) for each in pairs]
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]
    codes = [(alike or {}).get(number, likeness(number)) for number in numbers]
    columns = {"digest": digests, "label_digest": digests, "likeness": pa.array(codes, pa.uint64())}
    return pa.table(columns)


def dealt(
    pairs: list[Pair], table: pa.Table, holdout: Holdout, trained: set[str] | None = None
) -> dict[int, str]:
    splits = assign_splits(pairs, table, holdout, trained or set(), share=0.3, seed=0, look_alikes="loose")
    return {int(each.name): split for each, split in zip(pairs, splits, strict=True)}


def round_of(numbers: range, holdout: Holdout, trained: set[str]) -> tuple[dict[int, str], Holdout, set[str]]:
    """(Splits, the holdout after it, who trained)."""
    pairs = [pair(number) for number in numbers]
    table = rows(pairs)
    found = dealt(pairs, table, holdout, trained)
    snapshot = snapshot_of(pairs, table, [found[int(each.name)] for each in pairs])
    others = snapshot.filter(pa.compute.not_equal(snapshot["split"], TEST))
    return found, holdout.joined_by(snapshot), {*others["digest"].to_pylist(), *others["address"].to_pylist()}


def test_what_is_held_out_stays_so_and_new_ones_join() -> None:
    first, holdout, trained = round_of(range(200), Holdout.read(None), set())
    share = list(first.values()).count(TEST) / 200
    assert 0.2 < share < 0.4
    assert holdout.version == 1
    second, later, _ = round_of(range(400), holdout, trained)
    assert {number: second[number] for number in first} == first
    assert 0.2 < [second[number] for number in range(200, 400)].count(TEST) / 200 < 0.4
    assert later.version == 2
    assert later.name != holdout.name
    again, same, _ = round_of(range(400), later, trained)
    assert again == second
    assert same.name == later.name
    assert Holdout.read(later.data()).table.equals(later.table)


def test_who_trained_is_never_held_out_whatever_the_share() -> None:
    _, holdout, trained = round_of(range(100), Holdout.read(None), set())
    pairs = [pair(number) for number in range(100)]
    splits = assign_splits(pairs, rows(pairs), holdout, trained, share=0.99, seed=5, look_alikes="loose")
    held = set(holdout.table["address"].to_pylist())
    assert {each.image.uri for each, split in zip(pairs, splits, strict=True) if split == TEST} == held


def test_a_look_alike_of_a_held_out_picture_never_trains() -> None:
    base, far = likeness(1), likeness(7)
    first = [pair(1, "test"), pair(2, "train"), pair(7, "train")]
    table = rows(first, {1: base, 7: far})
    holdout = Holdout.read(None).joined_by(snapshot_of(first, table, ["test", "train", "train"]))
    trained = {"s3://b/2.png", "s3://b/7.png"}
    alike = {1: base, 3: base ^ 0b111, 2: base ^ 1, 4: base ^ (2**6 - 1) << 20, 7: far, 8: far ^ 1}
    pairs = [pair(number) for number in (1, 2, 3, 4, 7, 8)]
    found = dealt(pairs, rows(pairs, alike), holdout, trained)
    assert found[1] == TEST
    assert found[3] != "train"  # new, 3 bits away
    assert found[2] == LEFT_OUT  # trained, 1 bit away
    assert found[4] in ("train", TEST)  # 6 bits away: another picture
    assert (found[7], found[8]) == ("train", "train")  # looks like one that trained


def test_chains_of_look_alikes_do_not_reach_training() -> None:
    """Neighbours 4 bits apart each: the third is 8 away from the first, and in another group."""
    code = likeness(3)
    codes = {number: code ^ (2 ** (4 * number) - 1) for number in range(12)}
    for seed in range(6):
        pairs = [pair(number) for number in range(12)]
        table = rows(pairs, codes)
        splits = assign_splits(
            pairs, table, Holdout.read(None), set(), share=0.5, seed=seed, look_alikes="loose"
        )
        held = [codes[number] for number, split in enumerate(splits) if split == TEST]
        for number, split in enumerate(splits):
            if split == "train":
                assert all((codes[number] ^ each).bit_count() > 5 for each in held)


def test_groups_and_splits_of_the_data_are_kept() -> None:
    pairs = [
        pair(0, "test", "a"),
        pair(1, None, "a"),
        pair(2, "val"),
        pair(3, "train", "b"),
        pair(4, None, "b"),
    ]
    table = rows(pairs)
    found = dealt(pairs, table, Holdout.read(None))
    assert [found[number] for number in range(4)] == [TEST, TEST, "val", "train"]
    assert found[4] == "train"
    holdout = Holdout.read(None).joined_by(snapshot_of(pairs, table, list(found.values())))
    later = [*pairs, pair(5, "train", "a"), pair(6, "test", "b")]
    found = dealt(later, rows(later), holdout, {"s3://b/3.png", "s3://b/4.png"})
    assert found[5] == TEST  # of the group of one that is held out, whatever it says
    assert found[6] == LEFT_OUT  # its group has trained


def test_looks_count_on() -> None:
    _, holdout, trained = round_of(range(50), Holdout.read(None), set())
    digests = set(holdout.table["digest"].to_pylist())
    assert holdout.looks == 0
    looked = holdout.looked_at(digests, 1)
    assert looked.looked_at(digests, 1).looks == 1  # done again after a kill
    _, later, _ = round_of(range(100), looked, trained)
    assert later.version == 2
    assert later.looks == 1


@pytest.mark.parametrize("opened", [True, False])
def test_news_are_counted(opened: bool) -> None:
    pairs = [pair(number) for number in range(5)]
    table = rows(pairs)
    before = from_bytes(to_bytes(snapshot_of(pairs, table, ["train"] * 5)))
    assert before is not None
    assert news(before, before).number == 0
    assert unread_news(pairs, before).number == 0
    assert unread_news(pairs, None).new == 5
    touched = Source("s3://b/1.json", "", "file", "another", 1)
    later = [*pairs[1:], pair(9)]
    later[0] = Pair(later[0].item, "1", later[0].image, touched, None)
    found = unread_news(later, before)
    assert (found.new, found.changed, found.removed) == (1, 1, 1)
    snapshot = snapshot_of(later, rows(later), ["train"] * 5)
    read = news(snapshot, before)
    assert (read.new, read.changed, read.removed) == (1, 0, 1)  # another version of the same labels
    place = snapshot.schema.get_field_index("label_digest")
    other = snapshot.set_column(
        place, "label_digest", pa.array([*["x"] * 2, *snapshot["label_digest"].to_pylist()[2:]])
    )
    assert news(other, before).changed == 2


def test_a_snapshot_is_named_by_its_rows() -> None:
    pairs = [pair(number) for number in range(5)]
    order = np.random.default_rng(0).permutation(5).tolist()
    shuffled = [pairs[place] for place in order]
    one, other = (to_bytes(snapshot_of(each, rows(each), ["train"] * 5)) for each in (pairs, shuffled))
    assert name_of(one) == name_of(other)
    assert name_of(one) != name_of(to_bytes(snapshot_of(pairs, rows(pairs), ["val"] * 5)))


@pytest.mark.parametrize("damage", [b"", b"no table", to_bytes(pa.table({"address": ["a"]}))])
def test_a_damaged_table_is_told(damage: bytes) -> None:
    for read, name in ((Holdout.read, "holdout"), (from_bytes, "snapshot")):
        with pytest.raises(JobFailedError, match=f"{name}.parquet is damaged"):
            read(damage)


def test_a_new_look_alike_follows_a_picture_that_is_named_for_val() -> None:
    """As in training: into val rather than train, which would choose its epoch by what it has seen."""
    code = likeness(5)
    pairs = [pair(1, "val"), pair(2), pair(3, "train"), pair(4)]
    table = rows(pairs, {1: code, 2: code ^ 1, 3: ~code & (2**64 - 1), 4: ~code & (2**64 - 1) ^ 1})
    assert dealt(pairs, table, Holdout.read(None)) == {1: "val", 2: "val", 3: "train", 4: "train"}
