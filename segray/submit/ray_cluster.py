"""Submit a job to a Ray cluster by its job server: check versions, send the job, follow it."""

import logging
import os
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segray.cluster import set_environment
from segray.errors import JobFailedError, SettingsError
from segray.submit.following import Follower
from segray.submit.job_package import SETTINGS, Order, members
from segray.submit.settings import SubmitSettings
from segray.submit.shell import say
from segray.versions import banner

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

TOKEN_FILE = Path("~/.ray/auth_token")
_CONNECT_S, _ANSWER_S = 10.0, 120.0
_SETTLE_S = 1.5
"""Ray polls a job each second; one deleted before its last poll would reappear as failed."""
_VERSION_S = 60.0
"""Timeout of the job that prints the cluster's versions; a node may have to start first."""


def request(order: Order, submission_id: str) -> dict[str, Any]:
    """Return the request to the job server, without the package."""
    return {
        "submission_id": submission_id,
        "entrypoint": shlex.join(["segray", order.verb, "--config", SETTINGS]),
        "metadata": {"segray": order.digest, "verb": order.verb},
    }


def described(order: Order, submit: SubmitSettings) -> dict[str, Any]:
    """Return the request with its URL and package, as `--dry-run` prints it."""
    files = [SETTINGS, *(name for name, _ in members(order.files))]
    return {
        "POST": f"{(submit.address or '').rstrip('/')}/api/jobs/",
        **request(order, submit.name or f"{order.verb}-…"),
        "runtime_env": {"working_dir": files},
    }


class RayCluster:
    """The job server at one address. Raises SettingsError where it cannot be used."""

    def __init__(self, submit: SubmitSettings) -> None:
        assert submit.address is not None
        self._submit, self.address = submit, submit.address.rstrip("/")
        _use_token()
        os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"  # to send models that git ignores
        set_environment()
        self._client = _connected(self.address)
        self._version_job: str | None = None
        """Submission id of the job that printed the cluster's versions."""

    # --- sending -------------------------------------------------------------------------------------

    def send(self, order: Order) -> tuple[str, str]:
        """Send the job, or find the one of that name that is running; return its submission id, and a line.

        Raises SettingsError where the server refuses the request or its response is invalid.
        """
        try:
            return self._sent(order)
        except _away() as error:
            hint = "; the job may have been sent: the same --name finds it" * bool(self._submit.name)
            raise SettingsError(f"address: {self.address}: {_first_line(error)}{hint}") from error

    def _sent(self, order: Order) -> tuple[str, str]:
        attempts = self._attempts(order)
        if attempts and not attempts[-1].status.is_terminal():
            running = str(attempts[-1].submission_id)
            return running, f"{running} is running already; following it"
        if not self._submit.any_version:
            self._compare_versions()
        name = self._submit.name or f"{order.verb}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        number = len(attempts) + 1
        submission_id = name if number == 1 else f"{name}-{number}"
        with _package(order) as folder:
            try:
                self._client.submit_job(
                    **request(order, submission_id), runtime_env={"working_dir": str(folder)}
                )
            except RuntimeError as error:
                if "already" not in str(error):
                    raise
                self._attempts(order)
                met = f"{submission_id} was sent by another process at the same moment; following it"
                return submission_id, met
        return submission_id, f"sent {submission_id} to {self.address}"

    def _attempts(self, order: Order) -> "list[JobDetails]":
        """Return the jobs of that name, oldest first. Raises SettingsError if they are of another command."""
        if self._submit.name is None:
            return []
        jobs = {job.submission_id: job for job in self._client.list_jobs() if job.submission_id is not None}
        found = list[Any]()
        while (
            job := jobs.get(f"{self._submit.name}-{len(found) + 1}" if found else self._submit.name)
        ) is not None:
            found.append(job)
        if found and (found[-1].metadata or {}).get("segray") != order.digest:
            raise SettingsError(
                f"name: {found[-1].submission_id} is another job on {self.address}: other settings or files; "
                "choose another --name"
            )
        return found

    def _compare_versions(self) -> None:
        """Raise SettingsError where the cluster has another Ray, Python or segray than this machine."""
        there = self._versions()
        if there != banner():
            raise SettingsError(
                f"address: {self.address} has {there}, this machine {banner()}; install the same versions, "
                "or set --any-version"
            )

    def _versions(self) -> str:
        """Return the output of `segray --version` on the cluster, by a short job without user data.

        Raises SettingsError where the job does not start, or segray is not installed there.
        """
        look = f"segray-look-{uuid.uuid4().hex[:8]}"
        self._client.submit_job(entrypoint="segray --version || true", submission_id=look)
        deadline = time.monotonic() + _VERSION_S
        while not (info := self._client.get_job_info(look)).status.is_terminal():
            if time.monotonic() > deadline:
                raise SettingsError(
                    f"address: {self.address} started no job within {_VERSION_S:.0f} s: {info.message}"
                )
            time.sleep(0.2)
        log = self._client.get_job_logs(look).splitlines()
        time.sleep(_SETTLE_S)
        self._version_job = look
        self._delete_version_job()
        if found := [line for line in log if line.startswith("segray ")]:
            return found[-1]
        raise SettingsError(
            f"address: no segray in the PATH of {self.address} ({(log or ['no output'])[-1].strip()}); "
            "install it where `ray start` runs, and start it with that PATH"
        )

    def _delete_version_job(self) -> None:
        """Delete the version job; also called at the end: a busy head may have brought it back."""
        if self._version_job is not None:
            with suppress(*_away()):
                self._client.delete_job(self._version_job)

    # --- following -----------------------------------------------------------------------------------

    def follow(self, submission_id: str) -> int:
        """Print the job's log as it grows; return its exit code.

        Raises JobFailedError where it ended without one, or the cluster does not answer for too long.
        """
        info = Follower(self._client, submission_id, self.address, self._submit.patience_s).to_the_end()
        self._delete_version_job()
        if info.driver_exit_code is not None and info.driver_exit_code >= 0:
            return int(info.driver_exit_code)
        if str(info.status) == "STOPPED":
            raise JobFailedError(f"{submission_id} was stopped; {self._again()}")
        why = (info.message or "").strip().splitlines() or ["unknown reason"]
        raise JobFailedError(f"{submission_id} ended without an exit code: {why[0]}; {self._again()}")

    def print_commands(self, submission_id: str) -> None:
        """Print the commands that follow and stop the job."""
        at = f"--address {self.address}"
        token = "RAY_AUTH_MODE=token " * (os.environ.get("RAY_AUTH_MODE") == "token")
        follow = (
            "the same command" if self._submit.name else f"{token}ray job logs {at} --follow {submission_id}"
        )
        stop = f"{token}ray job stop {at} {submission_id}"
        say(f"{submission_id} continues; to follow it: {follow}; to stop it: {stop}")

    def _again(self) -> str:
        return "what is committed is safe, submit it again to continue"


def _use_token() -> None:
    """Let Ray's clients use a token: they do so only if RAY_AUTH_MODE is set."""
    there = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if there or TOKEN_FILE.expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _connected(address: str) -> "JobSubmissionClient":
    import requests
    from ray.job_submission import JobSubmissionClient

    class Impatient(JobSubmissionClient):
        """Job client with timeouts: Ray's waits forever for a server that hangs."""

        def _do_request(self, *words: Any, **options: Any) -> requests.Response:
            return super()._do_request(*words, timeout=(_CONNECT_S, _ANSWER_S), **options)

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # else it logs each upload and connection
    try:
        client = Impatient(address)
        client.list_jobs()  # checks the token, which the request for the version does not
    except _away() as error:
        if "Authentication" in str(error):
            raise SettingsError(_about_token(address, str(error))) from error
        raise SettingsError(
            f"address: no Ray job server answers at {address}: {_first_line(error)}; is the tunnel open "
            "(`ray dashboard cluster.yaml`)?"
        ) from error
    return client


def _away() -> tuple[type[Exception], ...]:
    """Return the errors of Ray's client where the server refuses, is unreachable or not a job server."""
    from ray.exceptions import AuthenticationError

    return OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AuthenticationError


def _about_token(address: str, message: str) -> str:
    if "Missing" in message or "required" in message:
        return f"address: {address} requires a token: set RAY_AUTH_TOKEN, or put it into {TOKEN_FILE}"
    source = "RAY_AUTH_TOKEN" if "RAY_AUTH_TOKEN" in os.environ else "RAY_AUTH_TOKEN_PATH"
    where = source if source in os.environ else str(TOKEN_FILE)
    return f"address: {address} rejects the token of {where}; it must be the cluster's token"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def _package(order: Order) -> Iterator[Path]:
    """Provide a temporary folder with the package."""
    files = list(members(order.files))
    with tempfile.TemporaryDirectory(prefix="segray-package-") as root:
        for name, path in files:
            target = Path(root, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        Path(root, SETTINGS).write_text(order.settings, encoding="utf-8")
        yield Path(root)
