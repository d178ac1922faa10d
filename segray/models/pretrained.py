"""Networks that start with somebody's weights, fetched when they are built."""

from collections.abc import Callable

from torch import nn

from segray.errors import SettingsError


def with_weights(arch: str, build: Callable[[], nn.Module], site: str, cache: str) -> nn.Module:
    """What `build` returns; to be called where only the weights can fail.

    site: where they come from; cache: the folder they are kept in, in words. Both for the SettingsError.
    """
    try:
        return build()
    except Exception as error:
        raise SettingsError(
            f"{arch}: no pretrained weights ({in_words(error)}); connect to {site} once, or bring the cache "
            f"of a machine that has ({cache}), or train without pretrained"
        ) from error


def in_words(error: Exception) -> str:
    """Its type and the first line of its text."""
    kind, text = type(error).__name__, str(error).strip()
    return f"{kind}: {text.splitlines()[0]}" if text else kind
