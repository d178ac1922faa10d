"""Which errors of a storage pass, and how often what failed so is tried again.

One rule for all storages: what may pass is tried again with exponential backoff, what cannot is not.
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
    """`missing` where the object is not there, else `storage`."""
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
    """Whether a request that failed so may succeed when it is made again.

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
    """The HTTP status of a refusal; None where the answer was no refusal, or there was no answer.

    s3fs makes an OSError with errno EIO of all codes it does not know, the wrong key of some servers (401)
    among them, and keeps botocore's error as the cause; gcsfs keeps only the word of a 403.
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
    """A storage library's error as the OSError that says the same in one line; other errors as they are.

    The three libraries share no base class; with this, `except OSError` is every storage's trouble.
    """
    status = _http_status(error)
    foreign = type(error).__module__.partition(".")[0] in _LIBRARIES
    if not foreign and (status not in (401, 403) or isinstance(error, PermissionError)):
        return error
    words = re.split(r"\n(?:RequestId|ErrorCode|Content):", str(error))[0]  # Azure's letterhead
    if isinstance(error, TimeoutError):
        return TimeoutError(words or "the storage did not answer in time")
    kind = _KINDS.get(status or 0, OSError)
    return kind(" ".join(words.split()) or type(error).__name__)


def retrying(call: Callable[[], T], storage: StorageSettings) -> T:
    """`call()`, made again after 0.2, 0.4, 0.8 … 20 s (with jitter) while its error is one that passes.

    Raises the last error when `storage.attempts` are used up, and at once an error that stays; those of the
    storage libraries as OSError (see `as_os_error`).
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
        told = as_os_error(error)
        if told is error:
            raise
        raise told from error
