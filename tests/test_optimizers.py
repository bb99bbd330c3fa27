"""Every optimizer goes on exactly after an interruption, or is refused with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from shufflenetv2 import ShuffleNetV2, files
from shufflenetv2.recipe import linear_decay, parameter_groups
from shufflenetv2.recipe.optimizers import OptimizerError, build_optimizer, clip_gradients
from tests.support import same_tensors

TIMMS = [str(name) for name in timm.optim.list_optimizers()]
NOT_INSTALLED = [name for name in TIMMS if name.startswith(("bnb", "fused"))]  # they need bitsandbytes and apex
REFUSED = ["adahessian", "kron", "kronc", "kronw"]
NAMES = [name for name in TIMMS if name not in NOT_INSTALLED + REFUSED]
NAMES += ["lookahead_sgd", "lookahead_adamw"]


def small_network() -> nn.Module:
    """A convolution, a depthwise one, batch norm and a classifier, always with the same weights."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4, bias=False),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return network


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 3, 6, 6, generator=generator), torch.randint(4, (8,), generator=generator)


def learn(network: nn.Module, optimizer: torch.optim.Optimizer, updates: int) -> list[float]:
    images, targets = batch()
    losses = []
    for _ in range(updates):
        loss = nn.functional.cross_entropy(network(images), targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_goes_on_with_the_same_bits_and_learns(tmp_path: Path, name: str) -> None:
    """Seven updates, then six: beyond the fifth, where radam changes, and the sixth, where lookahead looks back."""

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        network = small_network()
        return network, build_optimizer(name, parameter_groups(network, 1e-4), learning_rate=0.01)

    torch.manual_seed(5)
    network, optimizer = start()
    losses = learn(network, optimizer, 13)
    assert losses[-1] < losses[0]

    torch.manual_seed(6)  # the global generator is not part of it
    before, before_optimizer = start()
    learn(before, before_optimizer, 7)
    files.write(tmp_path / "state", {"network": before.state_dict(), "optimizer": before_optimizer.state_dict()})
    state = files.read(tmp_path / "state")
    after, after_optimizer = start()
    after.load_state_dict(state["network"])
    after_optimizer.load_state_dict(state["optimizer"])
    assert learn(after, after_optimizer, 6) == losses[7:]
    assert same_tensors(after.state_dict(), network.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_and_learning_rate_are_each_groups_own(name: str) -> None:
    decayed, free, slow = (nn.Parameter(torch.full((4, 4), 2.0)) for _ in range(3))
    groups: list[dict[str, Any]] = [
        {"params": [decayed], "weight_decay": 0.1},
        {"params": [free], "weight_decay": 0.0},
        {"params": [slow], "weight_decay": 0.1, "lr": 0.001},
    ]
    optimizer = build_optimizer(name, groups, learning_rate=0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01, 0.001]
    for _ in range(3):
        for parameter in (decayed, free, slow):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    torch.testing.assert_close(free, torch.full((4, 4), 2.0), rtol=1e-6, atol=0)  # madgrad rounds
    assert (decayed < 2).all()
    assert (slow < 2).all()
    assert (decayed < slow).all()


def test_sgd_is_the_originals_and_nesterov_is_asked_for_by_name() -> None:
    def weights_of(make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]) -> dict[str, Tensor]:
        network = small_network()
        learn(network, make(parameter_groups(network, 1e-4)), 3)
        return network.state_dict()

    def ours(name: str) -> dict[str, Tensor]:
        return weights_of(lambda groups: build_optimizer(name, groups, learning_rate=0.1, momentum=0.8))

    plain = weights_of(lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8))
    nesterov = weights_of(lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8, nesterov=True))
    assert type(build_optimizer("sgd", parameter_groups(small_network(), 0), learning_rate=1)) is torch.optim.SGD
    for name in ("sgd", "SGD", "momentum", "lookahead_sgd"):  # lookahead changes nothing before the sixth update
        assert same_tensors(ours(name), plain)
    assert same_tensors(ours("nesterov"), nesterov)
    assert not same_tensors(plain, nesterov)


def test_eps_betas_and_momentum_reach_the_optimizer() -> None:
    groups = parameter_groups(small_network(), 1e-4)
    adan = build_optimizer("adan", groups, learning_rate=0.1, eps=1e-3, betas=(0.5, 0.6, 0.7))
    assert all((group["eps"], group["betas"]) == (1e-3, (0.5, 0.6, 0.7)) for group in adan.param_groups)
    rmsprop = build_optimizer("rmsproptf", parameter_groups(small_network(), 1e-4), learning_rate=0.1, momentum=0.7)
    assert all(group["momentum"] == 0.7 for group in rmsprop.param_groups)


@pytest.mark.parametrize("name", ["lookahead_adamw", "adafactorbv"])
def test_another_optimizer_trains_the_network_itself_with_the_schedule(name: str) -> None:
    network = ShuffleNetV2(32, 4, "0.5x").train()
    network.initialize_weights(torch.Generator().manual_seed(0))
    optimizer = build_optimizer(name, parameter_groups(network, 4e-5), learning_rate=0.01)
    scheduler = linear_decay(optimizer, 8)
    images, targets = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 255, torch.arange(4)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(network(images), targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("adamww", {}, r"--opt adamww is unknown; do you mean adamw\?"),
        ("lookahead_adamww", {}, r"--opt lookahead_adamww is unknown; do you mean lookahead_adamw\?"),
        ("foo_sgd", {}, r"--opt foo_sgd is unknown; "),
        ("???", {}, r"--opt \?\?\? is unknown; try sgd or adamw$"),
        ("sgd", {"eps": 1e-8}, "--opt-eps: sgd has none"),
        ("sgd", {"betas": (0.9, 0.9)}, "--opt-betas: sgd has none"),
        ("lion", {"eps": 1e-8}, "--opt-eps: lion has none"),
        ("rmsproptf", {"betas": (0.9, 0.9)}, "--opt-betas: rmsproptf has none"),
        ("adan", {"betas": (0.9, 0.9)}, "--opt-betas: adan has 3, not 2"),
        ("adamw", {"betas": (0.9, 1.5)}, "--opt adamw cannot be used: .*1.5"),
        ("adahessian", {}, "--opt adahessian needs second derivatives, which training does not compute"),
        ("lookahead_kron", {}, "--opt lookahead_kron cannot be used: it draws from torch's random numbers"),
        *((name, {}, f"--opt {name} cannot be used") for name in REFUSED[1:]),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptimizerError, match=message) as caught:
        build_optimizer(name, parameter_groups(small_network(), 1e-4), learning_rate=0.1, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NOT_INSTALLED)
def test_a_missing_package_is_named(name: str) -> None:
    package = "apex" if name.startswith("fused") else "bitsandbytes"
    with pytest.raises(OptimizerError, match=f"--opt {name} needs the package {package}, which is not installed"):
        build_optimizer(name, parameter_groups(small_network(), 1e-4), learning_rate=0.1)


# ---- clipping


def with_gradients(scale: float) -> list[nn.Parameter]:
    network = small_network()
    images, targets = batch()
    torch.autograd.backward(nn.functional.cross_entropy(network(images), targets) * scale)
    return list(network.parameters())


def gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]


@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
def test_large_gradients_are_clipped_and_small_ones_are_left(mode: str) -> None:
    large, small = with_gradients(1e4), with_gradients(1e-4)
    before, kept = gradients(large), gradients(small)
    clip_gradients(iter(large), 0.1, mode)
    clip_gradients(iter(small), 0.1, mode)
    assert all(torch.equal(a, b) for a, b in zip(gradients(small), kept, strict=True))
    after = gradients(large)
    if mode == "norm":
        torch.testing.assert_close(torch.cat([grad.flatten() for grad in after]).norm(), torch.tensor(0.1))
        factor = 0.1 / torch.cat([grad.flatten() for grad in before]).norm()
        torch.testing.assert_close(after[0], before[0] * factor)
    elif mode == "value":
        assert all(torch.equal(a, b.clamp(-0.1, 0.1)) for a, b in zip(after, before, strict=True))
    else:  # per output channel, a tenth of the weight's norm
        norms, limits = (tensor.flatten(1).norm(dim=1) for tensor in (after[0], large[0].detach() * 0.1))
        torch.testing.assert_close(norms, limits)


def test_an_unknown_way_to_clip_is_refused() -> None:
    with pytest.raises(OptimizerError, match="--clip-mode size is unknown; choose norm, value or agc"):
        clip_gradients([], 1.0, "size")
