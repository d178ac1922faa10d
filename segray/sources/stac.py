"""STAC documents -> the image of each Item: https://github.com/radiantearth/stac-spec, versions 0.9 to 1.1.

Item             its asset, see `asset_of`
ItemCollection   each of its Items; links to further pages are not followed
Catalog, Collection   where the user named it: its links to Items and to other catalogs, followed

A document that cannot be used costs itself: it becomes a Source with an error. Nothing in it is trusted: it
is read up to a limit, a catalog is opened once, and a remote document cannot name a local file.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any
from urllib.parse import urljoin, urlsplit

from segray.errors import ErrorType, ItemError
from segray.sources.item import Source
from segray.sources.local import local_source
from segray.sources.manifest import absolute, base_of, look_up_rows
from segray.sources.names import fault, is_image_name, one_line
from segray.sources.read_step import read_all
from segray.sources.taken import utc_of
from segray.storage import EXTRAS, StorageSettings, canonical_uri, split_protocol

MAX_BYTES = 64 << 20
"""Largest document; as Python objects it takes ten times as much."""
_TOGETHER, _LOOKED_UP = 32, 512
"""Documents read at a time; assets looked up at a time."""
_CATALOGS = 10_000
_NAMED_KEYS = 12
_NO_IMAGE = ("thumbnail", "overview", "metadata")
"""Roles of assets that are not the item's image."""
_OTHER = "JSON, but not a STAC Item, ItemCollection, Catalog or Collection"


def is_stac_name(name: str) -> bool:
    """Return whether a file that the user names may be a STAC document."""
    return name.lower().endswith((".json", ".geojson"))


@dataclass
class StacReader:
    """`images` yields the Sources of documents."""

    storage: StorageSettings
    asset: str | None = None
    """Key of the asset to take; None: see `asset_of`."""
    _opened: set[str] = field(default_factory=set)
    """Catalogs."""
    used: int = 0
    """Number of documents that were Items or ItemCollections, or could not be read."""

    def images(self, files: Iterable[Source], *, follow: bool) -> Iterator[Source]:
        """Yield the image of each Item in some documents; a Source with an error where there is none.

        follow: open what catalogs link to. Without it, documents that are catalogs or no STAC are skipped.
        """
        opened = [self._read(files)]  # of each catalog what is left of its links: no depth is too deep
        while opened:
            file, data = next(opened[-1], (None, b""))
            if file is None:
                opened.pop()
                continue
            self.used += 1
            try:
                document = _parsed(data)
                if (items := _items_of(document)) is not None:
                    yield from self._of_items(file, items)
                elif not follow:
                    self.used -= 1
                else:
                    opened.append(self._read(self._links(file, document)))
            except ItemError as error:
                yield _rejected(file, error)

    def _read(self, files: Iterable[Source]) -> Iterator[tuple[Source, bytes | ItemError]]:
        left = iter(files)
        while some := list(islice(left, _TOGETHER)):
            yield from zip(some, read_all(some, self.storage, MAX_BYTES), strict=True)

    def _of_items(self, file: Source, items: Sequence[Any]) -> Iterator[Source]:
        numbered = iter(enumerate(items, start=1))
        while some := list(islice(numbered, _LOOKED_UP)):
            found: dict[int, Source] = {}
            addresses: list[tuple[int, str | None]] = []
            for number, item in some:
                try:
                    addresses.append((number, _address(file, asset_of(item, self.asset)["href"])))
                except ItemError as error:
                    found[number] = _rejected(file, error, number if len(items) > 1 else None)
            there = look_up_rows(addresses, file, base_of(file), self.storage)
            found |= {number: source for (number, _), source in zip(addresses, there, strict=True)}
            for number, item in some:
                yield replace(found[number], taken_at=_taken_at(item))

    def _links(self, file: Source, catalog: Any) -> Iterable[Source]:
        """Return the documents that a catalog links to: none where it was opened before. Raises ItemError."""
        if not _is_catalog(catalog):
            raise ItemError("unsupported", _OTHER)
        if file.uri in self._opened:
            return ()
        if len(self._opened) >= _CATALOGS:
            raise ItemError("too_large", f"more than {_CATALOGS:,} catalogs link to each other")
        self._opened.add(file.uri)
        links = catalog["links"]
        hrefs = [link.get("href") for kind in ("item", "child") for link in links if _is_link(link, kind)]
        return (self._linked(file, href) for href in hrefs)

    def _linked(self, file: Source, href: Any) -> Source:
        """Return a document that another one links to."""
        try:
            address = _address(file, href)
        except ItemError as error:
            return _rejected(file, error)
        if split_protocol(address)[0] == "file":
            return local_source(canonical_uri(address).removeprefix("file://"))
        return Source(canonical_uri(address), address, "file", "", -1)


def _parsed(data: bytes | ItemError) -> Any:
    """Return a document. Raises ItemError."""
    if isinstance(data, ItemError):
        raise data
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ItemError("corrupt", f"a STAC document that is no JSON: {fault(error)}") from error


def _items_of(document: Any) -> list[Any] | None:
    """Return the Items of an Item or ItemCollection; None of anything else."""
    kind = document.get("type") if isinstance(document, dict) else None
    if kind == "Feature" and "assets" in document:
        return [document]
    if kind == "FeatureCollection" and _holds_items(document.get("features")):
        return list(document["features"])
    return None


def _holds_items(features: Any) -> bool:
    known = features if isinstance(features, list) else []
    return any(isinstance(each, dict) and "assets" in each for each in known)


def _is_catalog(document: Any) -> bool:
    is_stac = isinstance(document, dict) and "stac_version" in document
    return is_stac and isinstance(document.get("links"), list)


def _is_link(link: Any, relation: str) -> bool:
    return isinstance(link, dict) and link.get("rel") == relation


def asset_of(item: Any, key: str | None = None) -> dict[str, Any]:
    """Return the asset of an Item that is its image: that of the key, else the one to look at.

    Assets of an image's media type (or suffix, without one) count: those with the role or key `visual`, else
    those with the role `data`, else those that are no thumbnail, overview or metadata. Of several one whose
    key is `visual`, `data` or `image` is taken. Raises ItemError where none or several are left.
    """
    assets = item.get("assets") if isinstance(item, dict) else None
    if not isinstance(assets, dict):
        raise ItemError("corrupt", "a STAC Item without assets")
    usable = {name: each for name, each in assets.items() if _has_href(each)}
    if key is not None:
        if key not in usable:
            raise ItemError("missing", f"a STAC Item without an asset {key}; it has: {_listed(usable)}")
        return dict(usable[key])
    images = {name: each for name, each in usable.items() if _is_image(each)}
    chosen = (
        [name for name, each in images.items() if name == "visual" or "visual" in _roles(each)]
        or [name for name, each in images.items() if "data" in _roles(each)]
        or [name for name, each in images.items() if not {*_NO_IMAGE} & {*_roles(each)}]
    )
    chosen = [name for name in ("visual", "data", "image") if name in chosen][:1] or chosen
    if len(chosen) != 1:
        what = f"{len(chosen)} assets that may be its image" if chosen else "no asset that is an image"
        raise ItemError("unsupported", f"a STAC Item with {what}; choose with --asset: {_listed(usable)}")
    return dict(usable[chosen[0]])


def _has_href(asset: Any) -> bool:
    return isinstance(asset, dict) and isinstance(asset.get("href"), str) and bool(asset["href"].strip())


def _roles(asset: Mapping[str, Any]) -> list[str]:
    roles = asset.get("roles")
    return [role for role in roles if isinstance(role, str)] if isinstance(roles, list) else []


def _is_image(asset: Mapping[str, Any]) -> bool:
    kind = asset.get("type")
    if isinstance(kind, str):
        return kind.lower().startswith("image/")
    return is_image_name(asset["href"].partition("?")[0])


def _listed(assets: Mapping[str, Any]) -> str:
    names = [one_line(name)[:60] for name in assets]
    more = f" and {len(names) - _NAMED_KEYS} more" if len(names) > _NAMED_KEYS else ""
    return (", ".join(names[:_NAMED_KEYS]) or "none") + more


def _address(file: Source, href: Any) -> str:
    """Return the absolute address of a document's link. Raises ItemError."""
    if not isinstance(href, str) or not href.strip():
        raise ItemError("corrupt", "a STAC document with a link to nothing")
    try:
        is_web = file.address.startswith(("http://", "https://"))
        address = urljoin(file.address, href) if is_web else absolute(href, base_of(file))
        protocol, _ = split_protocol(address)
        canonical_uri(address)
        urlsplit(address)
    except (ValueError, RuntimeError) as error:
        raise ItemError("unsupported", "a STAC document with a link that is no address") from error
    if protocol not in ("file", *EXTRAS):
        raise ItemError("unsupported", f"a STAC document with a link of an unknown protocol {protocol}://")
    if protocol == "file" and split_protocol(file.address)[0] != "file":
        raise ItemError("unsupported", "a STAC document of a remote storage that names a local file")
    return address


def _taken_at(item: Any) -> int | None:
    properties = item.get("properties") if isinstance(item, dict) else None
    return utc_of(properties.get("datetime")) if isinstance(properties, dict) else None


def _rejected(file: Source, error: ItemError, number: int | None = None) -> Source:
    """Return a document, or the Item of that number in it, as an item with an error."""
    uri = file.uri if number is None else f"{file.uri}#item={number}"
    kind: ErrorType = error.error_type
    return Source(uri, uri, "file", file.version, -1, kind, error.reason)
