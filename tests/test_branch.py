"""The accelerated training step gives torch's results: to rounding with compiled code, bit for bit without."""

import copy
import itertools
import logging
import platform
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shufflenetv2 import ShuffleNetV2
from shufflenetv2.blocks import ShuffleV2Block
from shufflenetv2.config import ExecutionConfig
from shufflenetv2.engine import choose_devices
from shufflenetv2.kernels import autograd
from shufflenetv2.kernels.bindings import parse_prototypes
from shufflenetv2.kernels.training import FusedBlock, FusedBranch, accelerate

compiled = pytest.mark.skipif(autograd.library() is None, reason="the C code is not compiled")

FORMS = ("stem", "last", "main", "main of stride 2", "projection")
SHAPES = ((4, 9, 12), (3, 7, 7), (2, 1, 5), (1, 4, 3), (2, 28, 2), (2, 16, 15), (1, 29, 30))


def make(form: str) -> FusedBranch:
    """Make an accelerated branch with channels that are not multiples of a vector's lanes, and norms that are not neutral."""
    torch.manual_seed(1)
    network = ShuffleNetV2(32, 3, "0.5x")
    stride = 1 if form == "main" else 2
    unit = ShuffleV2Block(13, 29 if stride == 1 else 31, 11, ksize=3, stride=stride)
    branch = {"stem": network.first_conv, "last": network.conv_last, "projection": unit.branch_proj}.get(form, unit.branch_main)
    accelerate(network)
    accelerate(unit)
    assert isinstance(branch, FusedBranch)
    for layer in branch:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, -1.0, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.3)
            assert layer.running_mean is not None
            nn.init.normal_(layer.running_mean)
            layer.momentum = 0.3
    return branch.train()


def images(form: str, shape: tuple[int, int, int]) -> Tensor:
    count, height, width = shape
    channels = {"stem": 3, "last": 192}.get(form, 13)
    generator = torch.Generator().manual_seed(height)
    x = torch.randn(count, channels, height, width, generator=generator) + 0.5
    return x.contiguous(memory_format=torch.channels_last)


def step(trained: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Run a forward and a backward pass; return the output, the gradients and the buffers."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    output = trained(x)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output.dtype))
    gradients = {name: parameter.grad for name, parameter in trained.named_parameters() if parameter.grad is not None}
    return {"output": output.detach(), "x": x.grad, **gradients, **dict(trained.named_buffers())}


def test_the_step_is_compiled_on_a_machine_with_a_compiler() -> None:
    has_compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    if platform.system() == "Linux" and has_compiler and "avx2" in Path("/proc/cpuinfo").read_text():
        assert autograd.library() is not None, "pip install -e . compiles it"


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
        if isinstance(module, nn.Sequential):
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
        patch.setattr(autograd, "library", lambda: None)
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
def test_a_step_is_as_accurate_as_torchs(form: str, offset: int, shape: tuple[int, int, int]) -> None:
    trained, x = make(form), images(form, shape) + offset  # no offset for projections: their input is the output of a ReLU
    assert trained.can_fuse(x)
    check(trained, x)
    assert trained[1].num_batches_tracked == 1


@compiled
@pytest.mark.parametrize("drop", [None, nn.Identity()], ids=["without drop", "with drop"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_left_branch_and_its_gradient_are_kept(stride: int, drop: nn.Module | None) -> None:
    torch.manual_seed(0)
    unit = ShuffleV2Block(13, 29, 11, ksize=3, stride=stride, drop=drop).train()
    accelerate(unit)
    x = torch.randn(3, 26 if stride == 1 else 13, 6, 9).contiguous(memory_format=torch.channels_last)
    check(unit, x)
    assert unit.branch_main[1].num_batches_tracked == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_interleave_reverses_the_channel_split(layout: torch.memory_format, dtype: torch.dtype) -> None:
    for channels in (1, 5, 29, 48):
        x = torch.randn(2, 2 * channels, 3, 4).to(dtype, memory_format=layout)
        joined = torch.zeros(2, 7 + channels, 3, 4).to(dtype, memory_format=layout)
        odd, again = torch.empty_like(x[:, :channels], memory_format=layout), torch.empty_like(x)
        autograd.gather(x[:, 0::2], joined[:, 7:])
        autograd.gather(x[:, 1::2], odd)
        assert torch.equal(joined[:, 7:], x[:, 0::2])
        assert torch.equal(odd, x[:, 1::2])
        assert not joined[:, :7].any()
        autograd.interleave(joined[:, 7:], odd, again)
        assert torch.equal(again, x)


@compiled
def test_a_network_placed_for_training_uses_all_compiled_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    library = autograd.library()
    called: set[str] = set()

    class Recorder:
        def __getattr__(self, name: str) -> object:
            called.add(name)
            return getattr(library, name)

    monkeypatch.setattr(autograd, "library", Recorder)
    network = ShuffleNetV2(32, 3, "0.5x")
    devices = choose_devices("cpu", ExecutionConfig(channels_last=True))
    devices.place(network, training=True).train()(torch.rand(2, 3, 64, 64)).sum().backward()
    assert called == parse_prototypes(autograd.HEADER.read_text()).keys() - {"is_supported", "header_checksum"}


def accelerated_and_plain(layout: torch.memory_format) -> tuple[ShuffleNetV2, ShuffleNetV2]:
    plain = ShuffleNetV2(64, 10, "0.5x", drop_block=0.0).train()
    plain.initialize_weights(torch.Generator().manual_seed(0))
    plain.to(memory_format=layout)
    accelerated = copy.deepcopy(plain)
    accelerate(accelerated)
    return accelerated, plain


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_of_the_shuffle_equal_those_of_plain_slices(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FusedBranch, "can_fuse", lambda branch, x: False)
    x = (torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255).contiguous(memory_format=layout)
    accelerated, plain = (step(network, x) for network in accelerated_and_plain(layout))
    assert accelerated.keys() == plain.keys()
    assert all(torch.equal(accelerated[name], plain[name]) for name in plain)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_all_but_training_steps_are_the_plain_network(layout: torch.memory_format) -> None:
    accelerated, plain = accelerated_and_plain(layout)
    assert accelerated.state_dict().keys() == plain.state_dict().keys()
    assert sum(isinstance(module, FusedBlock) for module in accelerated.modules()) == 16
    images = torch.rand(2, 3, 64, 64) * 255
    with torch.no_grad():
        assert torch.equal(accelerated(images), plain(images))
    for network in (accelerated, plain):
        network.eval()
    assert torch.equal(accelerated(images), plain(images))
    compiled_network = torch.compile(accelerated, backend="eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(accelerated)
    for other in (compiled_network, scripted, torch.fx.symbolic_trace(accelerated)):
        torch.testing.assert_close(other(images), plain(images))
    torch.export.export(accelerated, (images,))


@compiled
def test_a_deep_copy_and_an_unpickled_network_train_like_the_network(tmp_path: Path) -> None:
    network, _ = accelerated_and_plain(torch.channels_last)
    torch.save(network, tmp_path / "network.pt")
    unpickled = torch.load(tmp_path / "network.pt", weights_only=False)
    x = torch.rand(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    assert all(module.can_fuse(x) for module in unpickled.modules() if isinstance(module, FusedBranch))
    copied = copy.deepcopy(network)
    expected = step(network, x)
    for other in (unpickled, copied):
        result = step(other, x)
        assert all(torch.equal(result[name], expected[name]) for name in expected)


@compiled
def test_a_hook_on_a_branch_sees_its_output_and_a_hook_on_a_layer_the_layers() -> None:
    network, plain = accelerated_and_plain(torch.channels_last)
    shapes: dict[str, list[torch.Size]] = {"branch": [], "layer": []}
    unit = network.features[1]
    assert isinstance(unit, ShuffleV2Block)
    unit.branch_main.register_forward_hook(lambda module, inputs, output: shapes["branch"].append(output.shape))
    unit.branch_main[4].register_forward_hook(lambda module, inputs, output: shapes["layer"].append(output.shape))
    x = torch.rand(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(step(network, x)["output"], step(plain, x)["output"], rtol=1e-3, atol=1e-5)
    assert shapes == {"branch": [(4, 24, 8, 8)], "layer": [(4, 24, 8, 8)]}


def test_synchronized_batch_norm_is_computed_by_torch() -> None:
    network, _ = accelerated_and_plain(torch.channels_last)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    x = torch.rand(4, 24, 16, 16).contiguous(memory_format=torch.channels_last)
    branches = [module for module in converted.modules() if isinstance(module, FusedBranch)]
    assert branches
    assert not any(branch.can_fuse(x) for branch in branches)


@compiled
@pytest.mark.parametrize("form", FORMS)
def test_sums_do_not_depend_on_the_number_of_threads(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_gradients_have_the_memory_layout_of_their_weights() -> None:
    """Otherwise DistributedDataParallel would copy every gradient and warn."""
    network = ShuffleNetV2(32, 3, "0.5x").to(memory_format=torch.channels_last).train()
    network(torch.rand(2, 3, 64, 64)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name


@compiled
def test_frozen_weights_get_no_gradient_and_change_no_other_gradient() -> None:
    x = images("main", (2, 5, 5))
    everything = step(make("main"), x)
    trained = make("main")
    for index in (0, 4, 5):
        trained[index].requires_grad_(False)
    result = step(trained, x)
    assert "0.weight" not in result
    assert "4.bias" not in result
    for name, value in result.items():
        assert torch.equal(value, everything[name]), name


def plain_cases() -> Iterator[tuple[str, FusedBranch, Tensor]]:
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
def test_unsupported_calls_are_computed_by_torch(trained: FusedBranch, x: Tensor) -> None:
    assert not trained.can_fuse(x)


@compiled
def test_without_gradients_and_under_autocast_torch_computes() -> None:
    trained, x = make("main"), images("main", (2, 5, 5))
    with torch.no_grad():
        assert not trained.can_fuse(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not trained.can_fuse(x)
    assert trained.can_fuse(x)


def test_one_value_per_channel_raises_torchs_error() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        make("projection")(images("projection", (1, 2, 2)))


def test_without_compiled_code_torch_computes_and_one_log_line_tells_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(autograd, "LIBRARY", tmp_path / "absent")
    autograd.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert not make("main").can_fuse(images("main", (2, 5, 5)))
                step(make("main"), images("main", (2, 5, 5)))
    finally:
        autograd.library.cache_clear()
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "Training steps on this CPU take a quarter longer in the channels-last layout"
    ]
