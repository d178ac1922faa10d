"""The settings of our own U-Net; torch is not needed to check them."""

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from segray.errors import SettingsError

Padding = Literal["same", "valid"]
Up = Literal["transposed", "bilinear"]
Norm = Literal["batch", "group", "sync", "none"]
_CHOICES = {"padding": get_args(Padding), "up": get_args(Up), "norm": get_args(Norm)}


@dataclass(frozen=True)
class UNetSettings:
    """The architecture in plain values; a model file stores every one of them."""

    width: int = 64
    """Channels of the first level; each level below has twice as many."""
    depth: int = 4
    """How often the maps are halved."""
    padding: Padding = "same"
    up: Up = "transposed"
    """How maps are doubled: a transposed 2 x 2 convolution, or a 1 x 1 convolution and interpolation."""
    norm: Norm = "batch"
    """"sync" is "batch" over all workers; training it needs GPUs, even with one worker."""
    bias: bool = True
    """Whether the 3 x 3 convolutions have one; in front of a normalisation it changes nothing."""
    groups: int = 8
    """Of "group" normalisation; divides `width`."""
    checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping its maps: less memory, more time."""

    def __post_init__(self) -> None:
        """Raise SettingsError, one line, for a value that no U-Net can have."""
        for name, value in asdict(self).items():
            if name in ("width", "depth", "groups") and (type(value) is not int or value < 1):
                raise SettingsError(f"unet: {name} must be a whole number from 1, not {value!r}")
            if name in _CHOICES and value not in _CHOICES[name]:
                raise SettingsError(f"unet: {name} must be one of {', '.join(_CHOICES[name])}, not {value!r}")
            if name in ("bias", "checkpointing") and type(value) is not bool:
                raise SettingsError(f"unet: {name} must be true or false, not {value!r}")
        if self.norm == "group" and self.width % self.groups:
            raise SettingsError(f"unet: groups must divide width; {self.groups} does not divide {self.width}")
