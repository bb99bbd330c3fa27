"""Declaration of an option: its type with constraint, default, help text and spellings.

Imports nothing heavy, so that help and error messages appear at once.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import dataclass_transform

from ..errors import UserError


@dataclass(frozen=True)
class Accepts:
    """The values of a type in words, for messages and help texts.

    Args:
        text: completes the sentence "must be ...".
        metavar: placeholder of the value in the help.
        nargs: how many values follow the option on the command line, as in argparse: None for a single one, a number,
            or "+" for at least one.
        implied: value of an option that is given without one, where that is possible.
    """

    text: str
    metavar: str
    nargs: int | Literal["+"] | None = None
    implied: str = ""


def _as_sequence(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _repeat_single(value: Any) -> Any:
    values = _as_sequence(value)
    return list(values) * 3 if len(values) == 1 else values


def _to_int(value: Any) -> Any:
    return int(value) if isinstance(value, str) else value


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the smaller number comes first")
    return pair


_POSITIVE_TIME = r"^([0-9]*[1-9][0-9]*(\.[0-9]*)?|[0-9]*\.[0-9]*[1-9][0-9]*)[smh]$"

Text = Annotated[str, Field(min_length=1), Accepts("a name", "NAME")]
File = Annotated[str, Field(min_length=1), Accepts("a file name", "FILE")]
Folder = Annotated[str, Field(min_length=1), Accepts("a folder name", "DIR")]
Count = Annotated[int, Field(ge=1), Accepts("a whole number of at least 1", "N")]
Natural = Annotated[int, Field(ge=0, lt=2**63), Accepts("a whole number from 0 to below 2**63", "N")]
Quality = Annotated[int, Field(ge=1, le=100), Accepts("a whole number from 1 to 100", "Q")]
Pixels = Annotated[int, Field(ge=32), Accepts("a whole number of pixels, at least 32", "PIXELS")]
Number = Annotated[float, Accepts("a number", "X")]
Positive = Annotated[float, Field(gt=0), Accepts("a number above 0", "X")]
NonNegative = Annotated[float, Field(ge=0), Accepts("a number of at least 0", "X")]
Probability = Annotated[float, Field(ge=0, le=1), Accepts("a number from 0 to 1", "P")]
FractionAbove0 = Annotated[float, Field(gt=0, le=1), Accepts("a number above 0 and at most 1", "P")]
FractionBelow1 = Annotated[float, Field(ge=0, lt=1), Accepts("a number from 0 to below 1", "X")]
Interval = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=_POSITIVE_TIME)],
    Accepts("a whole number of at least 1, or a time like 90s, 10m or 2h", "N|TIME"),
]
Range = Annotated[
    tuple[Positive, Positive],
    AfterValidator(_ascending),
    Accepts("two numbers above 0, the smaller first", "X", 2),
]
Fractions = Annotated[
    tuple[FractionAbove0, FractionAbove0],
    AfterValidator(_ascending),
    Accepts("two numbers above 0 and at most 1, the smaller first", "X", 2),
]
Colour = Annotated[tuple[Number, Number, Number], Accepts("three numbers", "X", 3)]
PositiveColour = Annotated[tuple[Positive, Positive, Positive], Accepts("three numbers above 0", "X", 3)]
_OneOrThree = NonNegative | tuple[NonNegative] | tuple[NonNegative, NonNegative, NonNegative]
Jitter = Annotated[
    tuple[NonNegative, NonNegative, NonNegative],
    BeforeValidator(_repeat_single, json_schema_input_type=_OneOrThree),
    Accepts("one number of at least 0, or three", "X", "+"),
]
Betas = Annotated[
    tuple[FractionBelow1, FractionBelow1] | tuple[FractionBelow1, FractionBelow1, FractionBelow1],
    Accepts("two or three numbers from 0 to below 1", "X", "+"),
]
OneOrTwoFractions = Annotated[
    tuple[Probability] | tuple[Probability, Probability],
    BeforeValidator(_as_sequence, json_schema_input_type=Probability | tuple[Probability] | tuple[Probability, Probability]),
    Accepts("one or two numbers from 0 to 1", "P", "+"),
]
Names = Annotated[
    tuple[Text, ...],
    Field(min_length=1),
    BeforeValidator(_as_sequence, json_schema_input_type=Text | tuple[Text, ...]),
    Accepts("names", "NAME", "+"),
]
Counts = Annotated[
    tuple[Count, ...],
    Field(min_length=1),
    BeforeValidator(_as_sequence, json_schema_input_type=Count | tuple[Count, ...]),
    Accepts("whole numbers of at least 1", "N", "+"),
]
IntegerChoice = BeforeValidator(_to_int)


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
        # Where pydantic looks for it.
        setattr(made, "__pydantic_config__", ConfigDict(extra="forbid", allow_inf_nan=False))  # noqa: B010
        return made

    return decorate


@dataclass(frozen=True)
class Option:
    """An option as declared in a group, in the form that parsers, help texts and files need.

    Args:
        choices: the values it is limited to; empty if it takes others.
        is_switch: its value is true or false.
        is_list: each mention on the command line adds values.
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
        """Its name in a YAML file, and after `--` on the command line."""
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


def validate(group: type[T], values: Mapping[str, Any]) -> T:
    """Make a group from values as they stand on a command line or in a file; None leaves an option at its default.

    Raises:
        UserError: for a value that the type of the option does not accept.
    """
    texts = {name: to_text(value) for name, value in values.items() if value is not None}
    try:
        return TypeAdapter(group).validate_python(texts)
    except ValidationError as error:
        name = str(error.errors(include_url=False, include_context=False)[0]["loc"][0])
        (option,) = (option for option in options_of(group) if option.name == name)
        if name not in texts:
            raise UserError(f"`{name}` is missing: {option.help}") from None
        raise UserError(f"`{name}` {in_words(texts[name])}: must be {option.accepts.text}") from None


def to_text(value: Any) -> Any:
    """Return a value as text, and a list of values as texts, so that every source of values is read by the same rules."""
    return [str(item) for item in value] if isinstance(value, list | tuple) else str(value)


def in_words(value: Any) -> str:
    """Return a value as it stands on a command line."""
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join(str(item) or "''" for item in values)
