"""What the generated scripts share, and how this machine's commands are called."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from segray.errors import SettingsError
from segray.log import LOG
from segray.settings import ENV_PREFIX

AGAIN = """\
tries=0
while :; do
  segray {verb} --config {settings}
  code=$?
  [ $code = 1 ] && [ $tries -lt {retries} ] || break
  tries=$((tries + 1))
  echo "segray: exit 1; again in 30 s ($tries of {retries})"
  sleep 30
done
[ $code = 4 ] && code=0
exit $code
"""
"""1: what broke may be over; 4, nothing to do, is success to a scheduler."""


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
