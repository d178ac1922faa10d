"""Settings' names for how alike two images must be to share a split; no heavy imports here."""

from typing import Literal

LookAlikes = Literal["loose", "strict", "off"]
