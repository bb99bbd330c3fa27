"""Every optimizer can be resumed exactly after an interruption, or is refused with the reason; gradients are clipped."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import timm.optim
import torch
import yaml
from torch import Tensor, nn

from shufflenetv2 import ShuffleNetV2, files
from shufflenetv2.cli.command import parse
from shufflenetv2.cli.schema import build_schema
from shufflenetv2.config import FineTuningConfig, OptimizationConfig
from shufflenetv2.errors import UserError
from shufflenetv2.recipe import (
    build_clipping,
    build_optimizer,
    clip_gradients,
    create_optimizer,
    fine_tuning_groups,
    freeze,
    linear_decay,
    parameter_groups,
)
from tests.support import same_tensors

TIMM_NAMES = [str(name) for name in timm.optim.list_optimizers()]
NOT_INSTALLED = [name for name in TIMM_NAMES if name.startswith(("bnb", "fused"))]  # they need bitsandbytes and apex
REFUSED = ["adahessian", "kron", "kronc", "kronw"]
NAMES = [name for name in TIMM_NAMES if name not in NOT_INSTALLED + REFUSED]
NAMES += ["lookahead_sgd", "lookahead_adamw"]


def small_network() -> nn.Module:
    """Make a network of two convolutions (the second depthwise), batch norm and a classifier, always with the same weights."""
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


def create(name: str, groups: list[dict[str, Any]], learning_rate: float = 0.1, **options: Any) -> torch.optim.Optimizer:
    return create_optimizer(groups, OptimizationConfig(opt=name, learning_rate=learning_rate, **options))


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
def test_an_interrupted_run_continues_with_the_same_bits_and_learns(tmp_path: Path, name: str) -> None:
    """Seven updates, then six: after the fifth radam changes, and at the sixth lookahead averages."""

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        network = small_network()
        return network, create(name, parameter_groups(network, 1e-4), 0.01)

    torch.manual_seed(5)
    network, optimizer = start()
    losses = learn(network, optimizer, 13)
    assert losses[-1] < losses[0]

    torch.manual_seed(6)  # the state of the global generator must not matter
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
def test_each_group_has_its_own_weight_decay_and_learning_rate(name: str) -> None:
    decayed, free, slow = (nn.Parameter(torch.full((4, 4), 2.0)) for _ in range(3))
    groups: list[dict[str, Any]] = [
        {"params": [decayed], "weight_decay": 0.1},
        {"params": [free], "weight_decay": 0.0},
        {"params": [slow], "weight_decay": 0.1, "lr": 0.001},
    ]
    optimizer = create(name, groups, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01, 0.001]
    for _ in range(3):
        for parameter in (decayed, free, slow):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    torch.testing.assert_close(free, torch.full((4, 4), 2.0), rtol=1e-6, atol=0)  # madgrad rounds
    assert (decayed < 2).all()
    assert (slow < 2).all()
    assert (decayed < slow).all()


def test_sgd_is_the_originals_and_nesterov_momentum_has_its_own_name() -> None:
    def weights_of(make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]) -> dict[str, Tensor]:
        network = small_network()
        learn(network, make(parameter_groups(network, 1e-4)), 3)
        return network.state_dict()

    def weights_by_name(name: str) -> dict[str, Tensor]:
        return weights_of(lambda groups: create(name, groups, momentum=0.8))

    plain = weights_of(lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8))
    nesterov = weights_of(lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8, nesterov=True))
    assert type(create("sgd", parameter_groups(small_network(), 0))) is torch.optim.SGD
    for name in ("sgd", "SGD", "momentum", "lookahead_sgd"):  # lookahead changes nothing before the sixth update
        assert same_tensors(weights_by_name(name), plain)
    assert same_tensors(weights_by_name("nesterov"), nesterov)
    assert not same_tensors(plain, nesterov)


def test_eps_betas_and_momentum_reach_the_optimizer() -> None:
    groups = parameter_groups(small_network(), 1e-4)
    adan = create("adan", groups, opt_eps=1e-3, opt_betas=(0.5, 0.6, 0.7))
    assert all((group["eps"], group["betas"]) == (1e-3, (0.5, 0.6, 0.7)) for group in adan.param_groups)
    rmsprop = create("rmsproptf", parameter_groups(small_network(), 1e-4), momentum=0.7)
    assert all(group["momentum"] == 0.7 for group in rmsprop.param_groups)


@pytest.mark.parametrize("name", ["lookahead_adamw", "adafactorbv"])
def test_an_optimizer_of_timm_trains_a_shufflenet_with_a_schedule(name: str) -> None:
    network = ShuffleNetV2(32, 4, "0.5x").train()
    network.initialize_weights(torch.Generator().manual_seed(0))
    optimizer = create(name, parameter_groups(network, 4e-5), 0.01)
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


def test_further_arguments_reach_the_optimizer() -> None:
    def trained(name: str, *settings: str) -> dict[str, Tensor]:
        network = small_network()
        learn(network, create(name, parameter_groups(network, 1e-4), opt_kwargs=settings), 3)
        return network.state_dict()

    assert same_tensors(trained("sgd", "nesterov=True"), trained("nesterov"))
    assert same_tensors(trained("nesterov", "nesterov=False"), trained("sgd"))
    assert same_tensors(trained("lookahead_sgd", "nesterov=True"), trained("nesterov"))
    assert not same_tensors(trained("sgd", "dampening=0.5"), trained("sgd"))
    settings = ("trust_clip=True", "max_grad_norm=2.5")
    group = create("lamb", parameter_groups(small_network(), 0), opt_kwargs=settings).param_groups[0]
    assert (group["trust_clip"], group["max_grad_norm"]) == (True, 2.5)


def test_further_arguments_may_be_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train-dir: D\nopt-kwargs:\n  nesterov: true\n  dampening: 0\n")
    config = parse(["--config", str(tmp_path / "c.yaml")])
    assert config.optimization.opt_kwargs == ("nesterov=True", "dampening=0")
    (tmp_path / "options.yaml").write_text(config.to_yaml())
    assert parse(["--config", str(tmp_path / "options.yaml")]).optimization == config.optimization
    jsonschema.validate(yaml.safe_load((tmp_path / "c.yaml").read_text()), build_schema())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamww", {}, r"`opt` adamww is unknown; did you mean adamw\?"),
        ("lookahead_adamww", {}, r"`opt` lookahead_adamww is unknown; did you mean lookahead_adamw\?"),
        ("foo_sgd", {}, r"`opt` foo_sgd is unknown; "),
        ("???", {}, r"`opt` \?\?\? is unknown; try sgd or adamw$"),
        ("sgd", {"opt_eps": 1e-8}, "`opt_eps` has no effect on sgd"),
        ("sgd", {"opt_betas": (0.9, 0.9)}, "`opt_betas` has no effect on sgd"),
        ("lion", {"opt_eps": 1e-8}, "`opt_eps` has no effect on lion"),
        ("rmsproptf", {"opt_betas": (0.9, 0.9)}, "`opt_betas` has no effect on rmsproptf"),
        ("adan", {"opt_betas": (0.9, 0.9)}, "`opt_betas` of adan must be 3 numbers, not 2"),
        ("adamw", {"opt_betas": (0.9, 1.5)}, "`opt` adamw cannot be used: .*1.5"),
        ("sgd", {"opt_kwargs": ("nestorov=True",)}, r"`opt_kwargs` nestorov=True: .*; did you mean nesterov\?"),
        (
            "sgd",
            {"opt_kwargs": ("amsgrad=True",)},
            "`opt_kwargs` amsgrad=True: sgd has no such argument.* are dampening, neste",
        ),
        ("adamw", {"opt_kwargs": ("lr=0.1",)}, "`opt_kwargs` lr=0.1: give `learning_rate` instead"),
        ("adamw", {"opt_kwargs": ("capturable=True",)}, "`opt_kwargs` capturable=True: adamw has no such argument here"),
        ("adamw", {"opt_kwargs": ("amsgrad=3",)}, "`opt_kwargs` amsgrad=3: the value must be True or False"),
        ("sgd", {"opt_kwargs": ("dampening=much",)}, "`opt_kwargs` dampening=much: the value must be a number"),
        ("sgd", {"opt_kwargs": ("dampening=0", "dampening=1")}, "`opt_kwargs` dampening=1: dampening is given twice"),
        ("sgd", {"opt_kwargs": ("nesterov=True", "dampening=1")}, "`opt` sgd cannot be used: Nesterov momentum requires"),
        ("adamw", {"opt_kwargs": ("foreach=True", "fused=True")}, "`opt` adamw cannot be used: "),
        ("adahessian", {}, "`opt` adahessian needs second derivatives, which training does not compute"),
        ("lookahead_kron", {}, "`opt` lookahead_kron cannot be used: it draws from torch's global random generator"),
        *((name, {}, f"`opt` {name} cannot be used") for name in REFUSED[1:]),
    ],
)
def test_an_unusable_optimizer_is_refused_in_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        create(name, parameter_groups(small_network(), 1e-4), **options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", NOT_INSTALLED)
def test_a_missing_package_is_named(name: str) -> None:
    package = "apex" if name.startswith("fused") else "bitsandbytes"
    with pytest.raises(UserError, match=f"`opt` {name} needs the package {package}, which is not installed"):
        create(name, parameter_groups(small_network(), 1e-4))


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


def test_clipping_is_off_by_default_and_adaptive_clipping_excludes_the_classifier() -> None:
    network = ShuffleNetV2(32, 4, "0.5x")
    assert build_clipping(network, OptimizationConfig()) is None
    for mode in ("norm", "agc"):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 1e3)
        clip = build_clipping(network, OptimizationConfig(clip_grad=0.1, clip_mode=mode))
        assert clip is not None
        clip()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
        clipped = [name for name, gradient in gradients.items() if (gradient < 1e3).all()]
        assert set(gradients) - set(clipped) == ({"classifier.0.weight"} if mode == "agc" else set())


# ---- parameter groups


def test_weights_decay_and_everything_else_does_not() -> None:
    network = ShuffleNetV2(n_class=10, model_size="0.5x")
    decayed, free = parameter_groups(network, 4e-5)
    assert (decayed["weight_decay"], free["weight_decay"]) == (4e-5, 0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {names[id(parameter)] for parameter in free["params"]} == {
        f"{name}.{kind}"
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_the_classifier_learns_at_the_base_rate_and_the_backbone_at_its_multiple() -> None:
    network = ShuffleNetV2(32, 3, "0.5x", head_bias=True)
    freeze(network, ["stem"])
    groups = fine_tuning_groups(network, 4e-5, 0.5, 0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.5, 4e-5), (0.5, 0.0), (0.05, 4e-5), (0.05, 0.0)]
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    names_of_groups = [[names[id(parameter)] for parameter in group["params"]] for group in groups]
    assert names_of_groups[:2] == [["classifier.0.weight"], ["classifier.0.bias"]]
    trainable = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert sorted(itertools.chain(*names_of_groups)) == sorted(trainable)
    optimizer = build_optimizer(
        network, OptimizationConfig(learning_rate=0.5, weight_decay=4e-5), FineTuningConfig(backbone_lr_scale=0.1)
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5, 0.05, 0.05]


def test_groups_without_parameters_are_left_out() -> None:
    network = ShuffleNetV2(32, 3, "0.5x")
    assert [group["lr"] for group in fine_tuning_groups(network, 4e-5, 0.5, 0.1)] == [0.5, 0.05, 0.05]  # without bias
    freeze(network, ["backbone"])
    assert [group["lr"] for group in fine_tuning_groups(network, 4e-5, 0.5, 0.1)] == [0.5]
