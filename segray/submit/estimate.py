"""Estimate the time and cost of a job from a known rate."""

from collections.abc import Iterator
from typing import Any

from segray.bulk.settings import BulkSettings
from segray.errors import JobFailedError, SettingsError
from segray.output.folder import Output
from segray.output.progress import clock, pace
from segray.settings import JobSettings
from segray.sources.listing import Listing
from segray.storage import shown
from segray.submit.settings import SubmitSettings


def estimate(submit: SubmitSettings, job: JobSettings) -> Iterator[str]:
    """Yield the estimate as lines of text; nothing where no rate is known.

    Archives count as one item each, because their members are unknown before they are read. Raises
    SettingsError where the run of `--like` has no rate.
    """
    rate, price_of_one = _known(submit)
    if rate is None:
        return
    if not isinstance(job, BulkSettings):
        yield "no estimate: only annotate and predict have a rate in images a second"
        return
    files, archives = _counted(job)
    hours = files / rate / 3600
    line = f"{files:,} images at {pace(rate)}: {clock(hours * 3600)}"
    if price_of_one is not None:
        line += f", {files * price_of_one:,.2f} in the currency of the prices"
    elif submit.hourly_price is not None:
        line += f", {hours * submit.hourly_price:,.2f} at {submit.hourly_price:g} an hour"
    yield line
    if archives:
        yield f"and {archives:,} archives, whose images are not counted"


def _known(submit: SubmitSettings) -> tuple[float | None, float | None]:
    """Return (images a second, price of an image); None where unknown."""
    if submit.like is None:
        return submit.rate, None
    try:
        record: Any = Output(submit.like, submit.storage).read_json("run.json")
    except JobFailedError as error:
        raise SettingsError(f"like: {shown(submit.like)} cannot be read") from error
    try:
        rates, cost = record["rates"], record.get("cost", {})
        if not rates["images_per_s"]:
            raise SettingsError(
                f"like: {shown(submit.like)} processed no image in its last start, so it has no rate"
            )
        return rates["images_per_s"], cost["total"] / rates["items"] if "total" in cost else None
    except (TypeError, KeyError) as error:
        raise SettingsError(
            f"like: {shown(submit.like)} is not a finished run of annotate or predict"
        ) from error


def _counted(job: BulkSettings) -> tuple[int, int]:
    """Return the number of (files, archives) in the sources."""
    files = archives = 0
    for source in Listing(job.sources, job.storage, job.choice):
        archives += source.kind != "file"
        files += source.kind == "file"
    return files, archives
