"""Converted weights compute the same function as the network of the project they come from."""

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from shufflenetv2 import ShuffleNetV2, UserError, read_weights
from shufflenetv2.weights import (
    Preprocessing,
    Weights,
    from_mmpretrain,
    from_torchvision,
    pretrained_weights,
    rgb_normalization,
    to_mmpretrain,
    to_torchvision,
)
from tests.models import CLASSES, IMAGENET, MMClassifier, random_weights, randomized, torchvision_network
from tests.reference import SIZES, ReferenceNetwork
from tests.support import same_tensors


def bgr_images() -> Tensor:
    """Return two images, BGR on 0..255, float64, not square."""
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 255


def normalized(images: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """Return BGR images as torchvision's network takes them: RGB on 0..1 through torchvision's Normalize."""
    mean, std = rgb_normalization(preprocessing)
    result: Tensor = torchvision.transforms.functional.normalize(images.flip(1) / 255, mean, std)
    return result


def double_network(weights: Weights) -> ShuffleNetV2:
    """Return the network in float64, including its mean and standard deviation, which float32 would round."""
    network = weights.network().double()
    network.input_mean = torch.tensor(network.mean, dtype=torch.float64).view(1, 3, 1, 1)
    network.input_std = torch.tensor(network.std, dtype=torch.float64).view(1, 3, 1, 1)
    return network


def assert_same_function(weights: Weights, network: nn.Module) -> None:
    """Assert equal logits up to rounding in float64, and up to 1e-4 of the largest logit in float32."""
    images = bgr_images()
    with torch.no_grad():
        expected = network.eval().double()(normalized(images, weights.preprocessing))
        largest = expected.abs().max().item()
        assert (expected[0] - expected[1]).abs().max() > 0.01 * largest  # the logits depend on the image
        torch.testing.assert_close(double_network(weights)(images), expected, rtol=0, atol=1e-10 * largest)
        single = weights.network()(images.float()).double()
    torch.testing.assert_close(single, expected, rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize(("model_size", "resize_size"), [("0.5x", 256), ("1.0x", 256), ("1.5x", 232), ("2.0x", 232)])
def test_torchvision_weights_compute_the_same_logits_here(model_size: str, resize_size: int) -> None:
    network = randomized(torchvision_network(model_size))
    weights = from_torchvision(network.state_dict())
    assert (weights.model_size, weights.n_class, weights.architecture["head_bias"]) == (model_size, CLASSES, True)
    assert weights.preprocessing == Preprocessing(224, resize_size, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))
    mean, std = rgb_normalization(weights.preprocessing)
    assert mean == pytest.approx([0.485, 0.456, 0.406], rel=1e-12)
    assert std == pytest.approx([0.229, 0.224, 0.225], rel=1e-12)
    assert_same_function(weights, network)


@pytest.mark.parametrize("model_size", SIZES)
def test_weights_of_torchvision_layout_compute_the_same_logits_in_torchvision(model_size: str) -> None:
    weights = random_weights(model_size, layout="torchvision", head_bias=True)
    network = torchvision_network(model_size)
    network.load_state_dict(to_torchvision(weights), strict=True)
    for preprocessing in (None, IMAGENET):
        weights.preprocessing = preprocessing
        assert_same_function(weights, network)


@pytest.mark.parametrize("model_size", SIZES)
def test_mmpretrain_weights_compute_the_same_logits_here_and_convert_back_bit_for_bit(model_size: str) -> None:
    network = randomized(MMClassifier(model_size))
    state_dict = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights = from_mmpretrain(state_dict)
    assert weights.preprocessing == IMAGENET
    assert same_tensors(to_mmpretrain(weights), state_dict)
    assert_same_function(weights, network)


def test_the_layouts_original_and_torchvision_are_equal_for_the_smallest_size() -> None:
    weights = from_torchvision(randomized(torchvision_network("0.5x")).state_dict())
    original = ShuffleNetV2(64, CLASSES, "0.5x", mean=IMAGENET.mean, std=IMAGENET.std, layout="original", head_bias=True)
    original.load_state_dict(weights.state_dict, strict=True)
    images = bgr_images().float()
    with torch.no_grad():
        assert torch.equal(original.eval()(images), weights.network()(images))


def test_original_weights_of_the_smallest_size_compute_the_same_logits_in_torchvision(tmp_path: Path) -> None:
    original = randomized(ReferenceNetwork(CLASSES, "0.5x", 64)).double()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in original.state_dict().items()}}, tmp_path / "w")
    weights = read_weights(tmp_path / "w")
    network = torchvision_network("0.5x").double()
    network.load_state_dict(to_torchvision(weights), strict=True)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 255
    with torch.no_grad():
        expected = original(images)
        rgb = images.flip(1)  # on 0..255, without normalization
        torch.testing.assert_close(normalized(images, weights.preprocessing), rgb)
        torch.testing.assert_close(network.eval()(rgb), expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    # torchvision's head has biases; the zeros that conversion added are removed again.
    assert same_tensors(from_torchvision(network.state_dict()).state_dict, weights.state_dict)


def test_missing_unknown_and_misshapen_tensors_are_refused_by_name() -> None:
    complete = randomized(torchvision_network("0.5x")).state_dict()
    name = "stage3.2.branch2.5.weight"
    wrong: list[dict[str, Any]] = [
        {key: tensor for key, tensor in complete.items() if key != name},
        complete | {name: complete[name][:, :-1]},
        complete | {name: "not a tensor"},
    ]
    for state_dict in wrong:
        with pytest.raises(UserError, match=f"^file.pth does not fit torchvision's ShuffleNetV2 0.5x: 1 .*{name} first$"):
            from_torchvision(state_dict, "file.pth")
    with pytest.raises(UserError, match=r"1 tensors are missing, unknown or of another shape, extra first$"):
        from_torchvision(complete | {"extra": torch.zeros(1)})
    with pytest.raises(UserError, match="no weights of mmpretrain's"):
        from_mmpretrain(complete)
    incomplete = random_weights("0.5x")
    del incomplete.state_dict["conv_last.1.bias"]
    with pytest.raises(UserError, match=r"conv_last.1.bias first$"):
        to_torchvision(incomplete)


def test_weights_without_batch_counters_are_accepted() -> None:
    # torch saves `num_batches_tracked` since version 0.4.1.
    complete = randomized(torchvision_network("0.5x")).state_dict()
    old = {name: tensor for name, tensor in complete.items() if not name.endswith("num_batches_tracked")}
    converted = to_torchvision(from_torchvision(old))
    assert same_tensors(converted, old)
    torchvision_network("0.5x").load_state_dict(converted, strict=True)


# ---- torchvision's published weights


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty folder as torch.hub's, and make every download fail."""

    def fail(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setattr("torch.hub.urlopen", fail)
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("model_size", "file", "resize_size"),
    [("1.0x", "shufflenetv2_x1-5666bf0f80.pth", 256), ("2.0x", "shufflenetv2_x2_0-8be3c8ee.pth", 232)],
)
def test_published_weights_are_read_from_the_folder_of_torch_hub(
    hub_folder: Path, model_size: str, file: str, resize_size: int
) -> None:
    network = randomized(torchvision_network(model_size, classes=1000))
    torch.save(network.state_dict(), hub_folder / file)
    weights = pretrained_weights(model_size, progress=False)
    assert weights.class_names is not None
    assert (len(weights.class_names), weights.class_names[0], weights.n_class) == (1000, "tench", 1000)
    assert weights.preprocessing == Preprocessing(224, resize_size, IMAGENET.mean, IMAGENET.std)
    assert weights.path == hub_folder / file
    assert_same_function(weights, network)


def test_a_failed_download_names_the_reason_and_the_alternative(hub_folder: Path) -> None:
    with pytest.raises(UserError, match=r"^`pretrained`: https://.*no network.*; give a file with `initial_checkpoint`$"):
        pretrained_weights("1.5x", progress=False)
    assert list(hub_folder.iterdir()) == []


class MakesFolder:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_download_that_is_damaged_or_contains_code_is_named_and_not_executed(hub_folder: Path) -> None:
    file = hub_folder / "shufflenetv2_x0.5-f707e7126e.pth"
    for content in (b"cut short", MakesFolder(hub_folder / "executed")):
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        with pytest.raises(UserError, match=f"^{file} is damaged, or holds more than weights; delete it"):
            pretrained_weights("0.5x", progress=False)
        assert list(hub_folder.iterdir()) == [file]
