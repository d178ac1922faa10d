"""Hugging Face's hub: whether it can be reached, and fetching without its library's retries being printed.

Imports nothing heavy. HF_ENDPOINT, HF_HUB_OFFLINE and the proxies of the environment count as the library
has them.
"""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_WITHIN_S = 2.0
_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


def why_unreachable() -> str | None:
    """Return why nothing can be fetched, in words, after two seconds at most; None: it can be tried."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    end = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxies = {} if proxy_bypass(end.hostname or "") else getproxies()
    proxy = proxies.get(end.scheme) or proxies.get("all")
    if proxy:
        end = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        host, port = end.hostname or "", end.port or _PORTS.get(end.scheme, 443)
    except ValueError:
        return None  # the library tells what is wrong with an address
    reason = _no_connection(host, port)
    return reason and f"no connection to {'the proxy ' if proxy else ''}{host}: {reason}"


def _no_connection(host: str, port: int) -> str | None:
    """Return why there is none; in a thread, as a silent name server takes longer than any timeout."""
    found = list[str | None]()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_WITHIN_S).close()
            found.append(None)
        except (OSError, UnicodeError) as error:
            found.append(getattr(error, "strerror", None) or str(error))

    thread = threading.Thread(target=connect, name="segray-hub", daemon=True)
    thread.start()
    thread.join(_WITHIN_S)
    return found[0] if found else f"no answer within {_WITHIN_S:.0f} s"


@contextmanager
def fetching() -> Iterator[str | None]:
    """Yield `why_unreachable()`; where there is a reason, the hub's library reads its cache alone.

    It would ask five times, 30 to 45 seconds, and print every time.
    """
    from huggingface_hub import constants

    reason, offline = why_unreachable(), constants.HF_HUB_OFFLINE
    logger = logging.getLogger("huggingface_hub.utils._http")
    level = logger.level
    constants.HF_HUB_OFFLINE = offline or reason is not None
    logger.setLevel(logging.ERROR)
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = offline
        logger.setLevel(level)
