"""How options are declared, and read from a command line and from a YAML file.

What the options are, options.py says. Imports nothing heavy, so that help and complaints come at once.
"""

import argparse
import dataclasses
import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..errors import UserError


class OptionsError(UserError):
    """Wrong use; the text is one line that names the option and the remedy."""


@dataclass(frozen=True)
class Kind:
    """What values an option takes: `accepts` says it in words, `parse` turns text into a value or raises ValueError."""

    accepts: str
    parse: Callable[[str], Any]
    metavar: str
    counts: Collection[int] = ()  # how many values make a list; empty for a single value
    alone: str = ""  # the value of an option that is given without one, where it may be


def _number(convert: Callable[[str], Any], accepts: str, valid: Callable[[Any], bool], metavar: str) -> Kind:
    def parse(text: str) -> Any:
        value = convert(text)
        if not (math.isfinite(value) and valid(value)):
            raise ValueError
        return value

    return Kind(accepts, parse, metavar)


def _switch(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise ValueError
    return values[text.lower()]


def _name(text: str) -> str:
    if not text:  # an unset variable of the shell, as a rule
        raise ValueError
    return text


def _interval(text: str) -> int | str:
    if text[-1:] in ("s", "m", "h"):
        if not 0 < float(text[:-1]) < math.inf:
            raise ValueError
        return text
    return int(COUNT.parse(text))


def choice(*values: Any) -> Kind:
    """One of these values."""
    by_name = {str(value): value for value in values}

    def parse(text: str) -> Any:
        if text not in by_name:
            raise ValueError
        return by_name[text]

    return Kind("one of " + ", ".join(by_name), parse, "{" + ",".join(by_name) + "}")


def several(kind: Kind, accepts: str, metavar: str, counts: Collection[int]) -> Kind:
    """As many values of a kind as one of the counts says."""
    return Kind(accepts, kind.parse, metavar, counts)


ANY_NUMBER = range(1, 1000)

SWITCH = Kind("true or false", _switch, "")
TEXT = Kind("a name", _name, "NAME")
FILE = Kind("a file name", _name, "FILE")
FOLDER = Kind("a folder name", _name, "DIR")
COUNT = _number(int, "a whole number of at least 1", lambda value: value >= 1, "N")
NATURAL = _number(int, "a whole number from 0 to below 2**63", lambda value: 0 <= value < 2**63, "N")
QUALITY = _number(int, "a whole number from 1 to 100", lambda value: 1 <= value <= 100, "Q")
PIXELS = _number(int, "a whole number of pixels, at least 32", lambda value: value >= 32, "PIXELS")
POSITIVE = _number(float, "a number above 0", lambda value: value > 0, "X")
NON_NEGATIVE = _number(float, "a number of at least 0", lambda value: value >= 0, "X")
SHARE = _number(float, "a number from 0 to 1", lambda value: 0 <= value <= 1, "P")
SHARE_ABOVE_0 = _number(float, "a number above 0 and at most 1", lambda value: 0 < value <= 1, "P")
SHARE_BELOW_1 = _number(float, "a number from 0 to below 1", lambda value: 0 <= value < 1, "X")
INTERVAL = Kind("a whole number of at least 1, or a time like 90s, 10m or 2h", _interval, "N|TIME")
NUMBER = _number(float, "a number", lambda value: True, "X")
RANGE = several(POSITIVE, "two numbers above 0, the smaller first", "X", (2,))
SHARES = several(SHARE_ABOVE_0, "two numbers above 0 and at most 1, the smaller first", "X", (2,))


def option(default: Any, kind: Kind, text: str, *, short: str = "", aliases: Sequence[str] = (), recipe: bool = False) -> Any:
    """An option.

    Args:
        kind: of its value.
        text: for the help.
        short: its letter, as -b.
        aliases: what other trainers call it.
        recipe: it decides the result, so a run can only be continued with the same value.
    """
    metadata = {"kind": kind, "text": text, "short": short, "aliases": tuple(aliases), "recipe": recipe}
    return dataclasses.field(default=default, metadata=metadata)


Groups = Sequence[type]


def fields(groups: Groups) -> Iterable[dataclasses.Field[Any]]:
    """The options in the order of their groups."""
    return (field for group in groups for field in dataclasses.fields(group))


def flag(name: str) -> str:
    """The name of an option as it is given."""
    return "--" + name.replace("_", "-")


def group_name(group: type) -> str:
    """The heading of a group in the help and in YAML files: the first line of its docstring."""
    return (group.__doc__ or group.__name__).splitlines()[0].rstrip(".")


def read(
    groups: Groups, argv: Sequence[str], prog: str, description: str, examples: str, refused: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options on a command line, and those in the YAML file that --config names, if it does.

    Args:
        refused: other trainers' options that have no meaning here, and what to say of them.

    Raises:
        OptionsError: for a name that is unknown, a value that is not accepted, or a file that cannot be read.
        SystemExit: after printing the help.
    """
    found, unknown = _parser(groups, prog, description, examples).parse_known_args(argv)
    if unknown:
        raise OptionsError(_unknown(groups, refused, unknown[0].split("=")[0], "on the command line"))
    kinds = {field.name: field.metadata["kind"] for field in fields(groups)}
    given = {name: parse_value(kinds[name], flag(name), text) for name, text in vars(found).items()}
    return given, _read_yaml(groups, given["config"], refused) if "config" in given else {}


def parse_value(kind: Kind, where: str, given: Any) -> Any:
    """What the text (or the list of texts) given for an option means.

    Raises:
        OptionsError: where the kind does not accept it; `where` says which option it is.
    """
    texts = [str(item) for item in given] if isinstance(given, list) else [str(given)]
    try:
        if len(texts) not in (kind.counts or (1,)):
            raise ValueError
        values = tuple(kind.parse(text) for text in texts)
    except ValueError:
        raise OptionsError(f"{where} {' '.join(texts)}: must be {kind.accepts}") from None
    return values if kind.counts else values[0]


def to_yaml(groups: Groups, options: Any) -> str:
    """The options as a file for `--config`, in their groups; those that are not set are left out."""
    lines = []
    for group in groups:
        lines.append(f"# {group_name(group)}")
        for field in dataclasses.fields(group):
            value = getattr(options, field.name)
            if value not in (None, "", ()) and field.name != "config":
                plain = list(value) if isinstance(value, tuple) else value
                shown = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, allow_unicode=True)
                lines.append(f"{flag(field.name)[2:]}: {shown.splitlines()[0]}")
    return "\n".join(lines) + "\n"


def _read_yaml(groups: Groups, path: str, refused: Mapping[str, str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionsError(f"--config {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an impossible date
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise OptionsError(f"--config {path} is not YAML{place}") from None
    if not isinstance(content or {}, dict):
        raise OptionsError(f"--config {path} is not a list of 'option: value' lines")
    known = {name: field for field in fields(groups) for name in (flag(field.name), *field.metadata["aliases"])}
    given = {}
    for key, value in (content or {}).items():
        name = flag(str(key))
        if name == "--config":
            raise OptionsError(f"'config' in {path}: a file of options cannot name another")
        if name not in known:
            raise OptionsError(_unknown(groups, refused, str(key), f"in {path}"))
        field = known[name]
        if field.name in given:
            raise OptionsError(f"{key!r} in {path} says again what was said before: {flag(field.name)}")
        if isinstance(value, bool) and (alone := field.metadata["kind"].alone):
            value = alone if value else None
        if value is not None:
            given[field.name] = parse_value(field.metadata["kind"], f"{key} in {path}:", value)
    return given


def _unknown(groups: Groups, refused: Mapping[str, str], name: str, where: str) -> str:
    bare = name.lstrip("-").replace("_", "-")
    if not name.startswith("-") and where == "on the command line":
        return f"{name!r} stands alone on the command line; did you mean --data-dir {name}?"
    if bare in refused:
        return f"{name} {where}: {refused[bare]}"
    near = difflib.get_close_matches(bare, [flag(field.name)[2:] for field in fields(groups)], 1, 0.5)
    prefix = "--" if name.startswith("-") else ""
    return f"unknown option {name!r} {where}" + (f"; did you mean {prefix}{near[0]}?" if near else "; --help lists them all")


class Parser(argparse.ArgumentParser):
    """Raises an OptionsError for wrong use, where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        raise OptionsError(message.removeprefix("argument "))


def _parser(groups: Groups, prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        usage=f"{prog} [--config FILE] [option ...]",  # naming them all takes a page before the page
        allow_abbrev=False,
        description=description,
        epilog=examples.format(prog=prog),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=120),
    )
    for group in groups:
        section = parser.add_argument_group(group_name(group))
        for field in dataclasses.fields(group):
            _add(section, field)
    return parser


def _add(section: Any, field: dataclasses.Field[Any]) -> None:
    kind: Kind = field.metadata["kind"]
    names = [*filter(None, [field.metadata["short"]]), flag(field.name), *field.metadata["aliases"]]
    text: str = field.metadata["text"].replace("%", "%%")
    common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    if kind is SWITCH:
        # Both forms exist; the help shows the one that changes something.
        on, off = (argparse.SUPPRESS, text) if field.default else (text, argparse.SUPPRESS)
        section.add_argument(*names, nargs="?", const="true", metavar="true|false", help=on, **common)
        section.add_argument("--no-" + flag(field.name)[2:], action="store_const", const="false", help=off, **common)
        return
    default: Any = field.default
    if default not in (None, "", ()):
        shown = " ".join(f"{value:.4g}" for value in default) if kind.counts else default
        text += f" (default: {shown})"
    several = {"action": "extend", "nargs": "+"} if kind.counts is ANY_NUMBER else {}
    nargs: Any = None if not kind.counts else "+" if len(kind.counts) > 1 else next(iter(kind.counts))
    if kind.alone:
        nargs, common = "?", common | {"const": kind.alone}
    section.add_argument(*names, metavar=kind.metavar, help=text, **({"nargs": nargs} | several), **common)
