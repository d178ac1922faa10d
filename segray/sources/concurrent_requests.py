"""Many small requests to one storage at once, each with its own result or error.

The object stores' fsspec libraries are asynchronous: their requests share one event loop. Everything else
(local disk, SFTP, memory) gets threads. Requests with transient errors are repeated, the others are not.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fsspec.asyn import sync
from fsspec.spec import AbstractFileSystem

from segray.errors import ItemError, SegrayError
from segray.retries import error_type, is_transient, retrying
from segray.sources.names import one_line
from segray.storage import StorageSettings

T = TypeVar("T")

CONCURRENCY = 64
"""Requests in flight: about what one worker needs to fill a fast network with 100 kB files."""
_THREADS = 8
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")
_USER = re.compile(r"""(?<=://)[^/\s]*@|(?<=["'])[^\s/"':]+:[^\s/"']+@""")
"""Credentials in an address: botocore quotes `user:secret@bucket`."""
_QUERY = re.compile(r"\?\S+")
"""Query strings, which may hold signatures."""


def request_all(
    filesystem: AbstractFileSystem,
    name: str,
    arguments: Sequence[Mapping[str, Any]],
    storage: StorageSettings,
) -> list[Any | Exception]:
    """Call `filesystem.<name>(path, …)` for each of `arguments`; return its result, or its final error."""
    results: list[Any] = [None] * len(arguments)
    pending = list(range(len(arguments)))

    def attempt() -> None:
        nonlocal pending
        answers = _once(filesystem, name, [arguments[index] for index in pending])
        for index, answer in zip(pending, answers, strict=True):
            results[index] = _what_happened(answer)
        pending = [index for index in pending if _passes(results[index])]
        if pending:
            raise results[pending[0]]

    try:
        retrying(attempt, storage)
    except Exception:
        if not pending:  # not a request's error but a bug of ours
            raise
    return results


def _what_happened(answer: object) -> object:
    """Return the cause of fsspec's FileNotFoundError, which it raises for any fault of an http file."""
    cause = answer.__cause__ if isinstance(answer, FileNotFoundError) else None
    is_http = type(cause).__module__.startswith("aiohttp")
    return cause if is_http and getattr(cause, "status", None) not in (404, 410) else answer


def _passes(answer: object) -> bool:
    return isinstance(answer, Exception) and is_transient(answer)


def _once(filesystem: AbstractFileSystem, name: str, arguments: list[Mapping[str, Any]]) -> list[Any]:
    if getattr(filesystem, "async_impl", False):
        call = getattr(filesystem, "_" + name)
        return list(sync(filesystem.loop, _gather, [lambda a=a: _call(call, a) for a in arguments]))
    call = getattr(filesystem, name)
    if len(arguments) == 1:
        return [_caught(call, arguments[0])]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda a: _caught(call, a), arguments))


async def _gather(calls: list[Callable[[], Coroutine[Any, Any, T]]]) -> list[T | BaseException]:
    slots = asyncio.Semaphore(CONCURRENCY)

    async def limited(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with slots:
            return await call()

    return await asyncio.gather(*(limited(call) for call in calls), return_exceptions=True)


def _call(call: Callable[..., T], arguments: Mapping[str, Any]) -> T:
    """Call with the path as positional argument: fsspec's filesystems do not agree on its name."""
    rest = dict(arguments)
    return call(rest.pop("path"), **rest)


def _caught(call: Callable[..., T], arguments: Mapping[str, Any]) -> T | Exception:
    try:
        return _call(call, arguments)
    except Exception as error:  # noqa: BLE001 - each request's own error is its result
        return error


def as_item_error(error: Exception, what: str = "the file") -> ItemError:
    """Return the rejection for a request that failed for good, without the library's noise."""
    if isinstance(error, ItemError):
        return error
    if isinstance(error, MemoryError):
        return ItemError("memory", f"{what} does not fit into memory")
    if isinstance(error, IsADirectoryError):
        return ItemError("missing", f"{what} is a folder")
    if isinstance(error, FileNotFoundError):
        return ItemError("missing", f"{what} is not there")
    return ItemError(error_type(error), f"{what} cannot be read: {describe(error)}")


def describe(error: BaseException) -> str:
    """Return an error in one line: the library's own words, without URLs, which may hold keys."""
    if isinstance(error, SegrayError):
        return str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return str(error.strerror)
    words = _USER.sub("", _QUERY.sub("", one_line(str(error)))).partition(" RequestId:")[0]  # Azure's
    words = _ERRNO.sub("", words)
    if isinstance(error, PermissionError):
        words = f"access denied ({words})" if words else "access denied"
    return words[:300] or type(error).__name__
