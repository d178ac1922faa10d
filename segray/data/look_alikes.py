"""How like two images must be to share a split, as settings name it; nothing heavy is imported here."""

from typing import Literal

LookAlikes = Literal["loose", "strict", "off"]
