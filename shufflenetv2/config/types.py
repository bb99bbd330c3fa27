"""Types of option values: each has a constraint, and says in words what it accepts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidatorFunctionWrapHandler, WrapValidator


@dataclass(frozen=True)
class Accepts:
    """The values of a type in words, for messages and help texts.

    Args:
        text: completes the sentence "must be ...".
        metavar: placeholder of the value in the help.
        nargs: how many values follow the option on the command line, as in argparse: None for a single one, a number,
            or "+" for at least one.
        implied: value of an option that is given without one, where that is possible.
        numbers: up to this many numbers may stand in place of a single value; they are read as one text.
    """

    text: str
    metavar: str
    nargs: int | Literal["+"] | None = None
    implied: str = ""
    numbers: int = 0


def _as_sequence(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _repeat_single(value: Any) -> Any:
    values = _as_sequence(value)
    return list(values) * 3 if len(values) == 1 else values


Size = int | tuple[int, int]  # of an image in pixels: the side of a square, or (height, width)


def as_size(size: int | Sequence[int]) -> Size:
    """Return the side of a square, or (height, width)."""
    if isinstance(size, int):
        return size
    height, width = size
    return height if height == width else (height, width)


def _to_int(value: Any) -> Any:
    return int(value) if isinstance(value, str) else value


def _read_numbers(value: Any) -> Any:
    """Return the numbers of a text."""
    return value.split() if isinstance(value, str) else value


def _read_size(value: Any) -> Any:
    """Return the numbers of a size, or a single number by itself."""
    numbers = _read_numbers(value)
    return numbers[0] if isinstance(numbers, list | tuple) and len(numbers) == 1 else numbers


def _auto_as_none(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return None if value == "auto" else validate(value)


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the smaller number comes first")
    return pair


# Bounds. Above them a run could not end well: numbers overflow, or memory and time are used up.
MAX_COUNT = 2**53 - 1  # the largest whole number up to which floating point is exact
MAX_NUMBER = 1e6
MIN_SIDE, MAX_SIDE = 16, 8192  # of an image, in pixels
MAX_BATCH_SIZE = 2**20

_COUNT = r"0{0,9}[1-9][0-9]{0,14}"
_TIME = rf"({_COUNT}(\.[0-9]{{0,30}})?|0{{0,9}}\.[0-9]{{0,15}}[1-9][0-9]{{0,15}})[smh]"


def _without_null(name: str) -> str:
    if not name or "\0" in name:
        raise ValueError("a name has at least one character, and no null character")
    return name


# Not Field(min_length=1): pydantic then refuses names of files that are not UTF-8.
Name = Annotated[str, AfterValidator(_without_null), Field(json_schema_extra={"minLength": 1})]
Text = Annotated[Name, Accepts("a name", "NAME")]
File = Annotated[Name, Accepts("a file name", "FILE")]
Folder = Annotated[Name, Accepts("a folder name", "DIR")]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT), Accepts("a whole number of at least 1, below 2**53", "N")]
BatchSize = Annotated[
    int, Field(ge=1, le=MAX_BATCH_SIZE), Accepts(f"a whole number of at least 1, at most {MAX_BATCH_SIZE}", "N")
]
BatchSizeOrAuto = Annotated[  # the value of auto is None until the number is chosen
    BatchSize,
    WrapValidator(_auto_as_none, json_schema_input_type=BatchSize | Literal["auto"]),
    Accepts(f"a whole number of at least 1, at most {MAX_BATCH_SIZE}, or auto", "N|auto"),
]
# OpenCV refuses images of more pixels.
PixelCount = Annotated[int, Field(ge=1, le=2**30), Accepts("a whole number from 1 to 2**30", "N")]
Workers = Annotated[int, Field(ge=1, le=1024), Accepts("a whole number from 1 to 1024", "N")]
Repeats = Annotated[int, Field(ge=1, le=1000), Accepts("a whole number from 1 to 1000", "N")]
Cycles = Annotated[int, Field(ge=1, le=300), Accepts("a whole number from 1 to 300", "N")]
Natural = Annotated[int, Field(ge=0, lt=2**63), Accepts("a whole number from 0 to below 2**63", "N")]
Iterations = Annotated[int, Field(ge=0, le=MAX_COUNT), Accepts("a whole number from 0 to below 2**53", "N")]
Distance = Annotated[int, Field(ge=0, le=16), Accepts("a whole number from 0 to 16", "BITS")]
Quality = Annotated[int, Field(ge=1, le=100), Accepts("a whole number from 1 to 100", "Q")]
_Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]
Pixels = Annotated[_Side, Accepts(f"a whole number of pixels from {MIN_SIDE} to {MAX_SIDE}", "PIXELS")]
_SIZES = f"a whole number of pixels from {MIN_SIDE} to {MAX_SIDE}, or height and width"
ImageSize = Annotated[
    _Side | tuple[_Side, _Side],
    BeforeValidator(_read_size, json_schema_input_type=_Side | tuple[_Side, _Side]),
    AfterValidator(as_size),
    Accepts(_SIZES, "PIXELS", numbers=2),
]
# Config.from_values reads the number of channels that may stand before the size, which is timm's form.
InputSize = Annotated[
    _Side | tuple[_Side, _Side],
    BeforeValidator(_read_size, json_schema_input_type=_Side | tuple[_Side, _Side] | tuple[Literal[1, 3], _Side, _Side]),
    AfterValidator(as_size),
    Accepts(f"{_SIZES}, or channels, height and width", "PIXELS", numbers=3),
]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER), Accepts("a number from -1e6 to 1e6", "X")]
Positive = Annotated[float, Field(gt=0, le=MAX_NUMBER), Accepts("a number above 0, at most 1e6", "X")]
NonNegative = Annotated[float, Field(ge=0, le=MAX_NUMBER), Accepts("a number of at least 0, at most 1e6", "X")]
Deviation = Annotated[float, Field(ge=1e-37, le=MAX_NUMBER), Accepts("a number from 1e-37 to 1e6", "X")]
Factor = Annotated[float, Field(ge=0.1, le=10), Accepts("a number from 0.1 to 10", "X")]
Ratio = Annotated[float, Field(ge=0.01, le=100), Accepts("a number from 0.01 to 100", "X")]
Probability = Annotated[float, Field(ge=0, le=1), Accepts("a number from 0 to 1", "P")]
FractionAbove0 = Annotated[float, Field(gt=0, le=1), Accepts("a number above 0 and at most 1", "P")]
FractionBelow1 = Annotated[float, Field(ge=0, lt=1), Accepts("a number from 0 to below 1", "X")]
Interval = Annotated[
    Annotated[int, Field(ge=1, le=MAX_COUNT)] | Annotated[str, Field(pattern=rf"^({_COUNT}, ?)?{_TIME}$")],
    Accepts("a whole number of at least 1, a time like 90s, 10m or 2h, or both like 10000,10m", "N|TIME|N,TIME"),
]
Range = Annotated[
    tuple[Ratio, Ratio],
    AfterValidator(_ascending),
    Accepts("two numbers from 0.01 to 100, the smaller first", "X", 2),
]
ImageFraction = Annotated[float, Field(ge=0.01, le=1), Accepts("a number from 0.01 to 1", "P")]
Fractions = Annotated[
    tuple[ImageFraction, ImageFraction],
    AfterValidator(_ascending),
    Accepts("two numbers from 0.01 to 1, the smaller first", "X", 2),
]
Colour = Annotated[
    tuple[Number] | tuple[Number, Number, Number],
    BeforeValidator(_read_numbers, json_schema_input_type=Number | tuple[Number] | tuple[Number, Number, Number]),
    Accepts("one number from -1e6 to 1e6, or three", "X", numbers=3),
]
PositiveColour = Annotated[
    tuple[Deviation] | tuple[Deviation, Deviation, Deviation],
    BeforeValidator(
        _read_numbers, json_schema_input_type=Deviation | tuple[Deviation] | tuple[Deviation, Deviation, Deviation]
    ),
    Accepts("one number from 1e-37 to 1e6, or three", "X", numbers=3),
]
_OneOrThree = NonNegative | tuple[NonNegative] | tuple[NonNegative, NonNegative, NonNegative]
Jitter = Annotated[
    tuple[NonNegative, NonNegative, NonNegative],
    BeforeValidator(_repeat_single, json_schema_input_type=_OneOrThree),
    Accepts("one number from 0 to 1e6, or three", "X", "+"),
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
    Accepts("whole numbers of at least 1, below 2**53", "N", "+"),
]
_Setting = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*=.+$")]
Settings = Annotated[
    tuple[_Setting, ...],
    Field(min_length=1),
    BeforeValidator(_as_sequence, json_schema_input_type=_Setting | tuple[_Setting, ...] | dict[str, bool | float | str]),
    Accepts("a name, an equals sign and a value", "NAME=VALUE", "+"),
]
IntegerChoice = BeforeValidator(_to_int)


def height_width(size: Size) -> tuple[int, int]:
    """Return the height and the width of a size."""
    return size if isinstance(size, tuple) else (size, size)


def describe_size(size: Size) -> str:
    """Describe a size for messages, for example as '224 x 224 pixels'."""
    height, width = height_width(size)
    return f"{height} x {width} pixels" + (" (height x width)" if height != width else "")


def contains(outer: Size, inner: Size) -> bool:
    """Return whether neither side of `outer` is shorter than that of `inner`."""
    return all(long >= short for long, short in zip(height_width(outer), height_width(inner), strict=True))


def split_interval(interval: int | str) -> tuple[int | None, float | None]:
    """Return the number of iterations and of seconds in an `Interval`; None for the one that it does not give."""
    if isinstance(interval, int):
        return interval, None
    *iterations, duration = interval.split(",")
    seconds = float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]
    return (int(iterations[0]) if iterations else None), seconds
