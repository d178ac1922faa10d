"""What the generated scripts share, and how this machine's commands are called."""

import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from typing import Any

import yaml

from segray.errors import SettingsError
from segray.log import LOG
from segray.settings import ENV_PREFIX
from segray.submit.settings import ClusterJobSettings

END = """\
[ $code = 4 ] && code=0
exit $code
"""
"""4, nothing to do, is success to a scheduler."""
AGAIN = (
    """\
tries=0
while :; do
  segray {verb} --config {settings}
  code=$?
  [ $code = 1 ] && [ $tries -lt {retries} ] || break
  tries=$((tries + 1))
  echo "segray: exit 1; again in 30 s ($tries of {retries})"
  sleep 30
done
"""
    + END
)
"""1: what broke may be over."""
ONCE = """\
segray {verb} --config {settings} &
job=$!
trap 'kill -TERM $job' TERM INT
wait $job; code=$?
while kill -0 $job 2> /dev/null; do wait $job; code=$?; done
"""
"""Passes on what ends it, where the scheduler itself starts it again."""
HERE_END = "END-OF-SETTINGS"


class CommandError(Exception):
    """The last line of what a command said that failed."""


def asked(command: Sequence[str], text: str | None = None) -> str:
    """What a command prints, given `text`, without the settings in our environment, which sbatch would send.

    Raises CommandError, and SettingsError where there is no such command.
    """
    if shutil.which(command[0]) is None:
        raise SettingsError(
            f"there is no {command[0]} here; do this where there is one, or copy what --dry-run prints there"
        )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CommandError(said[-1] if said else f"{command[0]} ended with {done.returncode}")
    return done.stdout.strip()


def in_here_document(settings: str) -> str:
    """The settings, as lines between `<<'END-OF-SETTINGS'` and its end.

    Raises SettingsError where they hold that end.
    """
    if HERE_END in settings.splitlines():
        raise SettingsError(f"a setting holds {HERE_END}, which ends them in the script")
    return settings


def setup_lines(submit: ClusterJobSettings) -> list[str]:
    """Lines after which `segray` and `ray` are found: those of this machine, where the nodes see them."""
    own = f"export PATH={shlex.quote(sysconfig.get_path('scripts'))}:$PATH"
    return [own] * submit.shared_filesystem + submit.setup


def say(line: str) -> None:
    """To the terminal."""
    LOG.say(f"submit: {line}")


def as_yaml(content: Any) -> str:
    """With scripts as blocks of lines, and nothing written once for two places."""
    return yaml.dump(content, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=110)


class _Readable(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _block)
