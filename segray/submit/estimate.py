"""How long a job would take and what it would cost, from a known rate."""

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
    """Lines for people; nothing where no rate is known.

    Raises SettingsError where the run that is to be alike has no rate. Archives count as one item each, since
    nobody knows what is in them before they are read.
    """
    rate, price_of_one = _known(submit)
    if rate is None:
        return
    if not isinstance(job, BulkSettings):
        yield "no estimate: only annotate and predict have a rate of images"
        return
    files, archives = _counted(job)
    hours = files / rate / 3600
    told = f"{files:,} images at {pace(rate)}: {clock(hours * 3600)}"
    if price_of_one is not None:
        told += f", {files * price_of_one:,.2f} in the currency of the prices"
    elif submit.hourly_price is not None:
        told += f", {hours * submit.hourly_price:,.2f} at {submit.hourly_price:g} an hour"
    yield told
    if archives:
        yield f"and {archives:,} archives, whose images nobody has counted"


def _known(submit: SubmitSettings) -> tuple[float | None, float | None]:
    """(Images a second, price of one), each where it is known."""
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
                f"like: {shown(submit.like)} did nothing in its last start, so it has no rate"
            )
        return rates["images_per_s"], cost["total"] / rates["items"] if "total" in cost else None
    except (TypeError, KeyError) as error:
        raise SettingsError(
            f"like: {shown(submit.like)} is no finished run of annotate or predict"
        ) from error


def _counted(job: BulkSettings) -> tuple[int, int]:
    """(Files, archives) in the sources."""
    files = archives = 0
    for source in Listing(job.sources, job.storage, job.choice):
        archives += source.kind != "file"
        files += source.kind == "file"
    return files, archives
