"""Declaration of options: `option` makes a field of a group, `group` a class of options, `validate` its instance from texts.

Imports nothing heavy, so that help and error messages appear at once.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import dataclass_transform

from ..errors import UserError, nearest
from .types import Accepts


def option(
    default: Any, help: str, *, short: str = "", aliases: Sequence[str] = (), recipe: bool = False, positional: bool = False
) -> Any:
    """Declare an option of a group.

    Args:
        default: value of an option that is not given; not validated, so None can mean "depends on other options".
            `...` for an option that must be given.
        help: full phrase for `--help`, which appends the default.
        short: one-letter form such as `-b`.
        aliases: names of the option in other trainers, such as `--lr`.
        recipe: the option decides the result, so a run can only be continued with the same value.
        positional: the option is given by its place on the command line, without its name.
    """
    metadata = {"help": help, "short": short, "aliases": tuple(aliases), "recipe": recipe, "positional": positional}
    return dataclasses.field(metadata=metadata) if default is ... else dataclasses.field(default=default, metadata=metadata)


T = TypeVar("T")
MAX_SHOWN = 200  # characters of a value in a message
_HEADINGS: dict[type, str] = {}


@dataclass_transform(frozen_default=True, kw_only_default=True)
def group(heading: str) -> Callable[[type[T]], type[T]]:
    """Make a class whose fields are options a group: a frozen dataclass that `validate` can make from texts.

    Args:
        heading: of the group in the help and in YAML files.
    """

    def decorate(cls: type[T]) -> type[T]:
        made = dataclass(frozen=True, kw_only=True)(cls)
        _HEADINGS[made] = heading
        # The attribute in which pydantic looks for the settings of a plain dataclass.
        setattr(made, "__pydantic_config__", ConfigDict(extra="forbid", allow_inf_nan=False))  # noqa: B010
        return made

    return decorate


def is_group(cls: Any) -> bool:
    """Return whether `group` made this class."""
    return cls in _HEADINGS


@dataclass(frozen=True)
class Option:
    """An option as declared in a group, in the form that parsers, help texts and files need.

    Attributes:
        heading: heading of the group.
        default: value if the option is not given; `...` if it must be given.
        accepts: its values in words.
        choices: the only values; empty where other values are accepted.
        is_switch: the value is true or false.
        is_list: each mention on the command line adds values.
        key: name in a YAML file, and after `--` on the command line.
        required: the option must be given.
        is_set_by_default: the default is a value that a help text can show.
    """

    name: str
    heading: str
    default: Any
    help: str
    short: str
    aliases: tuple[str, ...]
    recipe: bool
    positional: bool
    accepts: Accepts
    choices: tuple[Any, ...]
    is_switch: bool
    is_list: bool

    @property
    def key(self) -> str:
        return self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        return self.default is ...

    @property
    def is_set_by_default(self) -> bool:
        return self.default not in (..., None, "", ())


def options_of(*groups: type) -> list[Option]:
    """Return the options of groups, in the order of their declaration."""
    options = []
    for cls in groups:
        types = get_type_hints(cls, include_extras=True)
        options += [_describe(_HEADINGS[cls], field, types[field.name]) for field in dataclasses.fields(cls)]
    return options


def _describe(heading: str, field: dataclasses.Field[Any], annotation: Any) -> Option:
    annotation, annotations = _unwrap(annotation)
    accepts = next((item for item in reversed(annotations) if isinstance(item, Accepts)), None)
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    if choices:
        names = [str(choice) for choice in choices]
        accepts = Accepts("one of " + ", ".join(names), "{" + ",".join(names) + "}")
    elif annotation is bool:
        accepts = Accepts("true or false", "true|false")
    assert accepts, f"{field.name} has a type that does not say in words what it accepts"
    return Option(
        name=field.name,
        heading=heading,
        default=... if field.default is dataclasses.MISSING else field.default,
        **field.metadata,
        accepts=accepts,
        choices=choices,
        is_switch=annotation is bool,
        is_list=get_origin(annotation) is tuple and get_args(annotation)[-1] is ...,
    )


def _unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """Return the type without `| None` and without its annotations, and the annotations, the innermost first."""
    if get_origin(annotation) in (Union, UnionType) and type(None) in get_args(annotation):
        (annotation,) = (item for item in get_args(annotation) if item is not type(None))
    if get_origin(annotation) is not Annotated:
        return annotation, []
    plain, *annotations = get_args(annotation)
    return plain, annotations


@cache
def _validator(group: type) -> TypeAdapter[Any]:
    return TypeAdapter(group)


def validate(group: type[T], values: Mapping[str, Any]) -> T:
    """Make a group from values as they stand on a command line or in a file; None leaves an option at its default.

    Raises:
        UserError: for a value that the type of the option does not accept.
    """
    texts = {name: to_text(value) for name, value in values.items() if value is not None}
    try:
        return cast(T, _validator(cast(type, group)).validate_python(texts))
    except ValidationError as error:
        name = str(error.errors(include_url=False, include_context=False)[0]["loc"][0])
        (option,) = (option for option in options_of(group) if option.name == name)
        if name not in texts:
            raise UserError(f"`{name}` is missing: {option.help}") from None
        words = in_words(texts[name])
        near = nearest(words, map(str, option.choices))
        remedy = f"; did you mean {near}?" if near else ""
        raise UserError(f"`{name}` {shorten(words)}: must be {option.accepts.text}{remedy}") from None


def to_text(value: Any) -> Any:
    """Return a value as text, and several values as texts, so that every source of values is read by the same rules."""
    if isinstance(value, Mapping):
        return [f"{_text(name)}={_text(item)}" for name, item in value.items()]
    return [_text(item) for item in value] if isinstance(value, list | tuple) else _text(value)


def _text(value: Any) -> str:
    try:
        return str(value)
    except (ValueError, RecursionError):  # a number with more than 4,300 digits, a list inside lists inside lists ...
        return f"<{type(value).__name__}>"


def shorten(text: str) -> str:
    """Return the beginning of a long text, for messages."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text):,} characters)"


def in_words(value: Any) -> str:
    """Return a value as it stands on a command line."""
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join(str(item) or "''" for item in values)
