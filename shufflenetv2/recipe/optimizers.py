"""Optimizers: parameter groups, construction by name, and clipping of gradients."""

import ast
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ..config import MAX_COUNT, FineTuningConfig, OptimizationConfig
from ..errors import UserError, nearest, one_line
from ..network import ShuffleNetV2

LOOKAHEAD = "lookahead_"  # prefix of names
KRON = ("kron", "kronc", "kronw")  # timm's names of Kron; they are refused
# Arguments of optimizers that have options of their own.
OWN_OPTIONS = {
    "lr": "learning_rate",
    "momentum": "momentum",
    "weight_decay": "weight_decay",
    "eps": "opt_eps",
    "betas": "opt_betas",
}
# Arguments for other ways to train: differentiable updates, and CUDA graphs.
UNUSABLE = ("params", "differentiable", "capturable")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divide the trainable parameters into two groups for an optimizer.

    Parameters with more than one dimension (kernels of convolutions and weights of linear layers) get the weight decay;
    the others (batch norm and biases) get none.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def fine_tuning_groups(
    network: ShuffleNetV2, weight_decay: float, learning_rate: float, backbone_lr_scale: float
) -> list[dict[str, Any]]:
    """Divide the trainable parameters into up to four groups: classifier and backbone, each with and without weight decay.

    The groups of the classifier come first, because the first group's learning rate is the one that is logged. Groups without
    parameters are left out.

    Args:
        weight_decay: as in `parameter_groups`.
        learning_rate: learning rate of the classifier.
        backbone_lr_scale: learning rate of all other parameters, as a multiple of `learning_rate`.
    """
    classifier = {id(parameter) for parameter in network.classifier.parameters()}
    groups = []
    for is_classifier, scale in ((True, 1.0), (False, backbone_lr_scale)):
        for group in parameter_groups(network, weight_decay):
            parameters = [parameter for parameter in group["params"] if (id(parameter) in classifier) is is_classifier]
            if parameters:
                groups.append({**group, "params": parameters, "lr": learning_rate * scale})
    return groups


def build_optimizer(network: ShuffleNetV2, optimization: OptimizationConfig, fine_tuning: FineTuningConfig) -> Optimizer:
    """Build the optimizer of a network's trainable parameters.

    Raises:
        UserError: see `create_optimizer`.
    """
    scale = fine_tuning.backbone_lr_scale
    if scale == 1.0:
        groups = parameter_groups(network, optimization.weight_decay)
    else:
        groups = fine_tuning_groups(network, optimization.weight_decay, optimization.learning_rate, scale)
    return create_optimizer(groups, optimization)


def create_optimizer(groups: list[dict[str, Any]], config: OptimizationConfig) -> Optimizer:
    """Create an optimizer by name: 'sgd', that of the original, or one of timm's optimizers.

    'sgd' is SGD with classical momentum, and does not import timm. timm's own 'sgd' uses Nesterov momentum; its name here is
    'nesterov'. The prefix 'lookahead_' wraps timm's Lookahead around any optimizer.

    Args:
        groups: parameter groups, each with its `weight_decay`, and with `lr` where it differs from `learning_rate`.
        config: `opt` (upper or lower case), `learning_rate`, `momentum` (for optimizers that have it), `opt_eps`,
            `opt_betas`, `opt_kwargs`.

    Raises:
        UserError: for an unknown optimizer, a missing package, `opt_eps`, `opt_betas` or `opt_kwargs` that the optimizer does
            not have or accept, or an optimizer whose state in a checkpoint is not sufficient to resume exactly.
    """
    name, eps, betas = config.opt.lower(), config.opt_eps, config.opt_betas
    if name == "sgd":
        for option, value in (("opt_eps", eps), ("opt_betas", betas)):
            if value is not None:
                raise UserError(f"`{option}` has no effect on sgd; leave it out, or choose another `opt`")
        arguments = keyword_arguments(config.opt_kwargs, SGD, name)
        with _construction(name):
            return SGD(groups, lr=config.learning_rate, momentum=config.momentum, **arguments)

    # Imported here, since timm takes a second.
    from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers

    wrapper = LOOKAHEAD if name.startswith(LOOKAHEAD) else ""
    inner = name.removeprefix(LOOKAHEAD)
    names = [str(name) for name in list_optimizers()]
    if inner not in names:
        near = nearest(inner, names)
        raise UserError(f"`opt` {name} is unknown; {f'did you mean {wrapper}{near}?' if near else 'try sgd or adamw'}")
    info = get_optimizer_info(inner)
    if info.second_order:
        raise UserError(f"`opt` {name} needs second derivatives, which training does not compute; try adamw")
    if inner in KRON:
        raise UserError(
            f"`opt` {name} cannot be used: it draws from torch's global random generator, whose state checkpoints do not "
            "contain, and it needs 150 GB of memory for the last convolution; try muon, which preconditions matrices too"
        )
    package = info.opt_class.split(".")[0] if isinstance(info.opt_class, str) else ""
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"`opt` {name} needs the package {package}, which is not installed")

    # timm's name of SGD with classical momentum is 'momentum'; here only lookahead_sgd needs it.
    timm_name = "momentum" if inner == "sgd" else inner
    arguments = keyword_arguments(config.opt_kwargs, get_optimizer_class(timm_name, bind_defaults=False), name)
    if eps is not None:
        if not info.has_eps:
            raise UserError(f"`opt_eps` has no effect on {name}; leave it out")
        arguments["eps"] = eps
    if betas is not None:
        if not info.has_betas:
            raise UserError(f"`opt_betas` has no effect on {name}; leave it out")
        if len(betas) != info.num_betas:
            raise UserError(f"`opt_betas` of {name} must be {info.num_betas} numbers, not {len(betas)}")
        arguments["betas"] = betas
    with _construction(name):
        optimizer: Optimizer = create_optimizer_v2(
            groups, wrapper + timm_name, lr=config.learning_rate, momentum=config.momentum, **arguments
        )
    return optimizer


@contextmanager
def _construction(name: str) -> Iterator[None]:
    try:
        yield
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:  # from constructors of timm and torch
        raise UserError(f"`opt` {name} cannot be used: {one_line(error)}") from error


def keyword_arguments(settings: Iterable[str], optimizer_class: Callable[..., Optimizer], name: str) -> dict[str, Any]:
    """Return keyword arguments for the constructor of an optimizer, from settings such as 'nesterov=True'.

    Args:
        name: of the optimizer, for messages.

    Raises:
        UserError: for an argument that the optimizer does not have, that has an option of its own, or whose value is of
            another type than the default.
    """
    excluded = (*OWN_OPTIONS, *UNUSABLE)
    parameters = {key: value for key, value in inspect.signature(optimizer_class).parameters.items() if key not in excluded}
    arguments: dict[str, Any] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key in OWN_OPTIONS:
            raise UserError(f"`opt_kwargs` {setting}: give `{OWN_OPTIONS[key]}` instead")
        if key not in parameters:
            near = nearest(key, parameters)
            remedy = f"did you mean {near}?" if near else f"its arguments are {', '.join(parameters)}"
            raise UserError(f"`opt_kwargs` {setting}: {name} has no such argument here; {remedy}")
        if key in arguments:
            raise UserError(f"`opt_kwargs` {setting}: {key} is given twice; leave one out")
        arguments[key] = _read_value(text, parameters[key].default, setting)
    return arguments


def _read_value(text: str, default: Any, setting: str) -> Any:
    """Return the Python value that a text describes; where the default is a number or a bool, the value must be one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two for deep nesting
        value = text  # a text without quotes, as in timm
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"`opt_kwargs` {setting}: the value must be True or False")
    elif isinstance(default, int | float) and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"`opt_kwargs` {setting}: the value must be a number")
    elif isinstance(value, int | float) and not abs(value) <= MAX_COUNT:
        raise UserError(f"`opt_kwargs` {setting}: the value must be finite, and its size below 2**53")
    return value


def build_clipping(network: ShuffleNetV2, config: OptimizationConfig) -> Callable[[], None] | None:
    """Build the function that clips the gradients before an update, or return None where `clip_grad` is not set.

    Adaptive clipping ('agc') leaves the classifier out, as recommended in https://arxiv.org/abs/2102.06171.
    """
    if not config.clip_grad:
        return None
    excluded = {id(parameter) for parameter in network.classifier.parameters()} if config.clip_mode == "agc" else set()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad and id(parameter) not in excluded]
    return partial(clip_gradients, parameters, config.clip_grad, config.clip_mode)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, mode: str) -> None:
    """Reduce gradients that exceed a limit, in place and without waiting for the device.

    Args:
        parameters: parameters with gradients; with a GradScaler, gradients must be unscaled by `unscale_` first.
        limit: above 0.
        mode: the quantity to limit. 'norm': the L2 norm of all gradients together; 'value': the absolute value of each element;
            'agc': for each output channel, the norm of the gradient divided by the norm of the weight.
    """
    tensors: list[Tensor] = list(parameters)
    if mode == "norm":
        nn.utils.clip_grad_norm_(tensors, limit)
    elif mode == "value":
        nn.utils.clip_grad_value_(tensors, limit)
    elif mode == "agc":
        from timm.utils import dispatch_clip_grad  # imported here: timm takes a second

        dispatch_clip_grad(tensors, limit, mode="agc")
    else:
        raise ValueError(f"clip mode {mode!r} is unknown; choose norm, value or agc")
