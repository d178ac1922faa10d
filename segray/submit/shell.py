"""Parts that the generated scripts share, and calls of this machine's commands."""

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
"""Shell lines: exit code 4 (nothing to do) is success for a scheduler."""
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
"""Shell lines: retry after exit code 1, whose cause may be transient."""
ONCE = """\
segray {verb} --config {settings} &
job=$!
trap 'kill -TERM $job' TERM INT
wait $job; code=$?
while kill -0 $job 2> /dev/null; do wait $job; code=$?; done
"""
"""Shell lines: run once and forward signals, where the scheduler itself restarts the job."""
HERE_END = "END-OF-SETTINGS"


class CommandError(Exception):
    """A command failed; the message is its last line of output."""


def asked(command: Sequence[str], text: str | None = None) -> str:
    """Return a command's output, given `text`, without `SEGRAY_…` variables, which sbatch would send.

    Raises CommandError where the command fails, SettingsError where there is no such command.
    """
    if shutil.which(command[0]) is None:
        raise SettingsError(
            f"{command[0]} is not installed here; run this where it is, or copy the output of --dry-run there"
        )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment)
    if done.returncode:
        output = (done.stderr or done.stdout).strip().splitlines()
        raise CommandError(output[-1] if output else f"{command[0]} ended with {done.returncode}")
    return done.stdout.strip()


def in_here_document(settings: str) -> str:
    """Return the settings as the lines of a here-document that ends with `END-OF-SETTINGS`.

    Raises SettingsError where they contain that line.
    """
    if HERE_END in settings.splitlines():
        raise SettingsError(f"a setting contains {HERE_END}, which would end the script's here-document")
    return settings


def setup_lines(submit: ClusterJobSettings) -> list[str]:
    """Return shell lines that put `segray` and `ray` into PATH, if the nodes have this machine's paths."""
    own = f"export PATH={shlex.quote(sysconfig.get_path('scripts'))}:$PATH"
    return [own] * submit.shared_filesystem + submit.setup


def say(line: str) -> None:
    """Print a message of `segray submit`."""
    LOG.say(f"submit: {line}")


def as_yaml(content: Any) -> str:
    """Return YAML with scripts as block scalars and without aliases."""
    return yaml.dump(content, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=110)


class _Readable(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _block)
