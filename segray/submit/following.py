"""The log of a job on a Ray cluster, each line once, through connections that break."""

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
"""Between two tries to connect."""
QUIET_S = 60.0
"""Without a line for so long, the server is asked whether it is there."""
SETTLE_S = 0.2
"""Between the end of the log and the end of the job."""


class Follower:
    """Prints what a job says, and waits for its end."""

    def __init__(
        self, client: "JobSubmissionClient", submission_id: str, address: str, patience_s: float
    ) -> None:
        """patience_s: how long the server may be away."""
        self._client, self._id, self._address, self._patience = client, submission_id, address, patience_s
        self._printed = 0
        """Characters of the log; a new connection begins with the first one."""
        self._lost: float | None = None
        """Since when the server is away."""

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
        """The job, if it is over, its whole log printed."""
        info = self._client.get_job_info(self._id)
        if self._lost is not None:
            self._lost = None
            say("connected again")
        if not info.status.is_terminal():
            return None
        with suppress(RuntimeError):  # its node may be gone
            self._print(self._client.get_job_logs(self._id)[self._printed :])
        return info

    async def _tail(self) -> None:
        """Print as it comes, until the connection ends."""
        seen, stream = 0, aiter(self._client.tail_job_logs(self._id))
        while True:
            coming = asyncio.ensure_future(anext(stream))
            while not (await asyncio.wait({coming}, timeout=QUIET_S))[0]:  # a dead tunnel says nothing
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
                f"{self._address} no longer knows {self._id}: its head was started anew; what is committed "
                "is safe, submit it again to continue"
            ) from error
        now = time.monotonic()
        if self._lost is None:
            self._lost = now
            say(f"the connection to {self._address} is lost; trying again for {self._patience:g} s")
        if now - self._lost > self._patience:
            raise JobFailedError(
                f"{self._address} does not answer; {self._id} may go on: submit it again to follow it"
            ) from error
        time.sleep(AGAIN_S)


def _away() -> tuple[type[Exception], ...]:
    """What is raised where the server does not answer, or no longer knows the job."""
    import aiohttp
    from ray.exceptions import AuthenticationError

    return OSError, RuntimeError, AuthenticationError, aiohttp.ClientError
