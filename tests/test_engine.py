"""The loop, evaluation and the recalibration of batch norm."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shufflenetv2 import ShuffleNetV2
from shufflenetv2.data import Digits, EvaluationTransform, evaluation_batches
from shufflenetv2.engine import TrainingState, evaluate, every, recalibrate_batch_norm, train
from shufflenetv2.engine.evaluation import count_correct
from shufflenetv2.recipe import AveragedWeights, Mixing, linear_decay, parameter_groups
from shufflenetv2.recipe.optimizers import clip_gradients
from shufflenetv2.report import RunLog


def small_network(n_class: int = 10) -> ShuffleNetV2:
    network = ShuffleNetV2(32, n_class, "0.5x")
    network.initialize_weights(torch.Generator().manual_seed(1))
    return network


def batches(count: int, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.rand(size, 3, 32, 32, generator=generator) * 255, torch.randint(0, 10, (size,), generator=generator))
        for _ in range(count)
    ]


def test_the_counts_are_of_first_and_first_five_guesses() -> None:
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4], [9.0, 8, 7, 6, 5, 4], [9.0, 8, 7, 6, 5, 4]])
    assert count_correct(logits, torch.tensor([0, 4, 5])).tolist() == [1, 2]
    assert count_correct(logits[:, :2], torch.tensor([0, 1, 1])).tolist() == [1, 3]


@pytest.mark.parametrize("batch_size", [7, 50, 359, 1000])
def test_evaluation_counts_every_image_once_whatever_the_batch_size(batch_size: int) -> None:
    network, digits = small_network(), Digits("val")
    network.train()
    images, targets = next(evaluation_batches(digits, EvaluationTransform(32, 32), 359))
    with torch.no_grad():
        logits = network.eval()(images)
    network.train()
    result = evaluate(network, evaluation_batches(digits, EvaluationTransform(32, 32), batch_size))
    assert result.images == 359
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
    assert result.top1_error == pytest.approx((logits.argmax(1) != targets).double().mean().item(), abs=1 / 359)
    assert network.training


def test_evaluation_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(small_network(), [])


def test_recalibrated_statistics_are_plain_averages_over_the_batches() -> None:
    network = small_network()
    with torch.no_grad():  # statistics that must not leave a trace
        for _ in range(3):
            network.train()(torch.rand(4, 3, 32, 32) * 10)
    weights = {name: parameter.clone() for name, parameter in network.named_parameters()}
    images = [images for images, _ in batches(5)]
    recalibrate_batch_norm(network, images)

    stem = network.first_conv[0]
    with torch.no_grad():
        outputs = [stem(batch) for batch in images]
    mean = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
    variance = torch.stack([output.var((0, 2, 3), unbiased=True) for output in outputs]).mean(0)
    norm = network.first_conv[1]
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in network.named_parameters())
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    assert not network.training


def test_recalibration_is_the_originals() -> None:
    """There: train mode throughout, and momentum 1/i for the i-th batch."""
    network, original = small_network(), small_network().train()
    images = [images for images, _ in batches(4)]
    recalibrate_batch_norm(network, images)
    with torch.no_grad():
        for i, batch in enumerate(images, 1):
            for module in original.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 1 / i
            original(batch)
    for (name, mine), other in zip(network.state_dict().items(), original.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


def new_state(total_iters: int) -> TrainingState:
    network = small_network()
    optimizer = torch.optim.SGD(parameter_groups(network, 4e-5), lr=0.1, momentum=0.9)
    return TrainingState(network, optimizer, linear_decay(optimizer, total_iters))


def test_the_loop_does_its_iterations_and_its_events_in_order() -> None:
    state = new_state(7)
    happened: list[tuple[str, int]] = []

    def note(what: str) -> Callable[[], None]:
        return lambda: happened.append((what, state.iteration))

    events = [(every(3), note("validate")), (every(2), note("save"))]
    with RunLog() as log:
        source: Iterator[tuple[Tensor, Tensor]] = iter(batches(7))
        train(
            state.network, state, source, nn.CrossEntropyLoss(), total_iters=7, seed=0, log=log,
            display_interval=2, events=events,
        )  # fmt: skip
    assert state.iteration == 7
    assert happened == [("save", 2), ("validate", 3), ("save", 4), ("validate", 6), ("save", 6)]
    assert next(source, None) is None
    assert state.progress.state_dict()["images"] == 8  # of the seventh, not yet displayed


def test_a_state_goes_on_where_another_was_saved() -> None:
    """Weights, momentum, schedule and the half-gathered figures all come along."""
    data = batches(7)

    def run(state: TrainingState, until: int) -> TrainingState:
        with RunLog() as log:
            train(
                state.network, state, iter(data[state.iteration :]), nn.CrossEntropyLoss(), total_iters=until, seed=0,
                log=log, display_interval=5,
            )  # fmt: skip
        return state

    whole = run(new_state(7), 7)
    resumed = new_state(7)
    resumed.load_state_dict(run(new_state(7), 3).state_dict())
    run(resumed, 7)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    assert whole.state_dict()["progress"] == resumed.state_dict()["progress"]
    assert whole.state_dict()["scheduler"] == resumed.state_dict()["scheduler"]


def test_saved_names_are_bare_when_the_network_is_wrapped_for_several_gpus() -> None:
    state, bare = new_state(2), new_state(2)
    for each, model in ((state, nn.DataParallel(state.network)), (bare, bare.network)):
        with RunLog() as log:
            train(
                model, each, iter(batches(2)), nn.CrossEntropyLoss(), total_iters=2, seed=0, log=log, display_interval=9
            )  # fmt: skip
    assert state.state_dict()["state_dict"].keys() == bare.state_dict()["state_dict"].keys()
    assert all(torch.equal(a, b) for a, b in zip(state.network.parameters(), bare.network.parameters(), strict=True))


def test_dropout_is_a_function_of_seed_and_iteration() -> None:
    def dropped(seed: int, noise: int) -> Tensor:
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 10))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        state = TrainingState(network, optimizer, linear_decay(optimizer, 1))  # type: ignore[arg-type]
        kept: list[Tensor] = []
        network[1].register_forward_hook(lambda module, inputs, output: kept.append(output))
        torch.rand(noise)  # whatever happened before
        with RunLog() as log:
            train(
                network,
                state,
                iter(batches(1)),
                nn.CrossEntropyLoss(),
                total_iters=1,
                seed=seed,
                log=log,
                display_interval=9,
            )
        return kept[0]

    assert torch.equal(dropped(0, noise=1), dropped(0, noise=5))
    assert not torch.equal(dropped(0, noise=1), dropped(1, noise=1))


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation that would have to wait for a device, as what depends on a tensor's values does."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        if name in self.NAMES:
            self.found.append(name)
        return operation(*arguments, **(named or {}))


def note_reads(monkeypatch: pytest.MonkeyPatch, found: list[str]) -> None:
    """On a processor these are no operations of torch's."""
    for name in ("tolist", "numpy", "cpu"):
        original = getattr(Tensor, name)

        def read(tensor: Tensor, *arguments: Any, name: str = name, original: Any = original) -> Any:
            found.append(name)
            return original(tensor, *arguments)

        monkeypatch.setattr(Tensor, name, read)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))])
@pytest.mark.parametrize("everything", [False, True], ids=["as published", "with mixing, clipping and averaged weights"])
def test_an_iteration_waits_for_the_device_only_where_it_is_shown(
    everything: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_network().to(device)
    optimizer = torch.optim.SGD(parameter_groups(network, 4e-5), lr=0.01, momentum=0.9)
    averaged = AveragedWeights(network, 0.9) if everything else None
    state = TrainingState(network, optimizer, linear_decay(optimizer, 12), averaged)
    train_until = partial(
        train, network, state, loss_function=nn.CrossEntropyLoss(label_smoothing=0.1), seed=0, display_interval=4,
        mixing=Mixing(10, mixup=0.2, cutmix=1.0) if everything else None,
        clip=partial(clip_gradients, list(network.parameters()), 1.0, "norm") if everything else None,
    )  # fmt: skip
    data = batches(8)
    if device == "cuda":
        data = [(images.pin_memory(), targets.pin_memory()) for images, targets in data]
    with RunLog() as log, Waits() as waits:
        train_until(iter(data[:4]), total_iters=4, log=log)
        assert waits.found  # by the line of the fourth
        waits.found.clear()
        note_reads(monkeypatch, waits.found)
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            train_until(iter(data[4:7]), total_iters=7, log=log)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        assert waits.found == []
        train_until(iter(data[7:]), total_iters=8, log=log)
        assert {"tolist", "cpu", "_local_scalar_dense"} <= set(waits.found)
