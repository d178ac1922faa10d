"""Parse the settings of a verb from flags, environment and `--config` file; report all problems in words.

Flags win over the environment, the environment over the file, the file over the defaults.
"""

import argparse
import difflib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource
from pydantic_settings import SettingsError as PydanticSettingsError

from segray.errors import SettingsError
from segray.help import HelpParser
from segray.log import LOG
from segray.settings import CONFIG_FILE, ENV_PREFIX, CommonSettings, JobSettings
from segray.verbs import VERBS

S = TypeVar("S", bound=CommonSettings)


def settings_of(verb: str, arguments: Sequence[str], program: str = "segray") -> Any:
    """Return the settings of a verb; `program` is how it was called. Raises SettingsError."""
    cls = VERBS[verb].settings_class()
    assert cls is not None
    return load_settings(cls, arguments, f"{program} {verb}")


def load_settings(cls: type[S], arguments: Sequence[str], program: str) -> S:
    """Return settings from flags, environment and file.

    Raises SettingsError with one line for every problem at once. `--help` prints and exits 0.
    """
    parser = HelpParser(
        prog=program,
        usage=f"{program} {cls.usage} [options]",
        description=inspect.cleandoc(cls.__doc__ or ""),
        epilog=cls.examples,
        allow_abbrev=False,
    )
    parser.basic = cls.basic
    unknown: list[str] = []

    def parse(parser: argparse.ArgumentParser, arguments: Sequence[str], _: Any = None) -> argparse.Namespace:
        namespace, rest = parser.parse_known_intermixed_args(arguments)
        unknown.extend(rest)
        _take_literally(parser, namespace)
        return namespace

    try:
        flags: CliSettingsSource[Any] = CliSettingsSource(
            cls,
            root_parser=parser,
            cli_parse_args=list(arguments),
            parse_args_method=parse,
        )
        given: Any = flags()
    except PydanticSettingsError as error:
        message = str(error).removeprefix("Parsing error encountered for ")
        raise SettingsError(f"{message}; what holds a double quote goes into a --config file") from error
    problems = [_unknown_flag(cls, flag, program) for flag in _only_names(unknown)]
    problems += _unknown_environment()
    named = os.environ.get(ENV_PREFIX + "CONFIG") if issubclass(cls, JobSettings) else None
    file, file_problems = _config_file(given.get("config") or named)
    problems += file_problems
    LOG.choose(arguments, file)
    token = CONFIG_FILE.set(file)
    try:
        settings = cls(_cli_settings_source=flags)
    except ValidationError as error:
        problems += [_line(cls, problem) for problem in error.errors()]
    except PydanticSettingsError as error:
        problems += [str(error)]
    finally:
        CONFIG_FILE.reset(token)
    if problems:
        lacks = [f"usage: {program} {cls.usage}"] * any("is required" in problem for problem in problems)
        raise SettingsError(*problems, *lacks, f"see `{program} --help`")
    return settings


def settings_from(verb: str, arguments: dict[str, Any], settings: CommonSettings | None = None) -> Any:
    """Return the settings of a verb called from Python; those of `settings` hold where no argument is given.

    Raises SettingsError with one line for every problem at once.
    """
    cls = VERBS[verb].settings_class()
    assert cls is not None
    given = {} if settings is None else {name: getattr(settings, name) for name in settings.model_fields_set}
    try:
        return cls(**given | arguments)
    except ValidationError as error:
        raise SettingsError(*(_line(cls, problem) for problem in error.errors())) from error
    except PydanticSettingsError as error:
        raise SettingsError(str(error)) from error


def _take_literally(parser: argparse.ArgumentParser, namespace: argparse.Namespace) -> None:
    """Keep a source as one name: pydantic would split it at commas, and read `[ab]` as JSON.

    Quotes keep it from that; what holds quotes itself stays as it is, so that a list in JSON may be typed.
    """
    for action in parser._actions:
        values = getattr(namespace, action.dest, None)
        if not action.option_strings and isinstance(values, list):
            setattr(namespace, action.dest, [each if '"' in each else f'"{each}"' for each in values])


def _config_file(path: str | None) -> tuple[dict[str, Any], list[str]]:
    """Return the content of the YAML file, and its problems."""
    if not path:
        return {}, []
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [f"config: cannot read {path}: {error.strerror}"]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = f", line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        return {}, [f"config: {path}{line} is not YAML: {getattr(error, 'problem', None) or 'not UTF-8'}"]
    if content is None:
        return {}, []
    if not isinstance(content, dict):
        return {}, [f"config: {path} must hold `name: value` lines, not a {type(content).__name__}"]
    return {str(name).replace("-", "_").lstrip("_"): value for name, value in content.items()}, []


_FORMS = {
    "endpoint_url": "must be http(s)://host, without user and query",
    "address": "must be http(s)://HOST:PORT, without user and query",
    "name": "must be lower-case letters, digits and `-`, at most 40, first a letter",
    "time_limit": "must be HH:MM:SS, with DAYS- before it if need be",
    "bands": "must be one number or three, from 1: 3,2,1",
    "scaling": "must be auto, percentiles, or LOW,HIGH",
}
"""Forms of patterns in words; the given value may be a secret."""


def _line(cls: type[BaseSettings], problem: Any) -> str:
    names = [str(part) for part in problem["loc"]]
    dotted = ".".join(names) or "settings"
    if problem["type"] == "extra_forbidden":
        return f"{dotted}: unknown setting{_did_you_mean(names[-1], _known(cls))}"
    if problem["type"] == "missing" or (problem["type"] == "too_short" and not problem["input"]):
        return f"{dotted}: is required"
    if problem["type"] == "string_pattern_mismatch":
        is_needed = problem["ctx"]["pattern"] == r"\S"
        message = _FORMS.get(names[-1], f"must have the form {problem['ctx']['pattern']}")
        return f"{dotted}: {'is empty' if is_needed else message}"
    given = None if names[:1] == ["storage"] else problem.get("input")  # may be a secret
    message = problem["msg"].removeprefix("Value error, ")  # pydantic's mark of a ValueError of ours
    is_shown = isinstance(given, str | int | float) and repr(given) not in message
    return f"{dotted}: {message}{f' (given: {given!r})' * is_shown}"


def _known(cls: type[BaseModel]) -> list[str]:
    """Return all setting names, nested ones dotted and by their last part."""
    names: list[str] = []
    for name, field in cls.model_fields.items():
        names.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            nested = _known(field.annotation)
            names += nested + [f"{name}.{inner}" for inner in nested]
    return names


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _only_names(unknown: Sequence[str]) -> list[str]:
    """Return unknown arguments, without the values that belong to an unknown flag."""
    return [
        argument
        for before, argument in zip(["", *unknown], unknown, strict=False)
        if argument.startswith("-") or not before.startswith("-") or "=" in before
    ]


def _unknown_flag(cls: type[BaseModel], flag: str, program: str) -> str:
    flag = flag.partition("=")[0]  # the value may be a secret
    name = flag.lstrip("-")
    names = _known(cls) + (_known_to("schedule") if " schedule" in program else [])
    hint = _did_you_mean(name, [known.replace("_", "-") for known in names])
    if "submit" in program and name.replace("-", "_") in _known_to("submit"):
        hint = "; it belongs to submit: put it before the verb"
    return f"{flag}: unknown flag{hint}" if flag.startswith("-") else f"{flag}: unexpected argument"


def _known_to_any_verb() -> list[str]:
    """Return the settings of all verbs: one environment serves them, so another verb's are valid."""
    return list(dict.fromkeys(name for verb in VERBS for name in _known_to(verb)))


def _known_to(verb: str) -> list[str]:
    cls = VERBS[verb].settings_class()
    return [] if cls is None else _known(cls)


def _unknown_environment() -> list[str]:
    names = _known_to_any_verb()
    known = {name.upper().replace(".", "__") for name in names}
    return [
        f"{name}: unknown setting in the environment{_did_you_mean(rest.lower(), names)}"
        for name in sorted(os.environ)
        if name.startswith(ENV_PREFIX) and (rest := name[len(ENV_PREFIX) :]).upper() not in known
    ]
