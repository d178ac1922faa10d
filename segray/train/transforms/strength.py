"""Strength of augmentation: a preset, and all its knobs. Reading these settings does not need torch."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TILTED = 0.5
"""Share of the images that `rotation` rotates: the others keep their own sharpness."""
RARE = 0.2
"""Share of the images that are blurred, and of those that get noise: most should stay unchanged."""

APPLIED_TO_INSTANCES = (
    "smallest_scale", "largest_scale", "flip", "vertical_flip", "quarter_turns", "rotation", "brightness",
    "contrast", "saturation", "hue", "gamma", "blur",
)  # fmt: skip
"""Knobs of `AugmentSettings` that apply to instances; crops are always drawn anywhere."""


@dataclass(frozen=True, slots=True)
class Strength:
    """All effective knobs, as `AugmentSettings` describes them; by default none changes anything."""

    smallest_scale: float = 1.0
    largest_scale: float = 1.0
    random_crop: bool = False
    object_share: float = 0.0
    flip: float = 0.0
    vertical_flip: float = 0.0
    quarter_turns: float = 0.0
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gamma: float = 0.0
    blur: float = 0.0
    noise: float = 0.0


PRESETS = {
    "off": Strength(),
    # for any image: the scales, crops and mirroring of the usual street-scene recipes, and mild colour
    "light": Strength(
        smallest_scale=0.5,
        largest_scale=2.0,
        random_crop=True,
        flip=0.5,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.02,
    ),
    # for images from above, which have no upper side, and for small collections
    "strong": Strength(
        smallest_scale=0.5,
        largest_scale=2.0,
        random_crop=True,
        object_share=0.5,
        flip=0.5,
        vertical_flip=0.5,
        quarter_turns=0.75,
        rotation=10.0,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.05,
        gamma=0.5,
        blur=1.5,
        noise=8.0,
    ),
}


class AugmentSettings(BaseModel):
    """A preset, and knobs that override its own; a knob that is not given keeps the preset's value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["off", "light", "strong"] = Field(
        "light", description="light suits any image; strong is for images from above (turns, both flips)"
    )
    smallest_scale: float | None = Field(None, ge=0.05, le=20, description="minimum scale factor")
    largest_scale: float | None = Field(
        None, ge=0.05, le=20, description="maximum scale factor; uniform on a logarithmic axis"
    )
    random_crop: bool | None = Field(None, description="crop anywhere, not in the middle")
    object_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the crops placed over a pixel that is not class 0 (or ignored)",
    )
    flip: float | None = Field(None, ge=0, le=1, description="probability of a horizontal flip")
    vertical_flip: float | None = Field(None, ge=0, le=1, description="probability of a vertical flip")
    quarter_turns: float | None = Field(
        None, ge=0, le=1, description="probability of a rotation by 90, 180 or 270 degrees"
    )
    rotation: float | None = Field(
        None, ge=0, le=45, description="half of the images are rotated by up to so many degrees more"
    )
    brightness: float | None = Field(None, ge=0, lt=1, description="0.2: factors from 0.8 to 1.2")
    contrast: float | None = Field(
        None, ge=0, lt=1, description="0.2: distances from each band's mean times 0.8 to 1.2"
    )
    saturation: float | None = Field(
        None, ge=0, le=1, description="0.2: distances from grey times 0.8 to 1.2; three bands only"
    )
    hue: float | None = Field(
        None, ge=0, le=0.5, description="maximum shift of the hue, 1 is a full circle; three bands only"
    )
    gamma: float | None = Field(None, ge=0, le=3, description="0.5: exponents from 1/1.5 to 1.5")
    blur: float | None = Field(
        None,
        ge=0,
        le=10,
        description="maximum standard deviation of blur in pixels; a fifth of the images",
    )
    noise: float | None = Field(
        None,
        ge=0,
        le=128,
        description="maximum standard deviation of noise in grey levels; a fifth of the images",
    )

    @cached_property
    def strength(self) -> Strength:
        """Return the preset with the knobs that were given."""
        return replace(PRESETS[self.preset], **self.model_dump(exclude={"preset"}, exclude_none=True))

    @model_validator(mode="after")
    def _smallest_below_largest(self) -> "AugmentSettings":
        smallest, largest = self.strength.smallest_scale, self.strength.largest_scale
        if smallest > largest:
            raise ValueError(f"smallest_scale ({smallest}) is above largest_scale ({largest})")
        return self
