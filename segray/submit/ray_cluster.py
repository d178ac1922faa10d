"""A job on a Ray cluster, by its job server: what is there is asked, the job sent, and followed."""

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
from segray.submit.order import SETTINGS, Order, members
from segray.submit.settings import SubmitSettings
from segray.submit.shell import say
from segray.versions import banner

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

TOKEN_FILE = Path("~/.ray/auth_token")
_CONNECT_S, _ANSWER_S = 10.0, 120.0
_SETTLE_S = 1.5
"""Ray looks at a job each second, and one that was deleted before its last look would come back as failed."""
_LOOK_S = 60.0
"""For the look at what the cluster has installed; a node that starts may have to be waited for."""


def request(order: Order, submission_id: str) -> dict[str, Any]:
    """What the job server is sent, besides the package."""
    return {
        "submission_id": submission_id,
        "entrypoint": shlex.join(["segray", order.verb, "--config", SETTINGS]),
        "metadata": {"segray": order.digest, "verb": order.verb},
    }


def described(order: Order, submit: SubmitSettings) -> dict[str, Any]:
    """The request for people, as `--dry-run` prints it."""
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
        os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"  # a model that git ignores is wanted
        set_environment()
        self._client = _connected(self.address)
        self._looked: str | None = None
        """The job that asked what is installed there."""

    # --- sending -------------------------------------------------------------------------------------

    def send(self, order: Order) -> str:
        """Send the job, or find the one of that name that is under way; returns its submission id.

        Raises SettingsError where the server refuses or answers what nobody understands.
        """
        try:
            return self._sent(order)
        except _away() as error:
            hint = "; whether the job was sent is not known: the same --name finds it" * bool(
                self._submit.name
            )
            raise SettingsError(f"address: {self.address}: {_first_line(error)}{hint}") from error

    def _sent(self, order: Order) -> str:
        attempts = self._attempts(order)
        if attempts and not attempts[-1].status.is_terminal():
            say(f"{attempts[-1].submission_id} is under way already; following it")
            return str(attempts[-1].submission_id)
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
                say(f"{submission_id} was sent by somebody else at the same moment; following it")
                self._attempts(order)
                return submission_id
        say(f"sent {submission_id} to {self.address}")
        return submission_id

    def _attempts(self, order: Order) -> "list[JobDetails]":
        """The jobs of that name, oldest first. Raises SettingsError when they are of another command."""
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
        """Raise SettingsError where the job would meet another Ray, Python or segray than here."""
        there = self._look()
        if there != banner():
            raise SettingsError(
                f"address: {self.address} has {there}, here is {banner()}; install the same there or here, "
                "or say --any-version"
            )

    def _look(self) -> str:
        """What `segray --version` says there: a job of a second that sends nothing of the user's."""
        look = f"segray-look-{uuid.uuid4().hex[:8]}"
        self._client.submit_job(entrypoint="segray --version || true", submission_id=look)
        deadline = time.monotonic() + _LOOK_S
        while not (info := self._client.get_job_info(look)).status.is_terminal():
            if time.monotonic() > deadline:
                raise SettingsError(
                    f"address: {self.address} started no job within {_LOOK_S:.0f} s: {info.message}"
                )
            time.sleep(0.2)
        said = self._client.get_job_logs(look).splitlines()
        time.sleep(_SETTLE_S)
        self._looked = look
        self._forget_look()
        if found := [line for line in said if line.startswith("segray ")]:
            return found[-1]
        raise SettingsError(
            f"address: no segray in the PATH of {self.address} ({(said or ['no word'])[-1].strip()}); "
            "install it where `ray start` runs, and start it with that PATH"
        )

    def _forget_look(self) -> None:
        """Again at the end: a busy head may have brought it back."""
        if self._looked is not None:
            with suppress(*_away()):
                self._client.delete_job(self._looked)

    # --- following -----------------------------------------------------------------------------------

    def follow(self, submission_id: str) -> int:
        """Print the job's log as it grows; returns its exit code.

        Raises JobFailedError when it ended without one, or the cluster is gone for too long.
        """
        info = Follower(self._client, submission_id, self.address, self._submit.patience_s).to_the_end()
        self._forget_look()
        if info.driver_exit_code is not None and info.driver_exit_code >= 0:
            return int(info.driver_exit_code)
        if str(info.status) == "STOPPED":
            raise JobFailedError(f"{submission_id} was stopped; {self._again()}")
        why = (info.message or "").strip().splitlines() or ["no reason is known"]
        raise JobFailedError(f"{submission_id} ended without an exit code: {why[0]}; {self._again()}")

    def come_back(self, submission_id: str) -> None:
        """Say how the job is met again."""
        at = f"--address {self.address}"
        token = "RAY_AUTH_MODE=token " * (os.environ.get("RAY_AUTH_MODE") == "token")
        follow = (
            "the same command" if self._submit.name else f"{token}ray job logs {at} --follow {submission_id}"
        )
        stop = f"{token}ray job stop {at} {submission_id}"
        say(f"{submission_id} goes on; to follow it: {follow}; to stop it: {stop}")

    def _again(self) -> str:
        return "what is committed is safe, submit it again to continue"


def _use_token() -> None:
    """Ray's clients use a token only when they are told to."""
    there = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if there or TOKEN_FILE.expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _connected(address: str) -> "JobSubmissionClient":
    import requests
    from ray.job_submission import JobSubmissionClient

    class Impatient(JobSubmissionClient):
        """Ray's waits for ever for a server that hangs."""

        def _do_request(self, *words: Any, **options: Any) -> requests.Response:
            return super()._do_request(*words, timeout=(_CONNECT_S, _ANSWER_S), **options)

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # else it tells of each upload and connection
    try:
        client = Impatient(address)
        client.list_jobs()  # asks for the token, which the version does not
    except _away() as error:
        if "Authentication" in str(error):
            raise SettingsError(_about_token(address, str(error))) from error
        raise SettingsError(
            f"address: no Ray job server answers at {address}: {_first_line(error)}; is the tunnel open "
            "(`ray dashboard cluster.yaml`)?"
        ) from error
    return client


def _away() -> tuple[type[Exception], ...]:
    """What Ray's client raises where the server refuses, is away, or is no job server."""
    from ray.exceptions import AuthenticationError

    return OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AuthenticationError


def _about_token(address: str, said: str) -> str:
    if "Missing" in said or "required" in said:
        return f"address: {address} wants a token: set RAY_AUTH_TOKEN, or put it into {TOKEN_FILE}"
    source = "RAY_AUTH_TOKEN" if "RAY_AUTH_TOKEN" in os.environ else "RAY_AUTH_TOKEN_PATH"
    where = source if source in os.environ else str(TOKEN_FILE)
    return f"address: {address} does not take the token of {where}; it must be the one of the cluster"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def _package(order: Order) -> Iterator[Path]:
    """A folder with what is sent."""
    files = list(members(order.files))
    with tempfile.TemporaryDirectory(prefix="segray-package-") as root:
        for name, path in files:
            place = Path(root, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        Path(root, SETTINGS).write_text(order.settings, encoding="utf-8")
        yield Path(root)
