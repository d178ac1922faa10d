"""Read the profile of a version's outputs, with which `segray drift` compares."""

from segray.errors import SettingsError
from segray.registry.address import parse
from segray.registry.registry import PROFILE, Registry, pinned
from segray.storage import StorageSettings


def read_profile(address: str, storage: StorageSettings) -> bytes:
    """Return the JSON of a version's profile. Raises SettingsError where version or profile is missing."""
    found = pinned(parse(address), storage)
    data = Registry(found.url, storage).read(found.model, found.which, PROFILE)
    if data is None:
        raise SettingsError(
            f"{found}: it has no {PROFILE}; retrain stores one, versions added by hand have none"
        )
    return data
