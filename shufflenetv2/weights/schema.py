"""What a weight file may contain: the types of its metadata, and the tensors that a network can take.

Everything in a file that somebody else wrote is checked here before it is used, so that the rest of the program can rely on it.
"""

import math
import reprlib
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import torch
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    Strict,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    with_config,
)
from torch import Tensor, nn
from typing_extensions import TypedDict

from ..config import MAX_COUNT, MAX_SIDE, MIN_SIDE, Interpolation
from ..errors import UserError, one_line

Side = Annotated[int, Strict(), Field(ge=MIN_SIDE, le=MAX_SIDE)]
ImageSize = Side | tuple[Side, Side]
Iteration = Annotated[int, Strict(), Field(ge=0, le=MAX_COUNT)]
Finite = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
ClassNames = list[StrictStr] | None
CropMode = Literal["center", "squash", "border"]
ModelSize = Literal["0.5x", "1.0x", "1.5x", "2.0x"]
Scalar = StrictBool | StrictInt | StrictFloat | StrictStr | None
OptionValue = Scalar | tuple[Scalar, ...]  # of an option; JSON turns tuples into lists, and pydantic turns them back

SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 60, 60
REMEDY = "; use another file of the run"
WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COUNTER_TYPES = (torch.int64, torch.int32)


@with_config(ConfigDict(extra="forbid"))
class PreprocessingRecord(TypedDict, total=False):
    """The fields of `Preprocessing`; an older file may lack some of them."""

    input_size: ImageSize
    resize_size: ImageSize
    mean: tuple[Finite, ...]
    std: tuple[Positive, ...]
    interpolation: Interpolation
    crop_mode: CropMode


@with_config(ConfigDict(extra="forbid"))
class ArchitectureRecord(TypedDict, total=False):
    """See `ShuffleNetV2.architecture`."""

    in_chans: Literal[1, 3]
    pooling: Literal["avg", "max", "avgmax", "catavgmax"]
    layout: Literal["original", "torchvision"]
    head_bias: StrictBool
    bn_eps: Positive


def _require_accuracy(accuracy: dict[str, float]) -> dict[str, float]:
    if missing := {"top1", "top5", "loss"} - accuracy.keys():
        raise ValueError(f"{', '.join(sorted(missing))} must be among them")
    return accuracy


class ChangeRecord(TypedDict):
    """See `RecipeChange.record`."""

    iteration: Iteration
    options: dict[StrictStr, tuple[OptionValue, OptionValue]]


class Metadata(TypedDict, total=False):
    """See `Weights.metadata`. Files of older versions lack some of it, and a checkpoint contains more."""

    model_size: ModelSize
    class_names: ClassNames
    preprocessing: PreprocessingRecord
    iteration: Iteration
    architecture: ArchitectureRecord
    origin: Literal["shufflenetv2", "original", "torchvision", "mmpretrain"]
    accuracy: Annotated[dict[StrictStr, StrictFloat], AfterValidator(_require_accuracy)] | None
    averaged: StrictBool | None
    recalibrated: StrictBool | None
    history: list[ChangeRecord] | None
    stop_reason: StrictStr | None
    options: dict[StrictStr, OptionValue] | None
    samples: StrictStr | None
    version: StrictStr | None
    host: StrictStr | None
    time: StrictStr | None


T = TypeVar("T")


def check_metadata(path: str | Path, schema: type[T], values: Any, what: str = "metadata") -> T:
    """Return values from a file in the form of a schema, with tuples in place of lists where the schema has tuples.

    Args:
        path: the file, for error messages.
        schema: a TypedDict. Keys that it does not have are left out, unless it forbids them.
        values: what the file contains.
        what: name of the values, for error messages.

    Raises:
        UserError: a value has a type that the schema does not have, or is out of range.
    """
    try:
        return cast(T, _adapter(cast(Hashable, schema)).validate_python(values))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place, value = _find(values, first["loc"])
        reason = ", and " + first["msg"].replace("Input should", "must").replace("Value error, ", "")
        if first["type"] == "missing":
            reason = f", and {first['loc'][-1]} is missing"
        elif len(place) < len(first["loc"]):  # one of the alternatives of a union, which does not say what is accepted
            reason = ""
    except (ValueError, TypeError) as error:  # a number with more than 4,300 digits
        place, value, reason = [], values, f", and {one_line(error)}"
    raise UserError(
        f"{path} cannot be used: {'.'.join([what, *place])} is {_shorten(value)}{reason}; "
        "save the file again, or its state dict alone"
    )


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _find(values: Any, location: Sequence[str | int]) -> tuple[list[str], Any]:
    """Return the names that lead to the value of an error, and the value.

    pydantic's location also names the alternatives of a union, at which there is no value.
    """
    names = []
    for name in location:
        is_item = isinstance(values, list | tuple) and isinstance(name, int) and name < len(values)
        if is_item or (isinstance(values, Mapping) and name in values):
            names.append(str(name))
            values = values[name]
    return names, values


def _shorten(value: Any) -> str:
    try:
        return " ".join(SHORT.repr(value).split())
    except ValueError:  # a number with more than 4,300 digits
        return f"a very large {type(value).__name__}"


def plain_items(content: Any) -> dict[Any, Any]:
    """Return the items of a dict. The unpickler lets a file give its dicts attributes, which could hide methods."""
    return {key: dict.__getitem__(content, key) for key in dict.__iter__(content)}


def check_tensors(path: Path, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state dict without gradients and attributes.

    Raises:
        UserError: an entry is not a tensor with all of its values in memory.
    """
    tensors = {}
    for name, entry in state_dict.items():
        is_plain = type(entry) in (Tensor, nn.Parameter)
        if not is_plain or entry.layout != torch.strided or entry.device.type != "cpu" or entry.is_quantized:
            raise UserError(f"{path} cannot be used: {name} in its state dict is {_kind(entry)}, not a tensor of numbers")
        if entry.numel() * entry.element_size() > entry.untyped_storage().nbytes():
            # One stored number can be a tensor of any size, and would have to be copied into a network of that size.
            raise UserError(f"{path} cannot be used: {name} in its state dict repeats its values; save it with .contiguous()")
        tensors[name] = Tensor.detach(entry)
    return tensors


def _kind(entry: Any) -> str:
    if not isinstance(entry, Tensor):
        return f"a {type(entry).__name__}"
    return (
        "a quantized tensor" if entry.is_quantized else f"a {str(entry.layout).removeprefix('torch.')} tensor on {entry.device}"
    )


def check_values(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Check that a network can compute with the values of tensors.

    Raises:
        UserError: a tensor holds NaN or infinite values, a negative variance, or something else than real numbers.
    """
    for name, tensor in state_dict.items():
        is_counter = name.endswith("num_batches_tracked")
        if tensor.dtype not in WEIGHT_TYPES and not (is_counter and tensor.dtype in COUNTER_TYPES):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{path} cannot be used: {name} holds {kind} values; save it with .float()")
        if is_counter or not tensor.numel():
            continue
        low, high = (value.item() for value in torch.aminmax(tensor))  # NaN if there is one
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(f"{path} cannot be used: {name} holds values that are NaN or infinite{REMEDY}", status=1)
        if low < 0 and name.endswith("running_var"):
            raise UserError(
                f"{path} cannot be used: {name} is a variance and holds the negative value {low:g}{REMEDY}", status=1
            )
