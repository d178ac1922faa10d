"""What a version's answers looked like when it was made: `segray drift` compares with it."""

from segray.errors import SettingsError
from segray.registry.address import parse
from segray.registry.registry import PROFILE, Registry, pinned
from segray.storage import StorageSettings


def read_profile(address: str, storage: StorageSettings) -> bytes:
    """The JSON of a version's profile. Raises SettingsError where there is no version, or none with it."""
    found = pinned(parse(address), storage)
    data = Registry(found.url, storage).read(found.model, found.which, PROFILE)
    if data is None:
        raise SettingsError(
            f"{found}: it has no {PROFILE}; retrain keeps one, versions added by hand have none"
        )
    return data
