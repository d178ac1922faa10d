"""Footprints on scenes, for semantic and instance models: settings of training -> how scenes are cut."""

from typing import TYPE_CHECKING

from segray.errors import SettingsError
from segray.train.settings import TrainSettings

if TYPE_CHECKING:
    from segray.data.scene_windows import WindowSettings
    from segray.data.window_cuts import InstanceCuts

CATEGORY = "footprint"
"""Name of the only category where the settings name none, as `evaluate` has it."""


def window_settings(settings: TrainSettings) -> "WindowSettings":
    """Return how scenes are cut into windows, and split. Raises SettingsError for what fits no such model."""
    from segray.data.scene_windows import WindowSettings

    assert settings.footprints is not None
    if problem := settings.footprint_problem:  # a start model may have decided the architecture since
        raise SettingsError(problem)
    return WindowSettings(
        settings.data,
        settings.footprints,
        settings.footprints_layer,
        settings.class_column,
        settings.tiling,
        settings.block,
        (settings.split_seed, settings.val_share, settings.test_share),
        settings.split_areas,
        _instance_cuts(settings) if settings.is_instance else None,
        settings.storage,
    )


def _instance_cuts(settings: TrainSettings) -> "InstanceCuts":
    """Return windows of one scale: `window` pixels become `min_size`, the longest side at most `max_size`."""
    from segray.data.window_cuts import InstanceCuts

    side, overlap = settings.tiling.tile, settings.window_overlap
    scored = side * settings.max_size // settings.min_size
    return InstanceCuts(side // 4 if overlap is None else overlap, scored)


def categories_of(settings: TrainSettings) -> tuple[str, ...] | None:
    """Return the categories of instances, from 1 up; None: the values of the class column."""
    if settings.classes:
        return tuple(settings.classes)
    return None if settings.class_column else (CATEGORY,)
