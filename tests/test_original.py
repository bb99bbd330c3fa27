"""Weights of the original's own network evaluate, convert and fine-tune here; its names are the names of this network."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shufflenetv2 import ShuffleNetV2, load_model
from shufflenetv2.__main__ import main
from shufflenetv2.weights import read_weights
from tests.models import randomized
from tests.reference import ReferenceNetwork
from tests.support import SHORT, Train, same_tensors

NAMES = (Path(__file__).parent / "original_state_dict_names.txt").read_text().split()
CLASSES = 10


@pytest.fixture
def original() -> ReferenceNetwork:
    """Make the original's network with random weights, for ten classes."""
    network = randomized(ReferenceNetwork(CLASSES, "0.5x", 32), seed=4)
    assert isinstance(network, ReferenceNetwork)
    return network


def save_like_the_original(network: ReferenceNetwork, path: Path, last_conv: str = "conv_last") -> Path:
    """Write a checkpoint as the original's trainer does: parallel training puts `module.` before the names."""
    state = {f"module.{name.replace('conv_last', last_conv)}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, path)
    return path


def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255


@pytest.mark.parametrize("model_size", ["0.5x", "1.0x", "1.5x", "2.0x"])
def test_the_state_dict_has_the_337_names_of_the_original(model_size: str) -> None:
    assert len(NAMES) == len(set(NAMES)) == 337
    assert list(ShuffleNetV2(n_class=CLASSES, model_size=model_size).state_dict()) == NAMES


@pytest.mark.parametrize("last_conv", ["conv_last", "last_conv"])
def test_the_originals_checkpoint_computes_the_same_logits_here(
    original: ReferenceNetwork, tmp_path: Path, last_conv: str
) -> None:
    path = save_like_the_original(original, tmp_path / "original.pth.tar", last_conv)
    with torch.no_grad():
        torch.testing.assert_close(load_model(str(path))(images()), original(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last_conv", ["conv_last", "last_conv"])
def test_converted_weights_load_into_the_originals_network(original: ReferenceNetwork, tmp_path: Path, last_conv: str) -> None:
    path = save_like_the_original(original, tmp_path / "original.pth.tar", last_conv)
    for source, target, project in (
        (path, tmp_path / "here.pkl", "shufflenetv2"),
        (tmp_path / "here.pkl", tmp_path / "back.pth.tar", "original"),
        (path, tmp_path / "direct.pth.tar", "original"),
    ):
        main(["convert", "--to", project, str(source), str(target)])
    for name in ("back.pth.tar", "direct.pth.tar"):
        state = torch.load(tmp_path / name, weights_only=True)["state_dict"]
        network = ReferenceNetwork(CLASSES, "0.5x", 32)
        network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()}, strict=True)
        assert same_tensors(network.state_dict(), original.state_dict())


@pytest.mark.parametrize("last_conv", ["conv_last", "last_conv"])
def test_the_originals_checkpoint_is_evaluated_and_fine_tuned(
    original: ReferenceNetwork, tmp_path: Path, train_here: Train, last_conv: str
) -> None:
    path = save_like_the_original(original, tmp_path / "original.pth.tar", last_conv)
    evaluated = train_here(*SHORT, "--eval", "--eval-resume", path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert re.search(r"\d+ images, top-1 \d+\.\d\d%", evaluated.stdout)

    tuned = train_here(*SHORT, "--initial-checkpoint", path, "--freeze", "backbone", "--total-iters", "2", "--save", "tuned")
    assert tuned.returncode == 0, tuned.stderr
    weights = read_weights(tmp_path / "tuned/model.pkl")
    for name, value in original.named_parameters():
        assert torch.equal(weights.state_dict[name], value) == (name != "classifier.0.weight"), name
