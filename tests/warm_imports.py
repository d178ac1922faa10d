"""Imports at once what Ray's workers and drivers do: `multiprocessing`'s fork server is given names."""

from segray.cluster import set_environment
from tests import warm_workers

set_environment()  # before Ray is imported
warm_workers.import_all(training=True)
