"""Names of files that several jobs write into their outputs and others look for."""

import re
from collections.abc import Iterable

from segray.errors import SettingsError
from segray.storage import shown

PLAN = "_segray/plan.json"
"""With which settings an output was begun."""
RUN = "run.json"
"""Written last: the run is complete."""
MODEL = "model.pt"
METRICS = "metrics.jsonl"
"""Of a training, a line an epoch."""
CONFUSION = "confusion.json"
"""Of a training: `classes` and `confusion`, pixels of val: a row a true class, a column a predicted one."""
SCORES = "metrics.json"
"""Of a comparison with labels."""
_IMAGE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def check_image_ids(image_ids: Iterable[object], setting: str, run: str) -> None:
    """Raise SettingsError for an id of a run that is no file name: files are named after their images."""
    for image_id in image_ids:
        if not isinstance(image_id, str) or not _IMAGE_ID.fullmatch(image_id):
            raise SettingsError(
                f"{setting}: {shown(run)} has the image_id {image_id!r}; letters, digits, _, - and . are "
                "allowed, and no . at its beginning"
            )
