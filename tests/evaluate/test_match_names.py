"""Names of labels and addresses of predictions: whose is whose, by the ends of the paths."""

import unicodedata

import pytest

from segray.evaluate.match_names import by_file_name, owners, stem_of


@pytest.mark.parametrize(
    ("path", "stem"),
    [("a.png", "a"), ("val/a.tar.png", "val/a.tar"), ("s3:/b/c.d/a", "s3:/b/c.d/a"), (".hidden", ".hidden")],
)
def test_the_stem_of_a_path(path: str, stem: str) -> None:
    assert stem_of(path) == stem


def test_the_longest_name_at_the_end_of_an_address() -> None:
    names = ["a", "val/a", "train/a", "b"]
    addresses = [
        "file:///data/images/val/a",
        "s3://bucket/train/a",
        "file:///data/images.zip/other/a",
        "file:///data/bb",
        "file:///data/b/c",
        "b",
    ]
    assert owners(names, addresses) == ["val/a", "train/a", "a", None, None, "b"]


def test_accents_in_either_form_are_the_same() -> None:
    name = unicodedata.normalize("NFD", "Łódź/müll")
    assert owners([name], [f"/x/{unicodedata.normalize('NFC', name)}"]) == [name]


def test_the_file_name_alone_where_it_is_clear_on_both_sides() -> None:
    names = ["val/a", "train/b", "val/b", "c", "d", "e"]
    addresses = ["/x/a", "/x/b", "/y/c", "/y/z/val/c", "/v/e", "/w/e", "/w/f"]
    found = owners(names, addresses)
    assert found == [None, None, "c", "c", "e", "e", None]
    assert by_file_name(names, addresses, found) == ["val/a", None, "c", "c", "e", "e", None]
    assert by_file_name(["val/a"], ["/x/a", "/y/a"], [None, None]) == [None, None]
