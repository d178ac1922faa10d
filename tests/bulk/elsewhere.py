"""`merging_often` as on another machine: nobody here can ask for its process, and its wall clock is off."""

import os
import time

from segray.output import lease
from tests import warm_segray
from tests.bulk import merging_often  # noqa: F401 - for what it changes
from tests.bulk.harness import SKEW


def main() -> int:
    """Its exit code."""
    skew_s, told = float(os.environ[SKEW]), time.gmtime
    lease._boot_id = lambda: "another machine's"
    # what `renewed_at` is made of; a lease knows no other wall time
    time.gmtime = lambda seconds=None: told(time.time() + skew_s if seconds is None else seconds)
    return warm_segray.main()
