"""Follow the log of a job on a Ray cluster, each line once, across lost connections."""

import asyncio
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from segray.errors import JobFailedError
from segray.submit.shell import say

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

AGAIN_S = 2.0
"""Seconds between two attempts to connect."""
QUIET_S = 60.0
"""Seconds without a log line after which the server is polled."""
SETTLE_S = 0.2
"""Seconds between the end of the log and the end of the job."""


class Follower:
    """Print the log of a job and wait for its end."""

    def __init__(
        self, client: "JobSubmissionClient", submission_id: str, address: str, patience_s: float
    ) -> None:
        """Follow a job; patience_s: seconds to retry while the server does not answer."""
        self._client, self._id, self._address, self._patience = client, submission_id, address, patience_s
        self._printed = 0
        """Characters of the log that are printed; a new connection sends the log from its start."""
        self._lost: float | None = None
        """Time since which the server does not answer."""

    def to_the_end(self) -> "JobDetails":
        """Return the job once it has ended.

        Raises JobFailedError when the server stays away for too long or no longer knows the job.
        """
        while True:
            try:
                if (info := self._ended()) is not None:
                    return info
                asyncio.run(self._tail())
                time.sleep(SETTLE_S)
            except _away() as error:
                self._wait(error)

    def _ended(self) -> "JobDetails | None":
        """Return the job if it has ended and all of its log is printed."""
        info = self._client.get_job_info(self._id)
        if self._lost is not None:
            self._lost = None
            say("reconnected")
        if not info.status.is_terminal():
            return None
        with suppress(RuntimeError):  # its node may be gone
            self._print(self._client.get_job_logs(self._id)[self._printed :])
        return info

    async def _tail(self) -> None:
        """Print the log as it arrives, until the connection ends."""
        seen, stream = 0, aiter(self._client.tail_job_logs(self._id))
        while True:
            coming = asyncio.ensure_future(anext(stream))
            while not (await asyncio.wait({coming}, timeout=QUIET_S))[0]:  # a dead tunnel raises no error
                await asyncio.to_thread(self._client.get_job_info, self._id)
            try:
                text = coming.result()
            except StopAsyncIteration:
                return
            known = max(0, self._printed - seen)
            seen += len(text)
            self._print(text[known:])

    def _print(self, text: str) -> None:
        self._printed += len(text)
        sys.stdout.write(text)
        sys.stdout.flush()

    def _wait(self, error: BaseException) -> None:
        if "does not exist" in str(error):
            raise JobFailedError(
                f"{self._address} has no job {self._id} any more: its head was restarted; what is committed "
                "is safe, submit it again to continue"
            ) from error
        now = time.monotonic()
        if self._lost is None:
            self._lost = now
            say(f"the connection to {self._address} is lost; retrying for {self._patience:g} s")
        if now - self._lost > self._patience:
            raise JobFailedError(
                f"{self._address} does not answer; {self._id} may be running: submit it again to follow it"
            ) from error
        time.sleep(AGAIN_S)


def _away() -> tuple[type[Exception], ...]:
    """Return the errors of a server that does not answer, or no longer has the job."""
    import aiohttp
    from ray.exceptions import AuthenticationError

    return OSError, RuntimeError, AuthenticationError, aiohttp.ClientError
