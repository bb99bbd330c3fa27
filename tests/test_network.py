"""The network is the published network: parameters, logits, gradients, initial weights."""

import warnings

import pytest
import torch
import torchinfo
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from shufflenetv2 import ShuffleNetV2, ShuffleV2Block
from shufflenetv2.network import SIZES
from tests.models import randomize_batch_norms
from tests.reference import ReferenceNetwork, ReferenceUnit, smoothed_cross_entropy

PUBLISHED = {  # parameters, mult-adds in millions at 224 pixels
    "0.5x": (1_365_792, 40.5),
    "1.0x": (2_278_760, 145.8),
    "1.5x": (3_506_720, 299.0),
    "2.0x": (7_402_600, 590.8),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_and_mult_adds_have_the_published_numbers(size: str) -> None:
    network = ShuffleNetV2(model_size=size)
    parameters, mult_adds = PUBLISHED[size]
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    summary = torchinfo.summary(network, (1, 3, 224, 224), verbose=0, mode="eval", device="cpu")
    assert round(summary.total_mult_adds / 1e6, 1) == mult_adds


@pytest.mark.parametrize("size", PUBLISHED)
def test_logits_equal_those_of_the_reference_network(size: str) -> None:
    network, reference = ShuffleNetV2(n_class=7, model_size=size), ReferenceNetwork(7, size)
    randomize_batch_norms(reference, seed=3)
    network.load_state_dict(reference.state_dict())  # strict, so the names are the published names
    images = torch.rand(2, 3, 224, 224) * 255
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), reference.eval()(images), rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_the_reference_network() -> None:
    network, reference = ShuffleNetV2(64, 7, "0.5x"), ReferenceNetwork(7, "0.5x", 64)
    network.load_state_dict(reference.state_dict())
    images, targets = torch.rand(4, 3, 64, 64) * 255, torch.tensor([0, 3, 6, 3])
    for model in (network, reference):
        torch.autograd.backward(smoothed_cross_entropy(model(images), targets, 0.1))
    for (name, parameter), expected in zip(network.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("inp", "oup", "stride"), [(24, 48, 2), (24, 116, 2), (58, 116, 1)])
def test_a_unit_computes_what_the_reference_unit_computes(inp: int, oup: int, stride: int) -> None:
    block, reference = ShuffleV2Block(inp, oup, oup // 2, ksize=3, stride=stride), ReferenceUnit(inp, oup, stride)
    randomize_batch_norms(reference, seed=5)
    block.load_state_dict(reference.state_dict())
    x = torch.randn(2, inp * 2 if stride == 1 else inp, 15, 14)
    torch.testing.assert_close(block.eval()(x), reference.eval()(x))
    assert block(x).shape == (2, oup, *((15, 14) if stride == 1 else (8, 7)))


def test_initial_weights_have_the_originals_distribution() -> None:
    network = ShuffleNetV2(model_size="1.0x")
    network.initialize_weights(torch.Generator().manual_seed(1))
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            expected = 0.01 if name == "first_conv.0" else 1 / module.weight.shape[1]
            assert module.weight.std().item() == pytest.approx(expected, rel=0.25)
            assert module.bias is None
        elif isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert torch.equal(module.bias, torch.full_like(module.bias, 0.0001))
    names = network.state_dict()
    assert names["classifier.0.weight"].std().item() == pytest.approx(0.01, rel=0.05)
    assert "classifier.0.bias" not in names


def test_torch_initial_weights_have_the_distribution_of_torchvisions_network() -> None:
    network = ShuffleNetV2(model_size="1.0x", layout="torchvision", head_bias=True)
    network.initialize_weights(torch.Generator().manual_seed(1), "torch")
    reference = torchvision.models.shufflenet_v2_x1_0(weights=None)
    computed, expected = (
        [std for _, std in sorted((weight.numel(), weight.std().item()) for weight in model.parameters() if weight.dim() > 1)]
        for model in (network, reference)
    )
    assert computed == pytest.approx(expected, rel=0.25)


def test_initial_weights_are_a_function_of_the_generator() -> None:
    networks = [ShuffleNetV2(32, 10, "0.5x") for _ in range(2)]
    for network in networks:
        torch.rand(3)  # the state of the global generator does not matter
        network.initialize_weights(torch.Generator().manual_seed(7))
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (32, 32), (33, 47), (224, 224), (64, 300)])
def test_every_image_size_from_16_pixels_is_accepted(shape: tuple[int, int]) -> None:
    assert ShuffleNetV2(n_class=5, model_size="0.5x").eval()(torch.zeros(2, 3, *shape)).shape == (2, 5)


def test_bytes_and_floats_give_the_same_logits() -> None:
    network = ShuffleNetV2(32, 5, "0.5x").eval()
    images = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8).permute(0, 3, 1, 2)  # the loader's memory layout
    assert torch.equal(network(images), network(images.contiguous().float()))


def test_mean_and_std_normalize_the_input_and_are_not_in_the_state_dict() -> None:
    plain = ShuffleNetV2(32, 5, "0.5x").eval()
    mean, std = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
    normalizing = ShuffleNetV2(32, 5, "0.5x", mean=mean, std=std).eval()
    normalizing.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32) * 255
    normalized = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(normalizing(images), plain(normalized))
    assert not torch.allclose(normalizing(images), plain(images))


def test_only_the_largest_size_has_dropout() -> None:
    assert [ShuffleNetV2(model_size=size).dropout.p for size in PUBLISHED] == [0, 0, 0, 0.2]


@pytest.mark.parametrize(
    "wrong", [{"model_size": "3.0x"}, {"input_size": 15}, {"n_class": 0}, {"in_chans": 2}, {"mean": (1.0,)}]
)
def test_invalid_arguments_raise_errors_that_name_them(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        ShuffleNetV2(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", PUBLISHED)
def test_forward_features_returns_the_maps_of_every_stage(size: str) -> None:
    network, images = ShuffleNetV2(model_size=size).eval(), torch.rand(2, 3, 65, 97) * 255
    maps = network.forward_features(images)
    (stage2, stage3, stage4), last = SIZES[size]
    assert {name: tuple(value.shape[1:]) for name, value in maps.items()} == {
        "stem": (24, 17, 25),
        "stage2": (stage2, 9, 13),
        "stage3": (stage3, 5, 7),
        "stage4": (stage4, 3, 4),
        "conv_last": (last, 3, 4),
    }
    assert torch.equal(network.classifier(network.pool(maps["conv_last"])), network(images))


def test_torchvisions_feature_extractor_gives_the_maps_of_forward_features() -> None:
    network = ShuffleNetV2(32, 10, "0.5x").eval()
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    nodes = {
        "maxpool": "stem",
        "features.3": "stage2",
        "features.11": "stage3",
        "features.15": "stage4",
        "conv_last": "conv_last",
    }
    extracted = create_feature_extractor(network, nodes)(images)
    expected = network.forward_features(images)
    assert extracted.keys() == expected.keys()
    assert all(torch.equal(extracted[name], expected[name]) for name in expected)


def test_exported_traced_and_scripted_networks_give_the_same_logits() -> None:
    network, images = ShuffleNetV2(32, 10, "0.5x").eval(), torch.rand(2, 3, 32, 32) * 255
    exported = torch.export.export(network, (images,)).module()
    with warnings.catch_warnings():  # torch.jit is deprecated, but still in use
        warnings.simplefilter("ignore", FutureWarning)
        traced, scripted = torch.jit.trace(network, images), torch.jit.script(network)  # type: ignore[no-untyped-call]
    for program in (exported, traced, scripted):
        assert torch.equal(program(images), network(images))
