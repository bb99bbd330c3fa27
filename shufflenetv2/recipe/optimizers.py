"""Optimizers by name, and the clipping of gradients."""

import difflib
import importlib.util
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ..errors import UserError

LOOKAHEAD = "lookahead_"
KRON = ("kron", "kronc", "kronw")


class OptimizerError(UserError):
    """An optimizer, or a way to clip, that cannot be used as asked; the text is one line that says why."""


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


def build_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    *,
    learning_rate: float,
    momentum: float = 0.9,
    eps: float | None = None,
    betas: tuple[float, ...] | None = None,
) -> Optimizer:
    """The original's optimizer, 'sgd', or one of those that timm knows by name.

    'sgd' is plain SGD with momentum, and needs no timm. Beware: what *timm* calls 'sgd' has Nesterov's
    momentum, and is 'nesterov' here. 'lookahead_' before a name wraps timm's Lookahead around it.

    Args:
        name: 'sgd' or any of `timm.optim.list_optimizers()`, in small letters or not.
        groups: parameter groups with their `weight_decay`, and `lr` where it is a group's own; kept as they are.
        learning_rate: of the groups without one.
        momentum: 0 to below 1; optimizers that have none do not look at it.
        eps, betas: the optimizer's own where None. Two betas, or three for adan and its like.

    Raises:
        OptimizerError: where there is no such optimizer, its package is missing, it has no eps or betas
            or does not accept these, or it could not go on exactly after an interruption.
    """
    name = name.lower()
    if name == "sgd":
        for option, value in (("eps", eps), ("betas", betas)):
            if value is not None:
                raise OptimizerError(f"--opt-{option}: sgd has none; leave it out, or choose another --opt")
        return SGD(groups, lr=learning_rate, momentum=momentum)

    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

    wrapper = LOOKAHEAD if name.startswith(LOOKAHEAD) else ""
    inner = name.removeprefix(LOOKAHEAD)
    known = list_optimizers()
    if inner not in known:
        near = difflib.get_close_matches(inner, known, 1)
        raise OptimizerError(f"--opt {name} is unknown; {f'do you mean {wrapper}{near[0]}?' if near else 'try sgd or adamw'}")
    info = get_optimizer_info(inner)
    if info.second_order:
        raise OptimizerError(f"--opt {name} needs second derivatives, which training does not compute; try adamw")
    if inner in KRON:  # timm's; and the random numbers of torch are another process's own
        raise OptimizerError(
            f"--opt {name} cannot be used: it draws from torch's random numbers, which no checkpoint holds, and needs "
            "150 GB for the last convolution; muon is another that preconditions whole matrices"
        )
    package = info.opt_class.split(".")[0] if isinstance(info.opt_class, str) else ""
    if package and importlib.util.find_spec(package) is None:
        raise OptimizerError(f"--opt {name} needs the package {package}, which is not installed")

    arguments: dict[str, Any] = {}
    if eps is not None:
        if not info.has_eps:
            raise OptimizerError(f"--opt-eps: {name} has none; leave it out")
        arguments["eps"] = eps
    if betas is not None:
        if not info.has_betas:
            raise OptimizerError(f"--opt-betas: {name} has none; leave them out")
        if len(betas) != info.num_betas:
            raise OptimizerError(f"--opt-betas: {name} has {info.num_betas}, not {len(betas)}")
        arguments["betas"] = betas
    called = wrapper + ("momentum" if inner == "sgd" else inner)  # lookahead_sgd goes around the same sgd as above
    try:
        optimizer: Optimizer = create_optimizer_v2(groups, called, lr=learning_rate, momentum=momentum, **arguments)
    except (AssertionError, ImportError, TypeError, ValueError) as error:  # what timm's and torch's constructors raise
        raise OptimizerError(f"--opt {name} cannot be used: {error}") from error
    return optimizer


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, mode: str) -> None:
    """Makes gradients smaller where they are too large, in place, without waiting for the device.

    Args:
        parameters: with gradients, which are not scaled (with a GradScaler: after `unscale_`). For 'agc'
            by convention (https://arxiv.org/abs/2102.06171) all but those of the classifier.
        limit: above 0. 'norm': of the norm of all gradients together. 'value': of each number's size.
            'agc': of the ratio of a gradient's norm to its weight's, output channel by output channel.
        mode: 'norm', 'value' or 'agc'.

    Raises:
        OptimizerError: for another mode.
    """
    tensors: list[Tensor] = list(parameters)
    if mode == "norm":
        nn.utils.clip_grad_norm_(tensors, limit)
    elif mode == "value":
        nn.utils.clip_grad_value_(tensors, limit)
    elif mode == "agc":
        from timm.utils import dispatch_clip_grad

        dispatch_clip_grad(tensors, limit, mode="agc")
    else:
        raise OptimizerError(f"--clip-mode {mode} is unknown; choose norm, value or agc")
