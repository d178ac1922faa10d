"""Which storage errors are transient, and how often a request is retried.

One rule for all storages: transient errors are retried with exponential backoff, others are not.
"""

import asyncio
import errno
import re
from collections.abc import Callable
from typing import TypeVar

from segray.errors import ErrorType
from segray.storage import StorageSettings

T = TypeVar("T")


def error_type(error: BaseException) -> ErrorType:
    """Return `missing` where the object does not exist, else `storage`."""
    return "missing" if isinstance(error, FileNotFoundError | IsADirectoryError) else "storage"


_FINAL = (
    FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, FileExistsError,
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError,
)  # fmt: skip
_FINAL_NAMES = {"ClientAuthenticationError", "NoCredentialsError", "PartialCredentialsError"}
_FINAL_ERRNO = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENAMETOOLONG}
_PASSING_ERRNO = {
    errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EAGAIN,
    errno.EINTR, errno.EIO, errno.EBUSY, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ESTALE, errno.ENETRESET,
    getattr(errno, "EREMOTEIO", errno.EIO),  # what s3fs makes of InternalError; Linux only
}  # fmt: skip
_PASSING_TEXT = re.compile(
    r"\((408|425|429|500|502|503|504)\)|slow ?down|throttl|too many requests|rate ?limit|request ?timeout"
    r"|time(d)? ?out|internal ?(server)? ?error|internal_failure|service ?unavailable|server ?busy"
    r"|bad gateway|connection (was )?(reset|closed|aborted|refused|error|lost|broken)"
    r"|connect(ion|or)? ?error|disconnected|incomplete ?(read|body|message)|payload|operation ?timed"
    r"|backend ?error|network|broken pipe|eof occurred|temporar(y|ily)|try again|could not connect"
    r"|cannot connect|proxy ?error|max retries exceeded",
    re.IGNORECASE,
)


def is_transient(error: BaseException) -> bool:
    """Return whether the error is transient: the same request may succeed later.

    Decided by type, else by HTTP status, else by errno, else by the words that S3, Google and Azure use for
    throttling, overload and lost connections.
    """
    if isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES:
        return False
    if isinstance(error, TimeoutError | ConnectionError | asyncio.IncompleteReadError | EOFError):
        return True
    status = _http_status(error)
    if status is not None and status != 409:  # 409 is a conflict that stays (Azure) or a race (S3)
        return status in (408, 425, 429) or (status >= 500 and status not in (501, 505))
    number = getattr(error, "errno", None)
    if number in _FINAL_ERRNO:
        return False
    if number in _PASSING_ERRNO:
        return True
    cause = error.__cause__
    text = f"{type(error).__module__}.{type(error).__name__}: {error}"
    return bool(_PASSING_TEXT.search(text)) or (cause is not None and is_transient(cause))


def _http_status(error: BaseException) -> int | None:
    """Return the HTTP status of an error response; None where there was no such response.

    s3fs turns all codes it does not know into an OSError with errno EIO, the wrong key of some servers (401)
    among them, and keeps botocore's error as the cause; gcsfs keeps only the text of a 403.
    """
    for one in (error, error.__cause__):
        answer = getattr(one, "response", None)
        if isinstance(answer, dict) and "ResponseMetadata" in answer:
            return int(answer["ResponseMetadata"].get("HTTPStatusCode", 400))
    if isinstance(error, OSError) and str(error).startswith("Forbidden: "):
        return 403
    found = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    return next((status for status in found if isinstance(status, int) and 300 <= status < 600), None)


_LIBRARIES = ("botocore", "aiobotocore", "azure", "gcsfs", "google", "aiohttp", "requests", "fsspec")
_KINDS = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError}


def as_os_error(error: Exception) -> Exception:
    """Return a storage library's error as an OSError with a one-line message; other errors unchanged.

    The three libraries share no base class; with this, `except OSError` catches the errors of every storage.
    """
    status = _http_status(error)
    foreign = type(error).__module__.partition(".")[0] in _LIBRARIES
    if not foreign and (status not in (401, 403) or isinstance(error, PermissionError)):
        return error
    words = re.split(r"\n(?:RequestId|ErrorCode|Content):", str(error))[0]  # Azure appends these fields
    if isinstance(error, TimeoutError):
        return TimeoutError(words or "the storage did not answer in time")
    kind = _KINDS.get(status or 0, OSError)
    return kind(" ".join(words.split()) or type(error).__name__)


def retrying(call: Callable[[], T], storage: StorageSettings) -> T:
    """Return `call()`, retried after 0.2, 0.4, 0.8 … 20 s (with jitter) while its error is transient.

    Raises the last error when `storage.attempts` are used up, and a permanent error at once; errors of the
    storage libraries are raised as OSError (see `as_os_error`).
    """
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    attempts = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(storage.attempts),
        wait=wait_exponential_jitter(multiplier=0.2, max=20, jitter=0.2),
        reraise=True,
    )
    try:
        return attempts(call)
    except Exception as error:
        plain = as_os_error(error)
        if plain is error:
            raise
        raise plain from error
