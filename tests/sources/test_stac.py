"""STAC documents as sources, made by pystac: what is listed is what their Items say; none does harm."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
import pytest
from PIL import Image

from segray.errors import ItemError, SettingsError
from segray.sources.item import Source
from segray.sources.listing import Listing
from segray.sources.name_filter import EXCLUDED, Choice
from segray.sources.stac import MAX_BYTES, asset_of
from segray.storage import StorageSettings
from tests.servers import Server

STORAGE = StorageSettings()
WHEN = datetime(2024, 5, 6, 7, 8, 9, 500_000, tzinfo=UTC)
MICROSECONDS = int(WHEN.timestamp() * 1e6)
TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def listed(source: object, storage: StorageSettings = STORAGE, **choice: Any) -> tuple[list[Source], Listing]:
    listing = Listing([str(source)], storage, Choice(stac=True, **choice))
    return list(listing), listing


def item(name: str, href: str, **assets: dict[str, Any]) -> pystac.Item:
    made = pystac.Item(name, {"type": "Point", "coordinates": [13, 52]}, [13, 52, 13, 52], WHEN, {})
    made.add_asset("picture", pystac.Asset(href, media_type=TIFF, roles=["data"]))
    made.add_asset(
        "preview", pystac.Asset(f"./{name}-small.png", media_type="image/png", roles=["thumbnail"])
    )
    for key, each in assets.items():
        made.assets[key] = pystac.Asset.from_dict(each)
    return made


def save(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document if isinstance(document, dict | list) else document.to_dict()))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, their Items in another folder."""
    for name in "ab":
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / f"images/{name}.tif")
        save(tmp_path / f"items/{name}.json", item(name, f"../images/{name}.tif"))
    save(tmp_path / "items/labels.json", {"images": [], "annotations": []})
    return tmp_path


def names(found: list[Source]) -> list[str]:
    return [source.uri.rpartition("/")[2] for source in found]


def test_an_item(folder: Path) -> None:
    (found,), _ = listed(folder / "items/a.json")
    status = (folder / "images/a.tif").stat()
    assert found == Source(
        f"file://{folder}/images/a.tif",
        found.address,
        "file",
        f"{status.st_size}-{status.st_mtime_ns}",
        status.st_size,
        taken_at=MICROSECONDS,
    )
    plain = Listing([str(folder / "items/a.json")], STORAGE)  # of another verb, to which it is a file
    assert names(list(plain)) == ["a.json"]


def test_a_folder_of_items_and_a_glob(folder: Path) -> None:
    found, listing = listed(folder / "items")
    assert names(found) == ["a.tif", "b.tif"]
    assert dict(listing.left_out) == {".json": 1}  # labels.json
    found, _ = listed(folder / "items/[ab].json")
    assert names(found) == ["a.tif", "b.tif"]


def test_a_folder_with_an_image_is_what_it_was(folder: Path) -> None:
    found, listing = listed(folder)
    assert names(found) == ["a.tif", "b.tif"]
    assert {source.taken_at for source in found} == {None}
    assert dict(listing.left_out) == {".json": 3}
    found, listing = listed(folder, exclude=["*.tif"])
    assert (found, dict(listing.left_out)) == ([], {".json": 3, EXCLUDED: 2})


def test_an_item_collection(folder: Path) -> None:
    items = [item(name, f"images/{name}.tif") for name in "ab"]
    path = save(folder / "all.json", pystac.ItemCollection(items))
    found, _ = listed(path)
    assert names(found) == ["a.tif", "b.tif"]
    assert {source.taken_at for source in found} == {MICROSECONDS}
    found, listing = listed(path, include=["a*"])
    assert (names(found), dict(listing.left_out)) == (["a.tif"], {EXCLUDED: 1})


def test_a_catalog_is_followed_once_around(folder: Path) -> None:
    catalog = pystac.Catalog("root", "of all")
    collection = pystac.Collection(
        "streets",
        "photos",
        pystac.Extent(pystac.SpatialExtent([13.0, 52, 13, 52]), pystac.TemporalExtent([[WHEN, None]])),
    )
    catalog.add_child(collection)
    collection.add_items([item(name, str(folder / f"images/{name}.tif")) for name in "ab"])
    catalog.normalize_and_save(str(folder / "catalog"), pystac.CatalogType.SELF_CONTAINED)
    for name in ("catalog/catalog.json", "catalog/streets/collection.json"):
        found, _ = listed(folder / name)
        assert names(found) == ["a.tif", "b.tif"], name
    child = folder / "catalog/streets/collection.json"
    document = json.loads(child.read_text())
    document["links"] += [
        {"rel": "child", "href": "../catalog.json"},
        {"rel": "item", "href": "gone.json"},
        "?",
    ]
    child.write_text(json.dumps(document))
    found, _ = listed(folder / "catalog/catalog.json")
    assert [(name, each.error_type) for name, each in zip(names(found), found, strict=True)] == [
        ("a.tif", None),
        ("b.tif", None),
        ("gone.json", "missing"),
    ]
    found, listing = listed(folder / "catalog")  # as a folder: by its files
    assert names(found) == ["a.tif", "b.tif"]
    assert dict(listing.left_out) == {".json": 2}


def test_catalogs_may_be_nested_deeply(folder: Path) -> None:
    depth = 1_500  # Python's recursion ends at 1,000
    for at in range(depth):
        links = [{"rel": "child", "href": f"{at + 1}.json"}]
        if at in (0, depth - 1):
            links = [{"rel": "item", "href": f"../items/{'a' if at else 'b'}.json"}, *links[: at == 0]]
        save(folder / f"deep/{at}.json", {"stac_version": "1.0.0", "links": links})
    found, _ = listed(folder / "deep/0.json")
    assert [(name, each.error_type) for name, each in zip(names(found), found, strict=True)] == [
        ("b.tif", None),
        ("a.tif", None),
    ]


VISUAL, DATA = ({"href": f"{role}.tif", "type": TIFF, "roles": [role]} for role in ("visual", "data"))


@pytest.mark.parametrize(
    ("assets", "key", "href"),
    [
        ({"a": DATA, "b": VISUAL}, None, "visual.tif"),
        ({"a": DATA, "visual": {"href": "v.tif", "type": TIFF, "roles": ["data"]}}, None, "v.tif"),
        ({"a": VISUAL, "visual": VISUAL | {"href": "v.tif"}}, None, "v.tif"),
        ({"a": {"href": "a.jpg"}, "b": {"href": "b.xml"}}, None, "a.jpg"),
        ({"a": {"href": "a.jpg?s=1", "roles": None}, "m": DATA | {"roles": ["metadata"]}}, None, "a.jpg?s=1"),
        ({"a": DATA, "b": DATA | {"href": "b.tif"}}, "b", "b.tif"),
        ({"odd": {"href": "x.bin", "type": "application/x"}}, "odd", "x.bin"),
        ({"hdf": DATA | {"type": "application/x-hdf5"}, "i": DATA}, None, "data.tif"),
        ({"a": DATA, "junk": 3, "none": {}, "list": {"href": ["x.tif"]}}, None, "data.tif"),
    ],
)  # fmt: skip
def test_which_asset(assets: dict[str, Any], key: str | None, href: str) -> None:
    assert asset_of({"assets": assets}, key)["href"] == href


@pytest.mark.parametrize(
    ("assets", "key", "kind", "told"),
    [
        ({"b1": DATA, "b2": DATA}, None, "unsupported", "2 assets that may be its image; choose with"),
        ({"x": DATA | {"type": "application/x-hdf5"}}, None, "unsupported", "no asset that is an image"),
        ({}, None, "unsupported", "--asset: none"),
        ({"a": DATA}, "b", "missing", "without an asset b; it has: a"),
        ([], None, "corrupt", "without assets"),
        ({f"b{n}": DATA for n in range(20)}, None, "unsupported", "b11 and 8 more"),
    ],
)  # fmt: skip
def test_no_asset_is_guessed(assets: Any, key: str | None, kind: str, told: str) -> None:
    with pytest.raises(ItemError) as caught:
        asset_of({"assets": assets}, key)
    assert caught.value.error_type == kind
    assert told in caught.value.reason


COLLECTION = b'{"type": "FeatureCollection", "features": [{"type": "Feature"}]}'


def of_asset(href: str) -> bytes:
    return json.dumps({"type": "Feature", "assets": {"a": {"href": href}}}).encode()


HOSTILE: dict[str, tuple[bytes, str, str]] = {
    "cut off": (b'{"type": "Feature", "assets": {', "corrupt", "no JSON"),
    "deep": (b"[" * 200_000, "corrupt", "no JSON"),
    "binary": (b"\xff\xfe\x00", "corrupt", "no JSON"),
    "empty": (b"", "corrupt", "no JSON"),
    "a long number": (b'{"type": ' + b"9" * 5000 + b"}", "corrupt", "no JSON"),
    "a number": (b"3", "unsupported", "not a STAC"),
    "GeoJSON": (COLLECTION, "unsupported", "not a STAC"),
    "assets of text": (b'{"type": "Feature", "assets": "x"}', "corrupt", "without assets"),
    "an address of nothing": (of_asset("http://[.tif"), "unsupported", "no address"),
    "another protocol": (of_asset("gopher://x/a.tif"), "unsupported", "gopher"),
    "a NUL": (of_asset("a\0.tif"), "unsupported", "NUL"),
    "no file": (of_asset("a.tif"), "missing", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_document_costs_itself(folder: Path, name: str) -> None:
    data, kind, told = HOSTILE[name]
    path = folder / "items/a.json"
    path.write_bytes(data)
    (found,), _ = listed(path)
    assert found.error_type == kind
    assert told in str(found.error)
    both, _ = listed(folder / "items")
    is_other = told == "not a STAC"  # in a folder, any JSON may lie
    assert names(both)[-1] == "b.tif"
    assert [each.error_type for each in both] == ([None] if is_other else [kind, None])


def test_hostile_items_of_a_collection_cost_themselves(folder: Path) -> None:
    good = item("a", "images/a.tif").to_dict()
    bad: list[Any] = [
        None,
        3,
        [],
        {},
        {"assets": None},
        {"assets": {}},
        good | {"properties": [], "assets": 1},
    ]
    odd = good | {"properties": {"datetime": {"x": 1}}, "assets": {"v": {"href": "images/b.tif"}}}
    path = save(folder / "all.json", {"type": "FeatureCollection", "features": [*bad, good, odd]})
    found, _ = listed(path)
    assert [each.error_type is None for each in found] == [False] * len(bad) + [True, True]
    assert [each.uri for each in found[:2]] == [f"file://{path}#item=1", f"file://{path}#item=2"]
    assert [each.taken_at for each in found[-2:]] == [MICROSECONDS, None]


def test_a_document_that_is_too_large(folder: Path) -> None:
    with (folder / "items/a.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    (found,), _ = listed(folder / "items/a.json")
    assert found.error_type == "too_large"


def test_no_such_document(folder: Path) -> None:
    with pytest.raises(SettingsError):
        listed(folder / "items/c.json")


def test_a_bucket(s3_server: Server, folder: Path) -> None:
    put: Callable[[str, bytes], None] = s3_server.put
    put("stac/images/a.tif", (folder / "images/a.tif").read_bytes())
    put("stac/items/a.json", (folder / "items/a.json").read_bytes())
    local = item("b", str(folder / "images/b.tif")).to_dict()
    put("stac/items/b.json", json.dumps(local).encode())
    for name, href in (("c", f"local://{folder}/items/a.json"), ("d", str(folder / "items/a.json"))):
        links = [{"rel": "item", "href": href}]
        put(f"stac/{name}.json", json.dumps({"stac_version": "1.0.0", "links": links}).encode())
        (refused,), _ = listed(s3_server.url(f"stac/{name}.json"), s3_server.storage)
        assert (names([refused]), refused.error_type) == ([f"{name}.json"], "unsupported")
    found, _ = listed(s3_server.url("stac/items/"), s3_server.storage)
    assert [
        (name, each.error_type, each.taken_at) for name, each in zip(names(found), found, strict=True)
    ] == [
        ("a.tif", None, MICROSECONDS),
        ("b.json", "unsupported", MICROSECONDS),
    ]
    assert "names a local file" in str(found[1].error)
