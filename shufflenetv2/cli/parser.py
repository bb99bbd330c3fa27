"""The command-line parser of all commands, built from the option groups in `shufflenetv2.config`."""

import argparse
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NoReturn, TypeVar

from .. import __version__
from ..config import Option, options_of, shorten, validate
from ..errors import UserError, nearest

T = TypeVar("T")
HELP_WIDTH, HELP_COLUMN = 120, 34
MAX_PROPOSALS = 4


class OptionParser:
    """Parse the command line of a command whose options are declared in groups; see `shufflenetv2.config.group`.

        @group("preparation")
        class PrepareConfig:
            source: Folder = option(..., "folder to read", positional=True)
            workers: Count | None = option(None, "number of threads", short="-j")

        def main(argv: Sequence[str], prog: str = "shufflenetv2 prepare") -> int:
            parser = OptionParser(prog, PrepareConfig, description="Shrink a data set.")
            return run_command(parser, lambda: prepare(parser.parse_group(PrepareConfig, argv)))

    Args:
        prog: name of the program in the help and in error messages.
        groups: classes made by `group`.
        description: text at the top of the help.
        examples: text at the end of the help; {prog} is replaced.
        usage: the usage line without the program's name; by default argparse generates it.

    Attributes:
        spellings: option name -> the option as the user typed it, for messages.
        debug: whether errors are shown with a traceback.
    """

    def __init__(self, prog: str, *groups: type, description: str = "", examples: str = "", usage: str = "") -> None:
        self.prog = prog
        self.options = options_of(*groups)
        self.debug = False
        self.spellings: dict[str, str] = {option.name: _metavar(option) for option in self.options if option.positional}
        self._names = {"--help", "--version"}
        self._parser = _ArgumentParser(
            prog=prog,
            usage=f"{prog} {usage}" if usage else None,
            allow_abbrev=False,
            description=description,
            epilog=examples.replace("{prog}", prog),
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 2, HELP_COLUMN, HELP_WIDTH),
        )
        self._parser.add_argument("--version", action="version", version=f"{prog} {__version__}", help="show the version")
        sections: dict[str, Any] = {}
        for option in self.options:
            if option.heading not in sections:
                sections[option.heading] = self._parser.add_argument_group(option.heading)
            self._add(sections[option.heading], option)

    def format_help(self) -> str:
        return self._parser.format_help()

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return {option name: text, or list of texts} for a command line, and record in `spellings` what the user typed.

        Raises:
            UserError: for an unknown option, an option without its value, or an unexpected argument.
            SystemExit: after printing the help or the version.
        """
        for word in argv:
            if word == "--":
                break
            name = word.split("=")[0]
            # `-data-dir D` would be taken for `-d ata-dir D`.
            is_unknown = word.startswith("--") or (word.startswith("-") and f"-{name}" in self._names)
            if is_unknown and name not in self._names:
                raise UserError(self.unknown_option(name, "on the command line"))
        words = self._with_explicit_values(argv)
        if any(option.positional for option in self.options):
            namespace, rest = self._parser.parse_known_intermixed_args(words)
        else:
            namespace, rest = self._parser.parse_known_args(words)
        for word in rest:
            if word.startswith("-") and word != "--":
                raise UserError(self.unknown_option(word.split("=")[0], "on the command line"))
        if rest := [word for word in rest if word != "--"]:
            self.take_arguments(rest)
        return {name: value for name, value in vars(namespace).items() if value is not None}

    def take_arguments(self, arguments: Sequence[str]) -> None:
        """Accept the arguments on a command line, at least one, that are neither options nor values of options.

        Raises:
            UserError: always here; a parser that accepts arguments overrides the method.
        """
        raise UserError(f"unexpected argument {arguments[0]!r} on the command line")

    def is_argument(self, text: str) -> bool:
        """Return whether a text that follows a boolean option is an argument, and not the value of the option."""
        return any(option.positional for option in self.options) and text.lower() not in ("true", "false")

    def answer(self, name: str) -> str:
        """Return what to use instead of an option that only other trainers have; '' for any other name."""
        return ""

    def _with_explicit_values(self, argv: Sequence[str]) -> list[str]:
        """Write `--name=value` where argparse would take too much or too little for the value."""
        by_name = {name: option for option in self.options for name in ("--" + option.key, *option.aliases)}
        rest, words = list(argv), []
        while rest:
            word = rest.pop(0)
            option = by_name.get(word)
            if option and option.is_switch and rest and self.is_argument(rest[0]):
                word += "=true"
            numbers = list(takewhile(_is_number, rest[: option.accepts.numbers if option else 0]))
            if numbers:
                word += "=" + " ".join(numbers)
                del rest[: len(numbers)]
            words.append(word)
        return words

    def parse_group(self, group: type[T], argv: Sequence[str]) -> T:
        """Parse and validate a command line, and return an instance of the group.

        Raises:
            UserError: for an unknown option, or a value that is missing or not accepted.
            SystemExit: after printing the help or the version.
        """
        return validate(group, self.parse(argv))

    def spell(self, text: str) -> str:
        """Replace each option name in backticks by the option as the user typed it."""
        return spell_options(text, self.spellings)

    def unknown_option(self, name: str, where: str) -> str:
        """Return the error message for an unknown option: the answer to another trainer's option, or similar option names.

        Args:
            name: as the user wrote it, with or without dashes.
            where: place of the name: 'on the command line' or 'in FILE'.
        """
        bare = name.lstrip("-").replace("_", "-").lower()
        dashes = "--" if name.startswith("-") else ""
        if answer := self.answer(bare):
            return f"{name} {where}: {answer}"
        names = [option.key for option in self.options if not option.positional]
        names += [alias[2:] for option in self.options for alias in option.aliases]
        near = [key for key in names if key.startswith(f"{bare}-") and bare not in names]
        if len(near) > MAX_PROPOSALS:
            near = sorted(near, key=len)[:MAX_PROPOSALS]
        near = near or [nearest(bare, names)]
        proposals = " or ".join(f"{dashes}{key}" for key in near if key)
        return f"unknown option {shorten(name)!r} {where}" + (
            f"; did you mean {proposals}?" if proposals else "; --help lists them all"
        )

    def _add(self, section: Any, option: Option) -> None:
        text = _help(option)
        if option.positional:
            count = "+" if option.is_list else None if option.required else "?"
            section.add_argument(option.name, metavar=_metavar(option), nargs=count, help=text)
            return
        names = [*filter(None, [option.short]), "--" + option.key, *option.aliases]
        self._names.update(names)
        store = _recording_action(self.spellings, extend=option.is_list)
        common: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS, "action": store}
        if option.is_switch:
            # --name and --no-name both exist; the help shows only the form that changes the default.
            on, off = (argparse.SUPPRESS, text) if option.default else (text, argparse.SUPPRESS)
            section.add_argument(*names, nargs="?", const="true", metavar="true|false", help=on, **common)
            self._names.add("--no-" + option.key)
            section.add_argument("--no-" + option.key, nargs=0, const="false", help=off, **common)
            return
        accepts = option.accepts
        nargs = "?" if accepts.implied else accepts.nargs
        section.add_argument(*names, nargs=nargs, const=accepts.implied, metavar=accepts.metavar, help=text, **common)


def _help(option: Option) -> str:
    text = spell_options(option.help, {})
    if option.is_set_by_default and not option.is_switch:
        values = option.default if isinstance(option.default, tuple) else (option.default,)
        texts = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        text += f" (default: {' '.join(texts)})"
    return text.replace("%", "%%")


def spell_options(text: str, spellings: Mapping[str, str]) -> str:
    """Replace each option in backticks by its form on the command line.

    `name` becomes the spelling in `spellings`, or else `--name`. `name=value` becomes `--name value`, `name=True` becomes
    `--name`, and `name=False` becomes `--no-name`.
    """

    def spell(match: re.Match[str]) -> str:
        name, value = match.groups()
        flag = "--" + name.replace("_", "-")
        if value is None:
            return spellings.get(name, flag)
        return {"True": flag, "False": "--no-" + flag[2:]}.get(value, f"{flag} {value}")

    return re.sub(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`", spell, text)


def _metavar(option: Option) -> str:
    return option.accepts.metavar if option.accepts.metavar not in ("FILE", "DIR", "NAME") else option.name.upper()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class _ArgumentParser(argparse.ArgumentParser):
    """Raise a UserError for wrong usage, where argparse would print a message and exit."""

    def error(self, message: str) -> NoReturn:
        missing = "the following arguments are required: "
        if message.startswith(missing):
            raise UserError(f"{message.removeprefix(missing)} missing; --help shows how to use the command")
        raise UserError(message.removeprefix("argument "))


def _recording_action(spellings: dict[str, str], extend: bool) -> type[argparse.Action]:
    """Return an argparse action that stores a value (`extend`: appends to a list) and records the option as it was typed."""

    class Store(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
            spellings[self.dest] = option_string or self.dest
            if self.nargs == 0:
                values = self.const
            if extend:
                values = [*getattr(namespace, self.dest, ()), *(values if isinstance(values, list) else [values])]
            setattr(namespace, self.dest, values)

    return Store
