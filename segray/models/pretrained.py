"""Networks that start with pretrained weights, fetched when they are built."""

from collections.abc import Callable

from torch import nn

from segray.errors import SettingsError


def with_weights(arch: str, build: Callable[[], nn.Module], site: str, cache: str) -> nn.Module:
    """Return `build()`; to be called where only fetching the weights can fail.

    site: source of the weights; cache: the folder that holds them, in words. Both for the error message.
    Raises SettingsError where the weights cannot be fetched.
    """
    try:
        return build()
    except Exception as error:
        raise SettingsError(
            f"{arch}: no pretrained weights ({in_words(error)}); connect to {site} once, or bring the cache "
            f"of a machine that has ({cache}), or train without pretrained"
        ) from error


def in_words(error: Exception) -> str:
    """Return the error's type and the first line of its text."""
    kind, text = type(error).__name__, str(error).strip()
    return f"{kind}: {text.splitlines()[0]}" if text else kind
