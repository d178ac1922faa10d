"""Pairs from every layout, on disk and in a bucket: what belongs together is found, nothing vanishes."""

import csv
import hashlib
import io
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segray.data.pairs import Pairs, list_pairs
from segray.errors import SettingsError
from segray.sources.item import Source
from segray.sources.listing import Listing
from segray.sources.read_step import fetch_files
from segray.storage import StorageSettings
from tests.servers import LoopbackServer, Server

STORAGE = StorageSettings(attempts=2)


def png(number: int) -> bytes:
    """A file of its own."""
    file = io.BytesIO()
    Image.fromarray(np.array([divmod(number, 256)], np.uint8)).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Place:
    """Somewhere to put a data set."""

    url: str
    storage: StorageSettings
    put: Callable[[str, bytes], None]

    def fill(self, *names: str) -> None:
        """A small picture at each name, no two alike."""
        for number, name in enumerate(names):
            self.put(name, png(number))

    def listed(self, below: str = "", root: str | None = None) -> Pairs:
        """The pairs of the place, or of something in it."""
        return list_pairs(f"{self.url}/{below}".rstrip("/"), self.storage, root)


def on_disk(folder: Path) -> Place:
    def put(name: str, data: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return Place(str(folder), STORAGE, put)


_COUNT = itertools.count()


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place on disk, then one in a bucket."""
    if request.param == "disk":
        return on_disk(tmp_path)
    server: Server = request.getfixturevalue("s3_server")
    prefix = f"pairs-{next(_COUNT)}"
    return Place(server.url(prefix), server.storage, lambda name, data: server.put(f"{prefix}/{name}", data))


def table(rows: Sequence[Sequence[str | None]], columns: list[str], suffix: str) -> bytes:
    """A manifest as a file of the kind that the suffix says."""
    if suffix == ".parquet":
        file = io.BytesIO()
        data = {name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(columns)}
        pq.write_table(pa.table(data), file)
        return file.getvalue()
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue().encode()


def found(pairs: Pairs, place: Place) -> set[tuple[str, str, str | None]]:
    """(image, label, split) of each pair, paths below the place."""
    base = place.url.replace("s3://", "s3:") + "/"

    def short(uri: str) -> str:
        return uri.replace("s3://", "s3:").removeprefix("file://").removeprefix(base)

    return {(short(pair.image.uri), short(pair.label.uri), pair.split) for pair in pairs.pairs}


def reasons(pairs: Pairs) -> dict[str, str]:
    """Last part of the address -> why it was rejected."""
    return {one.uri.rpartition("/")[2]: one.reason for one in pairs.rejected}


LAYOUTS: dict[str, list[tuple[str, str, str | None]]] = {
    "split folders": [
        ("images/train/a.jpg", "labels/train/a.png", "train"),
        ("images/val/a.jpg", "labels/val/a.png", "val"),
        ("images/test/deep/er/b.tif", "labels/test/deep/er/b.png", "test"),
    ],
    "no split folders": [
        ("images/a.png", "labels/a.png", None),
        ("images/x/a.png", "labels/x/a.png", None),
        ("images/train.png", "labels/train.png", None),
    ],
    "masks": [("images/a.png", "masks/a.png", None)],
    "ADE20K": [
        ("images/training/a.jpg", "annotations/training/a.png", "train"),
        ("images/validation/b.jpg", "annotations/validation/b.png", "val"),
    ],
    "some without split": [
        ("images/train/a.jpg", "labels/train/a.png", "train"),
        ("images/more/b.jpg", "labels/more/b.png", None),
    ],
    "splits outside": [
        ("train/images/a.jpg", "train/masks/a.png", "train"),
        ("valid/images/a.jpg", "valid/masks/a.png", "val"),
    ],
    "CamVid": [
        ("train/a.png", "trainannot/a.png", "train"),
        ("train/images/a.png", "trainannot/images/a.png", "train"),
        ("val/a.png", "valannot/a.png", "val"),
        ("test/a.png", "testannot/a.png", "test"),
    ],
    "capitals": [("Images/Train/A.JPG", "Labels/Train/A.PNG", "train")],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders(place: Place, layout: str) -> None:
    """Each file of a layout is in the one pair that it belongs to, and other files are counted."""
    rows = LAYOUTS[layout]
    place.fill(*(name for image, label, _ in rows for name in (image, label)))
    place.put("README.md", b"words")
    place.put("preview/a.png", png(0))
    listed = place.listed()
    assert found(listed, place) == set(rows)
    assert listed.counts() == {"pairs": len(rows), "ignored": 2}
    assert {pair.name for pair in listed.pairs} == {image for image, _, _ in rows}


def test_what_a_pair_holds(place: Place) -> None:
    place.fill("images/a.png", "labels/a.png")
    (pair,) = place.listed().pairs
    assert pair.item == hashlib.sha256(pair.image.uri.encode()).hexdigest()[:32]
    assert pair.image.version
    rows = [table["data"].to_pylist() for table in fetch_files([pair.image, pair.label], place.storage)]
    assert list(itertools.chain(*rows)) == [png(0), png(1)]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_manifests(place: Place, suffix: str) -> None:
    """Relative to the manifest, with `..`, and absolute; splits by several names, and none."""
    place.fill("sub/i/a.png", "sub/m/a.png", "i/b.png", "m/b.png", "i/c.png", "m/c.png", "i/d.png")
    rows = [
        ("m/a.png", "Train", "i/a.png"),
        ("../m/b.png", None, "../i/b.png"),
        (f"{place.url}/m/c.png", "validation", f"{place.url}/i/c.png"),
        ("../m/b.png", " ", "../i/d.png"),
    ]
    place.put(f"sub/data{suffix}", table(rows, ["masks", "split", "images"], suffix))
    listed = place.listed(f"sub/data{suffix}")
    assert found(listed, place) == {
        ("sub/i/a.png", "sub/m/a.png", "train"),
        ("i/b.png", "m/b.png", None),
        ("i/c.png", "m/c.png", "val"),
        ("i/d.png", "m/b.png", None),  # one label may serve two images
    }
    assert listed.counts() == {"pairs": 4, "ignored": 0}
    assert "i/a.png" in {pair.name for pair in listed.pairs}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_groups_that_a_manifest_names(place: Place, suffix: str) -> None:
    place.fill("i/a.png", "i/b.png", "i/c.png", "m.png")
    rows = [("cam 1 ", "i/a.png", "m.png"), (None, "i/b.png", "m.png"), (" ", "i/c.png", "m.png")]
    place.put(f"data{suffix}", table(rows, ["group", "images", "masks"], suffix))
    groups = {pair.name: pair.group for pair in place.listed(f"data{suffix}").pairs}
    assert groups == {"i/a.png": "cam 1", "i/b.png": None, "i/c.png": None}


def test_groups_that_are_numbers(place: Place) -> None:
    place.fill("i/a.png", "i/b.png", "m.png")
    file = io.BytesIO()
    columns = {"images": ["i/a.png", "i/b.png"], "masks": ["m.png"] * 2, "group": [7, None]}
    pq.write_table(pa.table(columns), file)
    place.put("data.parquet", file.getvalue())
    assert [pair.group for pair in place.listed("data.parquet").pairs] == ["7", None]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_root(place: Place, slash: str) -> None:
    """Paths of the published form: relative to a folder above the manifest, some absolute."""
    place.fill("set/i/a.png", "set/m/a.png", "set/i/b.png", "set/m/b.png")
    rows = [("set/m/a.png", "set/i/a.png"), (f"{place.url}/set/m/b.png", "set/i/b.png")]
    place.put("set/train.csv", table(rows, ["masks", "images"], ".csv"))
    listed = place.listed("set/train.csv", root=place.url + slash)
    assert found(listed, place) == {
        ("set/i/a.png", "set/m/a.png", None),
        ("set/i/b.png", "set/m/b.png", None),
    }
    assert listed.pairs[0].name == "set/i/a.png"
    with pytest.raises(SettingsError, match=r"no_image 2.*the file is not there"):
        place.listed("set/train.csv")
    place.fill("images/a.png", "labels/a.png")
    with pytest.raises(SettingsError, match="a root is for manifests and lists"):
        place.listed(root=place.url)


def test_the_root_of_the_disk(tmp_path: Path) -> None:
    place = on_disk(tmp_path)
    place.fill("i/a.png", "m/a.png")
    folder = str(tmp_path).removeprefix("/")
    place.put("p.csv", table([(f"{folder}/i/a.png", f"{folder}/m/a.png")], ["images", "masks"], ".csv"))
    (pair,) = place.listed("p.csv", root="/").pairs
    assert pair.image.uri == f"file://{tmp_path}/i/a.png"
    assert pair.name == f"{folder}/i/a.png"


class Quiet(SimpleHTTPRequestHandler):
    """The files of a folder."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_a_manifest_on_a_web_server(tmp_path: Path) -> None:
    """Its signature is no part of the folder that its rows are relative to, and is never shown."""
    place = on_disk(tmp_path)
    place.fill("sub/i/a.png", "sub/m/a.png")
    rows = [("i/a.png", "m/a.png?key=hunter2"), ("i/gone.png?key=hunter2", "m/a.png")]
    place.put("sub/p.csv", table(rows, ["images", "masks"], ".csv"))
    server = LoopbackServer(partial(Quiet, directory=str(tmp_path)))
    with server.serving():
        listed = list_pairs(f"{server.endpoint}/sub/p.csv?signature=hunter2/x", STORAGE)
    (pair,) = listed.pairs
    assert pair.image.uri == f"{server.endpoint}/sub/i/a.png"
    assert pair.label.uri == f"{server.endpoint}/sub/m/a.png"
    assert pair.label.address.endswith("?key=hunter2")
    assert pair.name == "i/a.png"
    assert reasons(listed) == {"gone.png": "no_image"}
    assert "hunter2" not in repr([listed.rejected, pair.name])


@pytest.mark.parametrize("separator", [" ", "  \t ", "\t", ",", ", "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_lists_of_splits(tmp_path: Path, separator: str, end: str) -> None:
    place = on_disk(tmp_path)
    names = [(f"{split}/{n}.png", f"{split}annot/{n}.png", split) for split in ("train", "val") for n in "ab"]
    place.fill(*(name for image, label, _ in names for name in (image, label)), "train/left-out.png")
    for split in ("train", "val"):
        lines = [f"{image}{separator}{label}" for image, label, of in names if of == split]
        place.put(f"{split}.txt", end.join(lines).encode("utf-8-sig"))
    listed = place.listed()
    assert found(listed, place) == set(names)
    assert listed.counts() == {"pairs": 4, "ignored": 0}
    only = place.listed("train.txt")
    assert found(only, place) == {(image, label, None) for image, label, of in names if of == "train"}


def test_lists_in_a_bucket_and_below_a_root(place: Place) -> None:
    place.fill("far/i/a.png", "far/m/a.png", "far/i/b.png", "far/m/b.png")
    place.put("lists/train.txt", b"i/a.png m/a.png\n")
    place.put("lists/valid.txt", b"i/b.png m/b.png\n")
    rows = {("far/i/a.png", "far/m/a.png", "train"), ("far/i/b.png", "far/m/b.png", "val")}
    assert found(place.listed("lists", root=f"{place.url}/far"), place) == rows


def test_a_list_with_the_suffix_of_a_manifest(place: Place) -> None:
    place.fill("a.png", "a-label.png")
    place.put("pairs.csv", b"a.png,a-label.png")
    assert found(place.listed("pairs.csv"), place) == {("a.png", "a-label.png", None)}


HOSTILE = [
    "a b.PNG", "naïve ü 日本.Png", "50%.png", "what?.png", "#1.png", "x&y=z;.png", "a.b.c.png", "[a-z]*.png",
    "-rf.png", "it's.png", "+.png", "a:b@c.png", "~.png",
]  # fmt: skip


def test_hostile_names_in_folders(place: Place) -> None:
    """The same names in two folders, labels with another suffix: each image with its own label."""
    rows = {
        (f"images/{sub}{name}", f"labels/{sub}{name.rpartition('.')[0]}.tif", None)
        for name in HOSTILE
        for sub in ("", "in #2?/")
    }
    place.fill(*(name for image, label, _ in rows for name in (image, label)))
    listed = place.listed()
    assert found(listed, place) == rows
    sent = [
        table["data"].to_pylist() for table in fetch_files([p.label for p in listed.pairs], place.storage)
    ]
    assert all(itertools.chain(*sent))
    assert len({pair.item for pair in listed.pairs}) == len(rows)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_hostile_names_in_manifests(place: Place, suffix: str) -> None:
    names = [*HOSTILE, "a,b.png", 'a"b.png']
    rows = [(f"i #?/{name}", f"m/{name}") for name in names]
    place.fill(*(f"who? #1/{name}" for row in rows for name in row))
    place.put(f"who? #1/pairs{suffix}", table(rows, ["images", "masks"], suffix))
    listed = place.listed(f"who? #1/pairs{suffix}")
    assert found(listed, place) == {(f"who? #1/{i}", f"who? #1/{m}", None) for i, m in rows}


def test_accents_in_either_form(place: Place) -> None:
    """A Mac stores é as two letters: the pair is one all the same."""
    place.fill("images/caf\u00e9.jpg", "labels/cafe\u0301.png")
    assert place.listed().counts() == {"pairs": 1, "ignored": 0}


def test_what_is_no_pair_in_folders(place: Place) -> None:
    place.fill(
        *("images/ok.jpg", "labels/ok.png"),
        *("images/alone.jpg", "labels/orphan.png"),
        *("images/twin.jpg", "images/twin.png", "labels/twin.png"),
        *("images/two.jpg", "labels/two.png", "labels/two.tif"),
        *("images/three.jpg", "labels/three.png", "masks/three.png"),
        *("images/phone.jxl", "labels/phone.png"),
        *("images/case.jpg", "labels/CASE.png"),
        *("images/old.jpg", "labels/old.tga"),
        "images/more.tar.gz",
    )
    place.put("labels/ok.txt", b"0 0.5 0.5 1 1")
    listed = place.listed()
    assert found(listed, place) == {("images/ok.jpg", "labels/ok.png", None)}
    assert reasons(listed) == {
        "alone.jpg": "no_label",
        "orphan.png": "no_image",
        "twin.jpg": "ambiguous",
        "twin.png": "ambiguous",
        "two.jpg": "ambiguous",
        "three.jpg": "ambiguous",
        "phone.jxl": "unsupported",
        "case.jpg": "no_label",
        "CASE.png": "no_image",
        "old.jpg": "unsupported",
        "more.tar.gz": "unsupported",
    }
    assert listed.counts() == {
        "pairs": 1, "ambiguous": 4, "no_image": 2, "no_label": 2, "unsupported": 3, "ignored": 1
    }  # fmt: skip
    errors = {one.uri.rpartition("/")[2]: one.error for one in listed.rejected}
    assert "labels/two.png" in errors["two.jpg"]
    assert "labels/two.tif" in errors["two.jpg"]
    assert ".jxl" in errors["phone.jxl"]
    assert "old.tga" in errors["old.jpg"]


def test_nothing_vanishes(tmp_path: Path) -> None:
    """Random subsets of names and suffixes: every file is in a pair, rejected, named in one, or ignored."""
    for seed in range(30):
        place, draw = on_disk(tmp_path / str(seed)), random.Random(seed)
        names = {
            f"{folder}/{draw.choice(['', 'train/', 'x/'])}{draw.randrange(6)}{suffix}"
            for folder, suffixes in (
                ("images", [".jpg", ".png", ".txt"]),
                ("labels", [".png", ".tif", ".md"]),
            )
            for suffix in suffixes
            for _ in range(5)
        }
        place.fill("images/sure.png", "labels/sure.png", *sorted(names))
        listed = place.listed()
        told = [pair.image.uri + pair.label.uri for pair in listed.pairs]
        told += [one.uri + one.error for one in listed.rejected]
        pictures = {name for name in names if not name.endswith((".txt", ".md"))}
        assert [name for name in pictures if not any(name in words for words in told)] == []
        assert listed.ignored == len(names) - len(pictures)
        images = {one.uri for one in listed.rejected if "/images/" in one.uri}
        assert len(images) + len(listed.pairs) == 1 + sum(name.startswith("images") for name in pictures)
        assert images.isdisjoint(pair.image.uri for pair in listed.pairs)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    place = on_disk(tmp_path)
    place.fill("images/ok.png", "labels/ok.png", "labels/link.png", "images/half.png")
    (tmp_path / "images/link.png").symlink_to("gone.png")
    (tmp_path / "labels/half.png").symlink_to("gone.png")
    assert reasons(place.listed()) == {"link.png": "no_image", "half.png": "no_label"}


def test_what_is_no_pair_in_manifests(place: Place) -> None:
    place.fill("a.png", "a-label.png", "b.png", "c.png", "c-label.png", "d.png", "x.jxl")
    rows = [
        ("a.png", "a-label.png"),
        ("b.png", "gone-label.png"),
        ("gone.png", "a-label.png"),
        ("c.png", "c-label.png"),
        ("./c.png", f"{place.url}/c-label.png"),
        ("d.png", "a-label.png"),
        ("d.png", "c-label.png"),
        ("", "a-label.png"),
        ("b.png", ""),
        ("x.jxl", "a-label.png"),
        ("foo://x/y.png", "a-label.png"),
    ]
    place.put("pairs.csv", table(rows, ["images", "masks"], ".csv"))
    listed = place.listed("pairs.csv")
    assert found(listed, place) == {("a.png", "a-label.png", None), ("c.png", "c-label.png", None)}
    assert sorted((one.uri.rpartition("/")[2], one.reason) for one in listed.rejected) == sorted(
        [
            ("b.png", "no_label"),
            ("gone.png", "no_image"),
            ("pairs.csv#row=5", "listed_twice"),
            ("pairs.csv#row=6", "ambiguous"),
            ("pairs.csv#row=7", "ambiguous"),
            ("pairs.csv#row=8", "no_image"),
            ("b.png", "no_label"),
            ("x.jxl", "unsupported"),
            ("y.png", "unsupported"),
        ]
    )
    assert len(listed.pairs) + len(listed.rejected) == len(rows)


def test_a_pair_in_two_splits_is_held_out(tmp_path: Path) -> None:
    """Whatever the order of the rows: nothing that is tested is trained on."""
    place = on_disk(tmp_path)
    place.fill("a.png", "m.png", "b.png")
    rows = [
        ("a.png", "m.png", "train"),
        ("a.png", "m.png", "test"),
        ("a.png", "m.png", "val"),
        ("b.png", "m.png", None),
        ("b.png", "m.png", "train"),
    ]
    for order in itertools.permutations(rows):
        place.put("p.parquet", table(order, ["images", "masks", "split"], ".parquet"))
        listed = place.listed("p.parquet")
        assert found(listed, place) == {("a.png", "m.png", "test"), ("b.png", "m.png", "train")}
        assert listed.counts() == {"pairs": 2, "listed_twice": 3, "ignored": 0}


def test_lines_of_lists_that_are_no_pairs(tmp_path: Path) -> None:
    place = on_disk(tmp_path)
    place.fill("a.png", "m.png", "b c.png")
    place.put("l.txt", b"a.png m.png\nb c.png m.png\n\na.png\n   \n")
    listed = place.listed("l.txt")
    assert found(listed, place) == {("a.png", "m.png", None)}
    assert reasons(listed) == {"l.txt#row=2": "ambiguous", "a.png": "no_label"}
    assert "need a comma or a tab" in {one.reason: one.error for one in listed.rejected}["ambiguous"]


def test_pairs_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    place = on_disk(tmp_path)
    place.fill(*(f"{n}.png" for n in range(20)), "m.png")
    rows = [(f"{n % 25}.png", "m.png") for n in range(40)]
    seen = []
    for seed in range(4):
        random.Random(seed).shuffle(rows)
        place.put("p.csv", table(rows, ["images", "masks"], ".csv"))
        listed = place.listed("p.csv")
        seen.append((listed.pairs, listed.counts()))
    assert all(one == seen[0] for one in seen)
    assert seen[0][1] == {"pairs": 20, "listed_twice": 15, "no_image": 5, "ignored": 0}


def test_many_rows_keep_their_labels(tmp_path: Path) -> None:
    """More rows than are looked up at a time."""
    place = on_disk(tmp_path)
    place.fill(*(f"{kind}{n}.png" for kind in "im" for n in range(600)))
    rows = [(f"i{n}.png", f"m{n}.png") for n in range(600)]
    place.put("p.parquet", table(rows, ["images", "masks"], ".parquet"))
    assert found(place.listed("p.parquet"), place) == {(image, label, None) for image, label in rows}


def test_a_long_field_of_another_column_is_no_matter(tmp_path: Path) -> None:
    """Python's csv ends at 131,072 letters."""
    place = on_disk(tmp_path)
    place.fill("a.png", "b.png")
    place.put("p.csv", b"images,masks,caption\na.png,b.png," + b"x" * 200_000 + b"\n")
    assert [pair.name for pair in place.listed("p.csv").pairs] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", b"image,mask\na.png,b.png\n", "needs the columns images and masks.*it has: image, mask$"),
        ("p.csv", b"images,labels\na.png,b.png\n", "it has: images, labels$"),
        ("p.csv", b"images;masks\na.png;b.png\n", "it has: images;masks$"),
        ("p.csv", b"images,masks,masks\na.png,b.png,c.png\n", "column masks occurs more than once"),
        ("p.csv", b"", "it has: none"),
        ("p.csv", b"images,masks\n", "pairs 0"),
        ("p.csv", b"https://u:pw@h/a.png?sig=pw\n", r"it has: https://h/a\.png$"),
        ("p.csv", b"images,masks\n\xff,b\n", "not UTF-8"),
        (
            "p.csv",
            b"images,masks,split\na.png,a.png,holdout\n",
            r"p\.csv#row=1: split 'holdout' is not one of",
        ),
        ("p.csv", b"images,masks\n" + b"x" * (65 << 20) + b",b\n", "field limit"),
        ("p.csv", b"images,masks\na\0.png,b.png\n", r"unsupported 1.*row 1 of the manifest is no address"),
        ("p.txt", b"2007_000032\n2007_000033\n", "two names of images a line; it has: 2007_000032$"),
        ("p.parquet", b"nonsense", "cannot be read"),
        ("p.parquet", table([("a", "b")], ["images", "url"], ".parquet"), "it has: images, url$"),
        ("p.json", b"{}", "COCO JSON is data for instance models"),
        ("p.zip", b"", "a .txt list: unpack it$"),
        ("p.png", b"", "data is a folder"),
    ],
)
def test_files_that_cannot_be_used(place: Place, name: str, content: bytes, words: str) -> None:
    """One line that names the file, without secrets."""
    place.fill("a.png")
    place.put(name, content)
    with pytest.raises(SettingsError, match=words) as caught:
        place.listed(name)
    said = str(caught.value)
    assert name in said
    assert said.isprintable()
    assert "pw" not in said


def test_a_column_that_is_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"images": ["a"], "masks": [1]}), tmp_path / "p.parquet")
    with pytest.raises(SettingsError, match="column masks must be text, it is int64"):
        list_pairs(str(tmp_path / "p.parquet"), STORAGE)


def test_folders_that_cannot_be_used(place: Place) -> None:
    place.put("train.csv", b"images,masks\n")
    place.fill("Photos/a.png")
    with pytest.raises(
        SettingsError, match=r"it needs images/ and labels/.*it has Photos/, of other files 1"
    ):
        place.listed()
    place.fill("images/a.png", "images/b.png")
    with pytest.raises(SettingsError, match=r"pairs 0, no_label 2, ignored 2.*images/a\.png: no label has"):
        place.listed()
    for missing in ("gone", "gone.csv"):
        with pytest.raises(SettingsError, match=f"{missing}: (no such file|the file is not there)"):
            place.listed(missing)


def test_secrets_are_not_told(s3_server: Server) -> None:
    """Neither of the data's own URL nor of a row's."""
    with pytest.raises(SettingsError) as caught:
        list_pairs("s3://user:hunter2@test-bucket/x", s3_server.storage)
    assert "hunter2" not in str(caught.value)
    rows = [("a.png", "a.png"), ("s3://user:hunter2@test-bucket/x.png", "a.png")]
    s3_server.put("secrets/a.png", png(1))
    s3_server.put("secrets/p.csv", table(rows, ["images", "masks"], ".csv"))
    listed = list_pairs(s3_server.url("secrets/p.csv"), s3_server.storage)
    assert len(listed.rejected) == 1
    assert "hunter2" not in repr(listed.rejected)


def test_folders_listed_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of a storage is not ours: the result is the same in any."""
    place = on_disk(tmp_path)
    place.fill(*(f"{kind}/{sub}/{n}.png" for kind in ("images", "masks") for sub in "xy" for n in range(5)))
    place.fill("images/x/alone.png", "images/z.png", "masks/y/orphan.png")
    expected = place.listed()

    class Backwards(Listing):
        def __iter__(self) -> Iterator[Source]:
            return reversed(list(super().__iter__()))

    monkeypatch.setattr("segray.data.pair_folders.Listing", Backwards)
    assert place.listed() == expected
    assert expected.counts() == {"pairs": 10, "no_image": 1, "no_label": 2, "ignored": 0}
