"""Two retrainers at once, on a storage that fails: one has the lease, and there is one history."""

import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from segray.errors import HeldError
from segray.output.folder import Output
from segray.output.lease import Lease
from segray.output.names import MODEL
from segray.registry.registry import Registry
from segray.retrain.promotion import promote
from segray.retrain.rounds import Round
from segray.retrain.settings import RetrainSettings
from segray.settings import without_environment
from segray.storage import AzureSettings, LeaseSettings, StorageSettings
from tests.faults import flaky
from tests.servers import Server, azurite_connection


def settings(url: str, storage: StorageSettings) -> RetrainSettings:
    given = {"data": "d", "registry": f"{url}/registry", "model": "m", "output": f"{url}/rounds"}
    made: RetrainSettings = without_environment(RetrainSettings, {**given, "storage": storage})
    return made


def end_of_round(given: RetrainSettings, number: int, start: threading.Barrier, won: list[int]) -> None:
    """What `segray retrain` does when a challenger has won, under the lease."""
    registry = Registry(given.registry, given.storage)
    store = Output(given.output, given.storage)
    start.wait()
    try:
        with Lease(store):
            now = Round(store, number, given.output)
            if now.is_over:
                return
            champion = registry.aliases("m").champion
            version = registry.add("m", {MODEL: f"model {number}".encode()}, {"round": number})
            decision: dict[str, Any] = {"promoted": True, "reasons": ["a test"], "champion_version": champion}
            promote(registry, given, now, version, decision)
            promote(registry, given, now, version, decision)  # as after a kill
            now.write_json("run.json", {"round": number})
            won.append(number)
    except HeldError:
        pass


def test_one_wins_the_lease_and_the_history_is_one(
    azure_server: Server, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    """As often as `--retrainers` says."""
    trials = pytestconfig.getoption("--retrainers")
    lease = LeaseSettings(renew_s=0.5, expires_s=3)
    with flaky(azure_server, 0.05, seed=7) as proxy:
        connection = SecretStr(azurite_connection(proxy.endpoint))
        storage = StorageSettings(azure=AzureSettings(connection_string=connection), lease=lease)
        given = settings(azure_server.url("two-retrainers"), storage)
        won = list[int]()
        for number in range(1, trials + 1):
            start = threading.Barrier(2)
            both = [threading.Thread(target=end_of_round, args=(given, number, start, won)) for _ in range(2)]
            for thread in both:
                thread.start()
            for thread in both:
                thread.join()
            assert won.count(number) == 1
        aliases = Registry(given.registry, given.storage).aliases("m")
    assert [event.what for event in aliases.history] == ["promote"] * trials
    for before, after in zip(aliases.history, aliases.history[1:], strict=False):
        assert after.before == before.after
    assert aliases.champion == aliases.history[-1].after
