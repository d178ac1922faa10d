"""Match names of labels and addresses of predictions, by their paths from the end.

    labels    val/a.png, as they are below their folder, or `file_name` of COCO JSON
    address   file:///data/images/val/a.jpg, or that of an archive followed by the member

A prediction belongs to the longest name that is the end of its address; whole parts of the path are compared.
So `val/a` and `train/a` are kept apart, and the folders of images and labels do not matter.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from segray.sources.names import without_suffix


def stem_of(path: str) -> str:
    """Return the path without the suffix of its last part."""
    return without_suffix(path)


def owners(names: Iterable[str], addresses: Sequence[str]) -> list[str | None]:
    """Return the name that each address belongs to; None for those that belong to none.

    Several addresses may have one name: the caller decides.
    """
    known = {_normal(name): name for name in names}
    return [_longest_end(address, known) for address in addresses]


def by_file_name(
    names: Iterable[str], addresses: Sequence[str], found: Sequence[str | None]
) -> list[str | None]:
    """Return `found` (of `owners`), completed by file names that each side has exactly once."""
    taken, names = set(found), list(names)
    ends = Counter(map(_last, names))
    lonely = {_last(name): name for name in names if name not in taken and ends[_last(name)] == 1}
    both = list(zip(addresses, found, strict=True))
    left = Counter(_last(address) for address, owner in both if owner is None)
    return [
        lonely.get(_last(address)) if owner is None and left[_last(address)] == 1 else owner
        for address, owner in both
    ]


def _longest_end(address: str, known: dict[str, str]) -> str | None:
    end = _normal(address)
    while end:
        if end in known:
            return known[end]
        _, _, end = end.partition("/")
    return None


def _last(address: str) -> str:
    return _normal(address).rpartition("/")[2]


def _normal(path: str) -> str:
    """Return the path in NFC, as Macs write the decomposed form of accents; without leading `./` and `/`."""
    return unicodedata.normalize("NFC", path).removeprefix("./").lstrip("/")
