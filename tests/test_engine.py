"""The training loop, evaluation and the recalibration of batch norm."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shufflenetv2 import ShuffleNetV2
from shufflenetv2.config import AugmentationConfig
from shufflenetv2.data import Digits, EvaluationTransform, evaluation_batches
from shufflenetv2.engine import (
    Callbacks,
    NonFiniteLossError,
    StepSettings,
    TrainingState,
    count_correct,
    evaluate,
    recalibrate_batch_norm,
    train,
)
from shufflenetv2.recipe import AveragedWeights, Mixing, clip_gradients, linear_decay, parameter_groups
from shufflenetv2.report import TrainMetrics
from tests.support import same_tensors

Batch = tuple[Tensor, Tensor]


def small_network() -> ShuffleNetV2:
    network = ShuffleNetV2(32, 10, "0.5x")
    network.initialize_weights(torch.Generator().manual_seed(1))
    return network


def random_batches(count: int, size: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.rand(size, 3, 32, 32, generator=generator) * 255, torch.randint(0, 10, (size,), generator=generator))
        for _ in range(count)
    ]


def new_state(total_iters: int) -> TrainingState:
    network = small_network()
    optimizer = torch.optim.SGD(parameter_groups(network, 4e-5), lr=0.1, momentum=0.9)
    return TrainingState(network, optimizer, linear_decay(optimizer, total_iters))


# ---- evaluation


def test_top1_and_top5_are_counted() -> None:
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4], [9.0, 8, 7, 6, 5, 4], [9.0, 8, 7, 6, 5, 4]])
    assert count_correct(logits, torch.tensor([0, 4, 5])).tolist() == [1, 2]
    assert count_correct(logits[:, :2], torch.tensor([0, 1, 1])).tolist() == [1, 3]


@pytest.mark.parametrize("batch_size", [7, 359, 1000])
def test_evaluation_counts_every_image_once_for_any_batch_size(batch_size: int) -> None:
    network, digits = small_network(), Digits("val")
    images, targets = next(evaluation_batches(digits, EvaluationTransform(32, 32), 359))
    with torch.no_grad():
        logits = network.eval()(images)
    network.train()
    result = evaluate(network, evaluation_batches(digits, EvaluationTransform(32, 32), batch_size))
    assert result.images == 359
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
    assert result.top1_error == pytest.approx((logits.argmax(1) != targets).double().mean().item(), abs=1 / 359)
    assert network.training


def test_evaluation_without_images_raises_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(small_network(), [])


# ---- recalibration of batch norm


def test_recalibrated_statistics_are_plain_averages_over_the_batches() -> None:
    network = small_network()
    with torch.no_grad():  # earlier statistics, which must have no influence
        for _ in range(3):
            network.train()(torch.rand(4, 3, 32, 32) * 10)
    weights = {name: parameter.clone() for name, parameter in network.named_parameters()}
    images = [images for images, _ in random_batches(5)]
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


def test_recalibration_gives_the_statistics_of_the_originals_method() -> None:
    """The original's method: forward passes in train mode, with momentum 1/i for the i-th batch."""
    network, original = small_network(), small_network().train()
    images = [images for images, _ in random_batches(4)]
    recalibrate_batch_norm(network, images)
    with torch.no_grad():
        for i, batch in enumerate(images, 1):
            for module in original.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 1 / i
            original(batch)
    assert same_tensors(network.state_dict(), original.state_dict())


# ---- the loop


class Recorder(Callbacks):
    """Record each call as (name, iteration passed to it, iteration in the state at that time)."""

    def __init__(self, state: TrainingState) -> None:
        self.state = state
        self.calls: list[tuple[str, int, int]] = []
        self.metrics: list[TrainMetrics] = []

    def before_iteration(self, iteration: int, images: Tensor, targets: Tensor) -> None:
        self.calls.append(("before", iteration, self.state.iteration))

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        self.calls.append(("after", iteration, self.state.iteration))

    def on_metrics(self, metrics: TrainMetrics) -> None:
        self.metrics.append(metrics)

    def between_iterations(self, iteration: int) -> None:
        self.calls.append(("between", iteration, self.state.iteration))

    def on_complete(self, iteration: int) -> None:
        self.calls.append(("complete", iteration, self.state.iteration))


def test_train_stops_at_the_given_iteration_and_calls_the_callbacks_in_order() -> None:
    state = new_state(7)
    recorder = Recorder(state)
    source: Iterator[Batch] = iter(random_batches(4))
    train(state.network, state, source, StepSettings(nn.CrossEntropyLoss()), until=3, display_interval=2, callbacks=recorder)
    assert state.iteration == 3
    order = [("before", -1), ("after", 0), ("between", 0), ("complete", 0)]
    assert recorder.calls == [(name, k, k + offset) for k in (1, 2, 3) for name, offset in order]
    assert [metrics.iteration for metrics in recorder.metrics] == [2, 3]  # the last one is shorter than the interval
    assert recorder.metrics[0].learning_rate == pytest.approx(0.1 * (1 - 2 / 7))
    assert next(source, None) is not None  # the fourth batch was not taken


def test_a_run_that_ends_early_has_the_metrics_of_its_last_iterations() -> None:
    class Stop(Recorder):
        def between_iterations(self, iteration: int) -> None:
            self.state.stop_reason = "early" if iteration == 3 else ""

        def on_complete(self, iteration: int) -> None:
            self.calls.append(("saved", iteration, self.state.state_dict()["progress"]["images"]))

    state = new_state(9)
    recorder, settings = Stop(state), StepSettings(nn.CrossEntropyLoss())
    train(state.network, state, iter(random_batches(9)), settings, until=9, display_interval=2, callbacks=recorder)
    assert [metrics.iteration for metrics in recorder.metrics] == [2, 3]
    # A checkpoint never holds images that are in the metrics already: the metrics would count them again after a resume.
    assert [call for call in recorder.calls if call[0] == "saved"] == [("saved", 1, 8), ("saved", 2, 0), ("saved", 3, 0)]


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_the_norm_of_the_gradients_is_measured_before_clipping_and_changes_nothing(clip: float) -> None:
    def run(display_interval: int) -> tuple[TrainingState, Recorder, list[float]]:
        state, norms = new_state(4), list[float]()

        def measure_and_clip() -> None:
            norms.append(sum(float(p.grad.pow(2).sum()) for p in state.network.parameters() if p.grad is not None) ** 0.5)
            if clip:
                nn.utils.clip_grad_norm_(state.network.parameters(), clip)

        recorder, settings = Recorder(state), StepSettings(nn.CrossEntropyLoss(), clip=measure_and_clip)
        train(
            state.network, state, iter(random_batches(4)), settings, until=4, display_interval=display_interval,
            callbacks=recorder,
        )  # fmt: skip
        return state, recorder, norms

    (always, recorder, norms), (once, other, _) = run(1), run(100)
    assert [metrics.grad_norm for metrics in recorder.metrics] == pytest.approx(norms, rel=1e-4)
    assert [metrics.iteration for metrics in other.metrics] == [4]
    assert other.metrics[0].grad_norm == recorder.metrics[-1].grad_norm
    assert same_tensors(always.network.state_dict(), once.network.state_dict())
    assert recorder.metrics[0].memory_mb is None or recorder.metrics[0].memory_mb > 50


def test_after_an_exception_in_a_callback_the_state_can_be_saved() -> None:
    class Stop(Recorder):
        def between_iterations(self, iteration: int) -> None:
            if iteration == 2:
                raise KeyboardInterrupt

    state = new_state(4)
    with pytest.raises(KeyboardInterrupt):
        train(
            state.network, state, iter(random_batches(4)), StepSettings(nn.CrossEntropyLoss()), until=4, callbacks=Stop(state)
        )
    assert (state.iteration, state.state_dict()["scheduler"]["last_epoch"]) == (2, 2)


def test_a_restored_state_continues_bit_for_bit() -> None:
    """The state includes weights, momentum, schedule, and the accuracy since the last TRAIN line."""
    data = random_batches(7)

    def run(state: TrainingState, until: int) -> TrainingState:
        settings = StepSettings(nn.CrossEntropyLoss())
        train(state.network, state, iter(data[state.iteration :]), settings, until=until, display_interval=5)
        return state

    uninterrupted = run(new_state(7), 7).state_dict()
    resumed = new_state(7)
    resumed.load_state_dict(run(new_state(7), 3).state_dict())
    restored = run(resumed, 7).state_dict()
    assert same_tensors(uninterrupted["state_dict"], restored["state_dict"])
    assert uninterrupted["progress"] == restored["progress"]
    assert uninterrupted["scheduler"] == restored["scheduler"]


def test_fast_forward_sets_the_schedule_and_does_not_change_the_weights() -> None:
    stepped, forwarded = new_state(300_000), new_state(300_000)
    for _ in range(5):
        stepped.scheduler.step()
    forwarded.fast_forward(5)
    assert forwarded.iteration == 5
    assert forwarded.learning_rate == stepped.learning_rate
    assert same_tensors(forwarded.network.state_dict(), stepped.network.state_dict())


def test_saved_names_have_no_prefix_when_the_network_is_wrapped_for_several_gpus() -> None:
    states = [new_state(2), new_state(2)]
    for state, model in zip(states, (nn.DataParallel(states[0].network), states[1].network), strict=True):
        train(model, state, iter(random_batches(2)), StepSettings(nn.CrossEntropyLoss()), until=2)
    assert same_tensors(*(state.state_dict()["state_dict"] for state in states))


def test_dropout_is_a_function_of_seed_and_iteration() -> None:
    def dropped(seed: int, draws: int) -> Tensor:
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 10))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        state = TrainingState(network, optimizer, linear_decay(optimizer, 1))  # type: ignore[arg-type]
        kept: list[Tensor] = []
        network[1].register_forward_hook(lambda module, inputs, output: kept.append(output))
        torch.rand(draws)  # random numbers drawn elsewhere have no influence
        train(network, state, iter(random_batches(1)), StepSettings(nn.CrossEntropyLoss(), seed=seed), until=1)
        return kept[0]

    assert torch.equal(dropped(0, draws=1), dropped(0, draws=5))
    assert not torch.equal(dropped(0, draws=1), dropped(1, draws=1))


def test_a_non_finite_loss_is_reported_with_the_iteration_in_which_it_occurred() -> None:
    state, data = new_state(6), random_batches(6)
    data[1][0][0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"the loss is not finite at iteration 2, where the learning rate was 0\.0666"):
        train(state.network, state, iter(data), StepSettings(nn.CrossEntropyLoss()), until=6, display_interval=4)
    assert state.iteration == 4  # at iteration 4 the metrics are displayed, and losses are checked only then


def test_the_message_of_a_non_finite_loss_lists_at_most_eight_samples() -> None:
    error = NonFiniteLossError(3, "the loss is not finite").with_samples([f"{number}.jpg" for number in range(9)])
    assert str(error) == f"the loss is not finite; its 9 samples were {', '.join(f'{n}.jpg' for n in range(8))}, ..."
    assert error.iteration == 3


class SynchronizingOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record the operations that wait for a device, because they read values of a tensor."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        if name in self.NAMES:
            self.names.append(name)
        return operation(*arguments, **(named or {}))


def record_reads(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    """Record calls of methods that read a tensor; for tensors on the CPU, SynchronizingOperations does not see these calls."""
    for name in ("tolist", "numpy", "cpu"):
        original = getattr(Tensor, name)

        def read(tensor: Tensor, *arguments: Any, name: str = name, original: Any = original) -> Any:
            names.append(name)
            return original(tensor, *arguments)

        monkeypatch.setattr(Tensor, name, read)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))])
@pytest.mark.parametrize("everything", [False, True], ids=["as published", "with mixing, clipping and averaged weights"])
def test_an_iteration_waits_for_the_device_only_where_metrics_are_displayed(
    everything: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_network().to(device)
    optimizer = torch.optim.SGD(parameter_groups(network, 4e-5), lr=0.01, momentum=0.9)
    averaged = AveragedWeights(network, 0.9) if everything else None
    state = TrainingState(network, optimizer, linear_decay(optimizer, 12), averaged)
    settings = StepSettings(
        nn.CrossEntropyLoss(label_smoothing=0.1),
        mixing=Mixing(AugmentationConfig(mixup=0.2, cutmix=1.0), 10) if everything else None,
        clip=(lambda: clip_gradients(list(network.parameters()), 1.0, "norm")) if everything else None,
    )
    data = random_batches(8)
    if device == "cuda":
        data = [(images.pin_memory(), targets.pin_memory()) for images, targets in data]

    def train_until(iteration: int) -> None:
        batches = iter(data[state.iteration : iteration])
        with contextlib.suppress(StopIteration):  # the metrics of the very last iteration, 8, are read in any case
            train(network, state, batches, settings, until=8, display_interval=4)

    with SynchronizingOperations() as operations:
        train_until(4)
        assert operations.names  # the metrics of iteration 4 were read
        operations.names.clear()
        record_reads(monkeypatch, operations.names)
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            train_until(7)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        assert operations.names == []
        train_until(8)
        assert {"tolist", "cpu", "_local_scalar_dense"} <= set(operations.names)
