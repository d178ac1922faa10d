"""Files in object stores, page by page: 1,000 names in memory, for buckets of any size.

fsspec lists a whole folder before it returns the first name, so S3, Google and Azure are asked for pages
directly; other storages are walked folder by folder.
"""

from collections.abc import Callable, Iterator
from typing import Any

from fsspec.asyn import sync
from fsspec.spec import AbstractFileSystem

from segray.retries import retrying
from segray.sources.item import Source
from segray.storage import OBJECT_STORES, StorageSettings, canonical_uri

_PAGE = 1000
Page = tuple[list[tuple[str, dict[str, Any]]], str | None]
"""((path, info) of each file, token of the next page)."""


def remote_uri(protocol: str, path: str) -> str:
    """Return the canonical URL of a path in a filesystem; a key that only looks signed is kept."""
    if protocol in OBJECT_STORES:
        return f"{protocol}://{path.lstrip('/')}"
    is_whole = protocol in ("http", "https")
    return canonical_uri(path if is_whole else f"{protocol}://{path.lstrip('/')}")


def remote_source(protocol: str, path: str, info: dict[str, Any]) -> Source:
    """Return a file of a remote listing as a Source of kind `file`."""
    size = info.get("size")
    address = path if "://" in path else f"{protocol}://{path.lstrip('/')}"
    return Source(
        remote_uri(protocol, path), address, "file", _version(info), -1 if size is None else int(size)
    )


def _version(info: dict[str, Any]) -> str:
    """Return the ETag; Google's object hash or generation where there is none; else size and time."""
    for name in ("ETag", "etag", "md5Hash", "generation"):
        if info.get(name):
            return str(info[name]).strip('"')
    times = (info.get(name) for name in ("mtime", "LastModified", "last_modified", "updated", "created"))
    time = next((str(time) for time in times if time), "")
    return f"{info.get('size')}-{time}" if time else ""


def list_files(
    filesystem: AbstractFileSystem,
    protocol: str,
    prefix: str,
    enters: Callable[[str], bool],
    storage: StorageSettings,
) -> Iterator[Source]:
    """Yield every file whose path begins with `prefix` (a folder's ends in `/`), in the storage's order.

    Raises what the storage raises when retries are used up.
    """
    page = _PAGERS.get(protocol)
    if page is None:
        yield from _walk(filesystem, protocol, prefix.rpartition("/")[0] or "/", enters, storage)
        return
    bucket, _, key = prefix.partition("/")
    mark: str | None = None
    while True:
        files, mark = retrying(lambda mark=mark: page(filesystem, bucket, key, mark), storage)  # type: ignore[misc]
        for path, info in files:
            if not path.endswith("/"):  # the marker that consoles leave for an empty folder
                yield remote_source(protocol, path, info)
        if not mark:
            return


def _s3_page(filesystem: Any, bucket: str, prefix: str, mark: str | None) -> Page:
    more = {"ContinuationToken": mark} if mark else {}
    answer = filesystem.call_s3(
        "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=_PAGE, **more, **filesystem.req_kw
    )
    files = [(f"{bucket}/{one['Key']}", {**one, "size": one["Size"]}) for one in answer.get("Contents", ())]
    return files, answer.get("NextContinuationToken")


def _gcs_page(filesystem: Any, bucket: str, prefix: str, mark: str | None) -> Page:
    more = {"pageToken": mark} if mark else {}
    answer = sync(
        filesystem.loop, filesystem._call_list_objects, bucket, prefix=prefix, maxResults=_PAGE, **more
    )
    files = [(f"{bucket}/{one['name']}", one) for one in answer.get("items", ())]
    return files, answer.get("nextPageToken")


def _azure_page(filesystem: Any, bucket: str, prefix: str, mark: str | None) -> Page:
    async def page() -> Page:
        async with filesystem.service_client.get_container_client(container=bucket) as client:
            blobs = client.list_blobs(
                name_starts_with=prefix or None, include=["metadata"], results_per_page=_PAGE
            )
            pages = blobs.by_page(continuation_token=mark)
            found = [blob async for blob in await anext(pages)]
            files = [
                (f"{bucket}/{blob.name}", {"size": blob.size, "etag": blob.etag, "mtime": blob.last_modified})
                for blob in found
                if str((blob.metadata or {}).get("hdi_isfolder", "")).lower() != "true"
            ]
            return files, pages.continuation_token

    return sync(filesystem.loop, page)  # type: ignore[no-any-return]


_PAGERS: dict[str, Callable[[Any, str, str, str | None], Page]] = {
    "s3": _s3_page,
    "gs": _gcs_page,
    "az": _azure_page,
}


def _walk(
    filesystem: AbstractFileSystem,
    protocol: str,
    folder: str,
    enters: Callable[[str], bool],
    storage: StorageSettings,
) -> Iterator[Source]:
    entries = retrying(lambda: filesystem.ls(folder, detail=True), storage)
    for info in sorted(entries, key=lambda info: str(info["name"])):
        name = str(info["name"]).rstrip("/")
        if info["type"] != "directory":
            yield remote_source(protocol, name, info)
        elif name.strip("/") != folder.strip("/") and enters(name):
            yield from _walk(filesystem, protocol, name, enters, storage)
