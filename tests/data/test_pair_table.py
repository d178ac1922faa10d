"""Pairs in one Arrow table: the same pairs, in little memory."""

import pyarrow as pa
import pytest

from segray.data.labels import LabelRules
from segray.data.pair_reader import Example, Reader
from segray.data.pair_table import as_scanned, pair_table, pairs_at
from segray.data.pairs import Pair, list_pairs
from segray.errors import ItemError
from segray.storage import StorageSettings
from tests.train.squares import write_squares


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Not to be changed."""
    folder = write_squares(tmp_path_factory.mktemp("pairs"))
    return list_pairs(str(folder), StorageSettings()).pairs


def test_the_same_pairs_come_out(pairs: list[Pair]) -> None:
    table = pair_table(pairs)
    for pair, back in zip([pairs[7], pairs[2]], pairs_at(table, [7, 2]), strict=True):
        assert back.split is None
        assert (back.item, back.name, back.image, back.label) == (
            pair.item,
            pair.name,
            pair.image,
            pair.label,
        )
    assert pairs_at(table, []) == []


def test_a_pair_takes_less_than_a_kilobyte(pairs: list[Pair]) -> None:
    number = 1000
    many = (pairs * number)[:number]
    digests = pa.table({name: ["0" * 64] * number for name in ("digest", "label_digest")})
    assert pair_table(many, digests).nbytes / number < 1000


def test_files_that_changed_since_the_survey_are_no_examples(pairs: list[Pair]) -> None:
    good = next(pair for pair in pairs if "broken" not in pair.name)
    (example,) = Reader(LabelRules(2, "binary"), 10_000, StorageSettings()).read([good])
    assert isinstance(example, Example)
    assert as_scanned(example, example.digest, example.label_digest) is example
    for digests, what in (
        (("0" * 64, example.label_digest), "image"),
        ((example.digest, "0" * 64), "label"),
    ):
        told = as_scanned(example, *digests)
        assert isinstance(told, ItemError)
        assert told.reason == f"the {what} changed since the data were scanned"
    error = ItemError("missing", "the file is not there")
    assert as_scanned(error, "", "") is error
