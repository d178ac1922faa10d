"""The output of `--help`: basic settings first, then the rest, nested ones under their own headings."""

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from segray.errors import SettingsError

WIDEST = 110
_METAVARS = {
    "str": "TEXT", "int": "N", "float": "X", "list[str]": "A,B", "list[int]": "1,2", "dict[str,Any]": "JSON",
    "{dict[str,int,str]}": "JSON", "dict[str,float]": "JSON",
    "SecretStr": "SECRET", "list[SecretStr]": "A,B", "Path": "FILE",
}  # fmt: skip
"""Python's names of types -> names in the help."""
_NO_DEFAULT = re.compile(r" ?\(default: (None|\[\]|\{\}|False)\)$")
_IS_ON = re.compile(r" ?\(default: (True|False)\)$")
_HEADINGS = {
    "augment": "augmentation",
    "crf": "dense CRF",
    "ray": "Ray: where the job runs",
    "storage": "storage: how URLs are opened",
    "storage.lease": "storage: one run at a time",
    "storage.s3": "storage: S3 and compatible (s3://, s3a://)",
    "storage.gcs": "storage: Google Cloud Storage (gs://)",
    "storage.azure": "storage: Azure Blob Storage (az://, abfs://)",
}
"""Headings of nested settings, by their dotted name."""


class HelpParser(argparse.ArgumentParser):
    """Prints its help in the width of the terminal; `basic` names the settings that come first."""

    basic: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Raise SettingsError: a flag without its value is reported like every other mistake."""
        raise SettingsError(message, f"see `{self.prog} --help`")

    def format_help(self) -> str:
        """Return usage, description, options by group, examples."""
        width = min(WIDEST, shutil.get_terminal_size((80, 24)).columns) - 1
        formatter = _Formatter(self.prog, max_help_position=min(30, width // 3), width=width)
        usage = "\n       ".join(_wrapped(self.usage or "", width - 7))
        formatter.add_usage(usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for heading, actions in _grouped(self._actions, (*self.basic, "help")).items():
            formatter.start_section(heading)
            formatter.add_arguments(map(_plain, actions))
            formatter.end_section()
        return formatter.format_help() + "\n" + _examples(self.epilog or "", width) + "\n"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Never breaks a word."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrapped(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join("\n".join(_wrapped(each, width)) for each in text.split("\n\n"))


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), width, break_long_words=False, break_on_hyphens=False,
        initial_indent=indent, subsequent_indent=indent,
    )  # fmt: skip


def _grouped(actions: Sequence[argparse.Action], basic: Sequence[str]) -> Mapping[str, list[argparse.Action]]:
    """Return heading -> options; those of `basic` in its order."""
    first: dict[str, argparse.Action] = {}
    rest, nested = list[argparse.Action](), dict[str, list[argparse.Action]]()
    for action in actions:
        name = _name(action)
        if name in basic or not action.option_strings:
            first[name] = action
        elif "." in name:
            nested.setdefault(name.rpartition(".")[0], []).append(action)
        else:
            rest.append(action)
    order = sorted(first, key=lambda name: basic.index(name) if name in basic else -1)
    groups = {"options": [first[name] for name in order], "more options": rest}
    return {
        heading: some
        for heading, some in [
            *groups.items(),
            *((_HEADINGS.get(name, name), nested[name]) for name in sorted(nested)),
        ]
        if some
    }


def _name(action: argparse.Action) -> str:
    long = next((each for each in action.option_strings if each.startswith("--")), action.dest)
    return long.lstrip("-").replace("-", "_")


def _plain(action: argparse.Action) -> argparse.Action:
    """Return the option with readable types, and without uninformative defaults.

    Of `--x` and `--no-x` the one that changes something; both where neither is the default.
    """
    if isinstance(action, argparse.BooleanOptionalAction) and (told := _IS_ON.search(action.help or "")):
        action.help = _IS_ON.sub("", action.help or "")
        no = told[1] == "True"
        action.option_strings = [each for each in action.option_strings if each.startswith("--no-") == no]
    if isinstance(action.metavar, str):
        choices = "{" + re.sub(r"[{}]", "", action.metavar) + "}" if "{" in action.metavar else action.metavar
        action.metavar = _METAVARS.get(choices, choices)
    action.help = _NO_DEFAULT.sub("", action.help or "")
    return action


def _examples(text: str, width: int) -> str:
    """Return lines unchanged where they fit; longer commands are continued, other lines wrapped."""
    return "\n".join(line for given in text.splitlines() for line in _fitted(given, width))


def _fitted(line: str, width: int) -> Iterator[str]:
    if len(line) <= width:
        yield line
    elif line.lstrip().startswith("segray "):
        first, *more = _wrapped(line, width - 10)
        lines = [f"  {first}", *(f"      {each}" for each in more)]
        yield from (f"{each} \\" for each in lines[:-1])
        yield lines[-1]
    else:
        yield from _wrapped(line.replace("   ", "; "), width, "  ")
