"""Add the challenger to the registry, and make it the champion if the decision is to promote."""

import json
from collections.abc import Mapping
from typing import Any

from segray.errors import SegrayError
from segray.registry.add import files_of
from segray.registry.aliases import Aliases
from segray.registry.mlflow_mirror import mirror
from segray.registry.registry import PROFILE, REPORT, SNAPSHOT, Registry
from segray.retrain.rounds import REPORT as ROUND_REPORT
from segray.retrain.rounds import SNAPSHOT as ROUND_SNAPSHOT
from segray.retrain.rounds import Round
from segray.retrain.settings import RetrainSettings
from segray.storage import shown


class ChampionChangedError(SegrayError):
    """Another version was promoted since the comparison."""


def keep(
    registry: Registry,
    settings: RetrainSettings,
    now: Round,
    model: bytes,
    frozen: Mapping[str, Any],
    decision: Mapping[str, Any],
    run: Mapping[str, Any],
) -> str:
    """Add the challenger to the registry, with its records; return its version."""
    figures = decision["figures"]
    metrics = {
        "holdout": {**frozen["holdout"], "looks": decision["look"]},
        "figures": figures["challenger"],
        "champion": {"version": decision["champion_version"], "figures": figures["champion"]},
        "decision": {name: decision[name] for name in decision if name not in ("figures", "lines")},
    }
    metrics["decision"]["champion"] = decision["champion_version"]
    files = files_of(now.address("train/model.pt"), model, run, metrics)
    files |= {
        name: data
        for name, data in {
            SNAPSHOT: now.read(ROUND_SNAPSHOT),
            REPORT: now.read(ROUND_REPORT),
            PROFILE: now.read(PROFILE),
        }.items()
        if data is not None
    }
    about = {"round": shown(now.address()), "data": frozen["data"], "snapshot": frozen["snapshot"]}
    record = {**json.loads(json.dumps(run)), "retrain": {**about, "start_from": frozen["start_from"]}}
    return registry.add(settings.model, files, record)


def promote(
    registry: Registry, settings: RetrainSettings, now: Round, version: str, decision: Mapping[str, Any]
) -> None:
    """Change the aliases, once. Raises ChampionChangedError where another version is champion by now."""
    run, why = shown(now.address()), " ".join(decision["reasons"])

    def edit(there: Aliases) -> Aliases | None:
        if any(event.run == run and event.after == version for event in there.history):
            return None  # done before a kill
        if there.champion != decision["champion_version"]:
            raise ChampionChangedError(
                f"registry: the champion of {settings.model} is {there.champion} by now, not "
                f"{decision['champion_version']}"
            )
        if decision["promoted"]:
            return there.promoted(version, why, run)
        return there.challenged("refuse", version, why, run)

    mirror(registry, settings.model, version, registry.change(settings.model, edit))
