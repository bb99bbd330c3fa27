"""Training that starts from weights: which weights are loaded, and which are frozen."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shufflenetv2 import ShuffleNetV2, files
from shufflenetv2.engine import recalibrate_batch_norm, train_step
from shufflenetv2.errors import UserError
from shufflenetv2.recipe import freeze, parameter_groups, start_from
from shufflenetv2.weights import Preprocessing, Weights, model_record, read_weights
from tests.models import randomize_batch_norms
from tests.support import same_tensors

NAMES = ["cat", "dog", "owl"]


def network(n_class: int = 3, seed: int = 0, **arguments: Any) -> ShuffleNetV2:
    model = ShuffleNetV2(32, n_class, "0.5x", **arguments)
    model.initialize_weights(torch.Generator().manual_seed(seed))
    randomize_batch_norms(model, seed)
    return model


def saved(folder: Path, model: ShuffleNetV2, class_names: list[str] | None = None) -> Weights:
    """Write a model file and read it."""
    preprocessing = Preprocessing(32, 32, model.mean, model.std)
    record = model_record(model, class_names=class_names or [], preprocessing=preprocessing, iteration=7)
    files.write(folder / "model.pkl", record)
    return read_weights(folder / "model.pkl")


def clone(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def part(state: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """Return the tensors with these prefixes, without the counts of batches, which frozen parts do not have."""
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes) and "num_batches" not in name}


def images(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_all_weights_are_loaded_where_the_classes_are_the_same(tmp_path: Path) -> None:
    trained, fresh = network(seed=1), network(seed=2)
    parameters = dict(fresh.named_parameters())
    line = start_from(fresh, saved(tmp_path, trained, NAMES), NAMES)
    assert same_tensors(fresh.state_dict(), trained.state_dict())
    assert all(parameters[name] is parameter for name, parameter in fresh.named_parameters())  # in place
    assert line == f"started from {tmp_path / 'model.pkl'} (0.5x, 3 classes)"


@pytest.mark.parametrize("with_names", [True, False])
def test_only_a_classifier_of_another_size_keeps_its_initial_weights(tmp_path: Path, with_names: bool) -> None:
    trained, fresh = network(4, seed=1), network(seed=2)
    head = clone(fresh.classifier)
    line = start_from(fresh, saved(tmp_path, trained, [*NAMES, "yak"] if with_names else None), NAMES)
    assert same_tensors(clone(fresh.classifier), head)
    for state in (expected := clone(trained), loaded := clone(fresh)):
        del state["classifier.0.weight"]
    assert same_tensors(loaded, expected)
    assert line == f"started from {tmp_path / 'model.pkl'} (0.5x, 4 classes); the classifier is new, for 3 classes"


def test_a_classifier_with_other_parameters_keeps_its_initial_weights(tmp_path: Path) -> None:
    trained, fresh = network(seed=1), network(seed=2, head_bias=True, pooling="catavgmax")
    head = clone(fresh.classifier)
    line = start_from(fresh, saved(tmp_path, trained))
    assert same_tensors(clone(fresh.classifier), head)
    assert same_tensors(clone(fresh.features), clone(trained.features))
    assert line.endswith("; the classifier is new, for 3 classes")


def test_a_classifier_for_other_classes_keeps_its_initial_weights(tmp_path: Path) -> None:
    trained, fresh = network(seed=1), network(seed=2)
    head = clone(fresh.classifier)
    line = start_from(fresh, saved(tmp_path, trained, ["ant", "bee", "cat"]), NAMES)
    assert same_tensors(clone(fresh.classifier), head)
    assert same_tensors(clone(fresh.features), clone(trained.features))
    assert line.endswith("; the classifier is new, for 3 other classes")


@pytest.mark.parametrize(("in_file", "here"), [(None, NAMES), (NAMES, None)])
def test_a_classifier_of_unknown_classes_is_loaded(tmp_path: Path, in_file: list[str] | None, here: list[str] | None) -> None:
    trained, fresh = network(seed=1), network(seed=2)
    start_from(fresh, saved(tmp_path, trained, in_file), here)
    assert same_tensors(fresh.state_dict(), trained.state_dict())


def test_the_rows_of_the_classifier_follow_the_order_of_the_classes(tmp_path: Path) -> None:
    trained, fresh = network(seed=1, head_bias=True).eval(), network(seed=2, head_bias=True).eval()
    nn.init.normal_(trained.classifier[0].bias, generator=torch.Generator().manual_seed(3))  # type: ignore[arg-type]
    line = start_from(fresh, saved(tmp_path, trained, ["owl", "cat", "dog"]), NAMES)
    with torch.no_grad():
        assert torch.equal(fresh(images()), trained(images())[:, [1, 2, 0]])
    assert line.endswith("; the rows of the classifier were put in the order of the classes of the training images")


def test_another_normalisation_is_logged(tmp_path: Path) -> None:
    trained = network(mean=(1.0, 2.5, 3.0), std=(4.0, 5.0, 6.0))
    assert start_from(network(), saved(tmp_path, trained)).endswith("; they were trained with mean 1 2.5 3 and std 4 5 6")
    assert "mean" not in start_from(trained, saved(tmp_path, trained))


def without_counts(weights: Weights) -> Weights:
    state = {name: tensor for name, tensor in weights.state_dict.items() if "num_batches" not in name}
    return dataclasses.replace(weights, state_dict=state)


def test_weights_without_counts_of_batches_are_loaded(tmp_path: Path) -> None:
    trained, fresh = network(seed=1), network(seed=2)
    start_from(fresh, without_counts(saved(tmp_path, trained)))
    assert same_tensors(fresh.state_dict(), trained.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.state_dict.pop("features.3.branch_main.0.weight"), "features.3.branch_main.0.weight first"),
        (lambda weights: weights.state_dict.update(extra=torch.zeros(1)), "1 tensors are missing, .*, extra first"),
        (lambda weights: weights.state_dict.update({"first_conv.1.bias": torch.zeros(7)}), "first_conv.1.bias first"),
        (lambda weights: setattr(weights, "model_size", "2.0x"), "a 2.0x model, and `model_size` is 0.5x"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(
    tmp_path: Path, change: Callable[[Weights], object], message: str
) -> None:
    weights, fresh = saved(tmp_path, network(seed=1)), network(seed=2)
    before = clone(fresh)
    change(weights)
    with pytest.raises(UserError, match=f"^`initial_checkpoint` .*model.pkl .*{message}$") as refusal:
        start_from(fresh, weights)
    assert "\n" not in str(refusal.value)
    assert same_tensors(fresh.state_dict(), before)


PARTS = {
    "stem": ["first_conv."],
    "stage2": [f"features.{unit}." for unit in range(4)],
    "stage3": [f"features.{unit}." for unit in range(4, 12)],
    "stage4": [f"features.{unit}." for unit in range(12, 16)],
    "conv_last": ["conv_last."],
    "backbone": ["first_conv.", "features.", "conv_last."],
    "features.1": ["features.1."],  # and not features.10
    "features.0.branch_proj.1": ["features.0.branch_proj.1."],
    "classifier": ["classifier."],
}


@pytest.mark.parametrize("names", [[name] for name in PARTS] + [["stem", "stage2", "stem"]], ids="-".join)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_frozen_parts_keep_their_values_and_the_others_learn(names: list[str]) -> None:
    model = network()
    before = clone(model)
    line = freeze(model, names)
    optimizer = torch.optim.SGD(parameter_groups(model, 4e-5), lr=0.1, momentum=0.9)
    model.train()
    for step in range(3):
        train_step(model, images(step), torch.arange(8) % 3, nn.functional.cross_entropy, optimizer)
    recalibrate_batch_norm(model, [images(3), images(4)])
    after = clone(model)

    prefixes = tuple(prefix for name in names for prefix in PARTS[name])
    frozen = part(before, *prefixes)
    assert frozen
    assert same_tensors(part(after, *prefixes), frozen)
    learning = part(before, "").keys() - frozen.keys()
    # The batch norm after the next convolution subtracts what these biases add, so their gradient is 0.
    for name in [name for name in learning if not name.endswith(("branch_main.4.bias", "branch_proj.1.bias"))]:
        assert not torch.equal(after[name], before[name]), name
    count = sum(tensor.numel() for name, tensor in frozen.items() if "running" not in name)
    total = sum(parameter.numel() for parameter in network().parameters())
    assert line == f"frozen: {', '.join(names)} ({count:,} of {total:,} parameters)"


def test_freezing_does_not_change_what_the_network_computes() -> None:
    model = network(bn_eps=1e-2).eval()
    with torch.no_grad():
        expected = model(images())
        freeze(model, ["backbone"])
        torch.testing.assert_close(model(images()), expected, rtol=1e-5, atol=1e-5)
        model.train()
        torch.testing.assert_close(model(images()), expected, rtol=1e-5, atol=1e-5)  # no batch statistics


def test_frozen_parts_keep_their_precision() -> None:
    model = network().double()
    dtypes = {name: tensor.dtype for name, tensor in part(model.state_dict(), "").items()}
    freeze(model, ["backbone"])
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == dtypes


def test_a_file_of_a_frozen_network_is_like_any_other(tmp_path: Path) -> None:
    model = network().eval()
    with torch.no_grad():
        expected = model(images())
    freeze(model, ["stem", "stage3"])
    loaded = saved(tmp_path, model).network()
    assert {type(module) for module in loaded.modules()} == {type(module) for module in network().modules()}
    with torch.no_grad():
        assert torch.equal(loaded(images()), expected)
    model.load_state_dict(loaded.state_dict())  # strictly, as a checkpoint is loaded


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["stem", "stage5"], "`freeze` stage5: .*; did you mean stage[234]\\?"),
        (["feature.3"], "`freeze` feature.3: .*; did you mean features.3\\?"),
        (["maxpool"], "`freeze` maxpool: no part of the network with weights"),
        ([""], "`freeze` : no part"),
        (["backbone", "classifier"], "`freeze` backbone classifier: nothing would be left to train"),
        (["stem", "features", "conv_last", "classifier.0"], "nothing would be left to train"),
    ],
)
def test_parts_that_cannot_be_frozen_are_refused(names: list[str], message: str) -> None:
    model = network()
    with pytest.raises(UserError, match=message) as refusal:
        freeze(model, names)
    assert "\n" not in str(refusal.value)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == network().state_dict().keys()
