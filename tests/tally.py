"""What was tried against segray in this session, for the line at its end."""

from collections import Counter

TALLY: Counter[str] = Counter()
"""What -> how often; `failed trials` among them."""
