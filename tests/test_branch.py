"""Channels-last on a processor the branches of the units are trained by compiled code: torch's results, to rounding."""

import copy
import itertools
import logging
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shufflenetv2 import ShuffleNetV2
from shufflenetv2.blocks import Branch, ShuffleV2Block
from shufflenetv2.kernels import training as branch
from shufflenetv2.kernels.bindings import parse_prototypes

compiled = pytest.mark.skipif(branch.library() is None, reason="the branches are not compiled here")

FORMS = ("stem", "last", "main", "main of stride 2", "projection")
SHAPES = ((4, 9, 12), (3, 7, 7), (2, 1, 5), (1, 4, 3), (2, 28, 2), (2, 16, 15), (1, 29, 30))


def make(form: str) -> Branch:
    """With channels that are not multiples of a vector's lanes, and norms that do something."""
    torch.manual_seed(1)
    network = ShuffleNetV2(32, 3, "0.5x")
    stride = 1 if form == "main" else 2
    unit = ShuffleV2Block(13, 29 if stride == 1 else 31, 11, ksize=3, stride=stride)
    made = {"stem": network.first_conv, "last": network.conv_last, "projection": unit.branch_proj}.get(form, unit.branch_main)
    assert isinstance(made, Branch)
    for layer in made:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, -1.0, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.3)
            assert layer.running_mean is not None
            nn.init.normal_(layer.running_mean)
            layer.momentum = 0.3
    return made.train()


def images(form: str, shape: tuple[int, int, int]) -> Tensor:
    count, height, width = shape
    channels = {"stem": 3, "last": 192}.get(form, 13)
    generator = torch.Generator().manual_seed(height)
    x = torch.randn(count, channels, height, width, generator=generator) + 0.5
    return x.contiguous(memory_format=torch.channels_last)


def step(trained: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What a step makes: the output, the gradients, the buffers."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    made = trained(x)
    made.backward(torch.randn(made.shape, generator=torch.Generator().manual_seed(3)).to(made.dtype))
    gradients = {name: parameter.grad for name, parameter in trained.named_parameters() if parameter.grad is not None}
    return {"output": made.detach(), "x": x.grad, **gradients, **dict(trained.named_buffers())}


def test_where_there_is_a_compiler_the_branches_are_compiled() -> None:
    has_compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    if platform.system() == "Linux" and has_compiler and "avx2" in Path("/proc/cpuinfo").read_text():
        assert branch.library() is not None, "pip install -e . compiles it"


def move_values_off_relu_kinks(trained: nn.Module, x: Tensor) -> None:
    """Shift the biases of norms followed by a ReLU, so that no value of this batch lies near the ReLU's kink.

    Rounding decides the sign of a value near 0, and with the sign whether its gradient is 0: implementations
    which are equally exact would differ there. Each channel's zero is moved into the widest gap between the
    channel's values, among the middle half of the values: several times wider than the rounding.
    """
    exact = copy.deepcopy(trained).double()

    def shift_into_gap(norm: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        ascending = output.transpose(0, 1).flatten(1).sort().values  # (C, N H W)
        quarter = (ascending.shape[1] - 1) // 4
        gaps = ascending.diff()
        widest = gaps[:, quarter : gaps.shape[1] - quarter].argmax(1, keepdim=True) + quarter
        shift = (ascending.gather(1, widest) + ascending.gather(1, widest + 1)) / 2
        assert isinstance(norm.bias, Tensor)
        norm.bias -= shift.flatten()
        return output - shift[:, :, None]

    for module in exact.modules():
        if isinstance(module, Branch):
            for layer, following in itertools.pairwise(module):
                if isinstance(following, nn.ReLU):
                    layer.register_forward_hook(shift_into_gap)
    with torch.no_grad():
        exact(x.double())
        for parameter, shifted in zip(trained.parameters(), exact.parameters(), strict=True):
            parameter.copy_(shifted)


def check(trained: nn.Module, x: Tensor) -> None:
    """Check that a step is about as close as torch's own steps to the step in float64.

    Torch's error is the larger of those in the two memory formats. Errors of small tensors depend on chance, and
    a gradient's allowance is therefore four times torch's largest relative error in any gradient of the step.
    """
    move_values_off_relu_kinks(trained, x)
    exact = step(copy.deepcopy(trained).double(), x.double())

    def relative_errors(results: dict[str, Tensor]) -> dict[str, float]:
        norms = {name: value.double().norm().clamp(min=1) for name, value in exact.items()}
        return {name: ((results[name].double() - exact[name]).norm() / norms[name]).item() for name in exact}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branch, "library", lambda: None)
        planar, channels_last = (relative_errors(step(copy.deepcopy(trained), each)) for each in (x.contiguous(), x))
    torch_errors = {name: max(planar[name], channels_last[name]) for name in exact}
    gradients = exact.keys() - {"output", *(name for name, _ in trained.named_buffers())}
    results = step(trained, x)
    assert results.keys() == exact.keys()
    for name, error in relative_errors(results).items():
        if name in gradients:
            assert error <= 4 * max(torch_errors[gradient] for gradient in gradients) + 1e-5, name
        else:
            assert error <= 4 * torch_errors[name] + 3e-6, name


@compiled
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("form", "offset"), [*((form, 0) for form in FORMS), *((form, 100) for form in FORMS[:-1])])
def test_a_step_is_as_near_to_the_exact_one_as_torchs_is(form: str, offset: int, shape: tuple[int, int, int]) -> None:
    trained, x = make(form), images(form, shape) + offset  # no offset for projections: they are given what a ReLU made
    assert branch.is_fast(trained, x)
    check(trained, x)
    assert trained[1].num_batches_tracked == 1


@compiled
@pytest.mark.parametrize("drop", [None, nn.Identity()], ids=["joined", "dropped"])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_passes_by_a_branch_and_its_gradient_are_kept(stride: int, drop: nn.Module | None) -> None:
    torch.manual_seed(0)
    unit = ShuffleV2Block(13, 29, 11, ksize=3, stride=stride, drop=drop).train()
    x = torch.randn(3, 26 if stride == 1 else 13, 6, 9).contiguous(memory_format=torch.channels_last)
    check(unit, x)
    assert unit.branch_main[1].num_batches_tracked == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_channels_are_dealt_out_and_interleaved_again(layout: torch.memory_format, dtype: torch.dtype) -> None:
    for channels in (1, 5, 29, 48):
        x = torch.randn(2, 2 * channels, 3, 4).to(dtype, memory_format=layout)
        joined = torch.zeros(2, 7 + channels, 3, 4).to(dtype, memory_format=layout)
        odd, again = torch.empty_like(x[:, :channels], memory_format=layout), torch.empty_like(x)
        branch.gather(x[:, 0::2], joined[:, 7:])
        branch.gather(x[:, 1::2], odd)
        assert torch.equal(joined[:, 7:], x[:, 0::2])
        assert torch.equal(odd, x[:, 1::2])
        assert not joined[:, :7].any()
        branch.interleave(joined[:, 7:], odd, again)
        assert torch.equal(again, x)


@compiled
def test_the_units_branches_are_the_compiled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[nn.Module] = set()
    forward = branch.forward

    def watched(trained: nn.Sequential, x: Tensor, passing: Tensor | None) -> Tensor:
        seen.add(trained)
        return forward(trained, x, passing)

    monkeypatch.setattr(branch, "forward", watched)
    called: set[str] = set()
    call = branch._call

    def listed(name: str, *arguments: Tensor | float | None) -> None:
        called.add(name)
        call(name, *arguments)

    monkeypatch.setattr(branch, "_call", listed)
    network = ShuffleNetV2(32, 3, "0.5x").to(memory_format=torch.channels_last).train()
    network(torch.rand(2, 3, 64, 64)).sum().backward()
    assert seen == {module for module in network.modules() if isinstance(module, Branch)}
    assert called == parse_prototypes(branch.HEADER.read_text()).keys() - {
        "is_supported",
        "header_checksum",
    }  # the shuffle's copies too


@compiled
@pytest.mark.parametrize("form", FORMS)
def test_the_number_of_threads_changes_no_bit_of_the_sums(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of the compiled code: torch's matrix products stay on one thread, as their bits may depend on it."""
    assert torch.get_num_threads() == 1
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(step(make(form), images(form, (5, 17, 19))))
    one, three = results
    for name, value in one.items():
        assert torch.equal(value, three[name]), name


@compiled
def test_gradients_lie_in_memory_as_their_weights_do() -> None:
    """Or else every one of them would be copied, and DistributedDataParallel would warn."""
    network = ShuffleNetV2(32, 3, "0.5x").to(memory_format=torch.channels_last).train()
    network(torch.rand(2, 3, 64, 64)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name


@compiled
def test_frozen_weights_get_no_gradient_and_the_others_theirs() -> None:
    x = images("main", (2, 5, 5))
    everything = step(make("main"), x)
    trained = make("main")
    for index in (0, 4, 5):
        trained[index].requires_grad_(False)
    found = step(trained, x)
    assert "0.weight" not in found
    assert "4.bias" not in found
    for name, value in found.items():
        assert torch.equal(value, everything[name]), name


def plain_cases() -> Iterator[tuple[str, Branch, Tensor]]:
    x = images("main", (2, 5, 5))
    yield "evaluation", make("main").eval(), x
    yield "planar", make("main"), x.contiguous()
    yield "double", make("main").double(), x.double()
    yield "one value per channel", make("projection"), images("projection", (1, 2, 2))
    hooked, cumulative, frozen, other = (make("main") for _ in range(4))
    hooked[3].register_forward_hook(lambda module, inputs, output: None)
    cumulative[1].momentum = None  # type: ignore[assignment]
    frozen[4].eval()
    yield "a hook", hooked, x
    yield "a cumulative average", cumulative, x
    yield "a norm in evaluation", frozen, x
    yield "another kernel", other, x
    other[3] = nn.Conv2d(11, 11, 5, padding=2, groups=11, bias=False)
    biased = make("main")
    biased[5] = nn.Conv2d(11, 16, 1)
    yield "a bias", biased, x
    replaced = make("last")
    replaced[1] = nn.GroupNorm(8, 1024)
    yield "another norm", replaced, images("last", (2, 3, 3))


@pytest.mark.parametrize(("trained", "x"), [pytest.param(*case[1:], id=case[0]) for case in plain_cases()])
def test_what_the_compiled_code_does_not_know_is_left_to_torch(trained: Branch, x: Tensor) -> None:
    assert not branch.is_fast(trained, x)


@compiled
def test_without_gradients_and_under_autocast_torch_computes() -> None:
    trained, x = make("main"), images("main", (2, 5, 5))
    with torch.no_grad():
        assert not branch.is_fast(trained, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not branch.is_fast(trained, x)
    assert branch.is_fast(trained, x)


def test_one_value_per_channel_is_refused_as_torch_refuses_it() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        make("projection")(images("projection", (1, 2, 2)))


def test_without_the_compiled_code_torch_computes_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(branch, "LIBRARY", tmp_path / "absent")
    branch.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert not branch.is_fast(make("main"), images("main", (2, 5, 5)))
                step(make("main"), images("main", (2, 5, 5)))
    finally:
        branch.library.cache_clear()
    assert [record.message.split(":")[0] for record in caplog.records] == ["Steps with --channels-last take a quarter longer"]
