"""Variants of the published network (pooling, layout, drops, batch norm), and which of them a weight file determines."""

from pathlib import Path

import pytest
import timm.layers
import torch
from torch import Tensor, nn

from shufflenetv2 import ShuffleNetV2, ShuffleV2Block, files, load_model
from shufflenetv2.weights import Preprocessing, model_record, read_weights
from tests.support import same_tensors

POOLINGS = ("avg", "max", "avgmax", "catavgmax")
DEPTH = 16
STRIDE_2 = (0, 4, 12)


def units(network: ShuffleNetV2) -> list[ShuffleV2Block]:
    blocks = [unit for unit in network.features if isinstance(unit, ShuffleV2Block)]
    assert len(blocks) == DEPTH
    return blocks


def layers(module: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def make_output_positive(unit: ShuffleV2Block) -> None:
    """Raise the biases of the last norm, so that only a drop makes the main branch's output zero."""
    norm = unit.branch_main[6]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.ones_(norm.bias)


def images(count: int = 2, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255


def with_random_norms(network: ShuffleNetV2) -> ShuffleNetV2:
    """Draw weights and statistics of the norms, so that the output depends on all of them."""
    generator = torch.Generator().manual_seed(5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for name, low in (("weight", 0.5), ("bias", -0.3), ("running_mean", -0.5), ("running_var", 0.5)):
                values = getattr(layer, name)
                values.data.copy_(torch.rand(values.shape, generator=generator) + low)
    return network.eval()


def test_pooling_matches_its_name() -> None:
    torch.manual_seed(0)
    networks = {pooling: with_random_norms(ShuffleNetV2(64, 7, "0.5x", pooling=pooling)) for pooling in POOLINGS}
    features: list[Tensor] = []
    networks["avg"].conv_last.register_forward_hook(lambda module, inputs, output: features.append(output))
    weight = torch.randn(7, 2048)
    for pooling, network in networks.items():
        head = nn.Parameter(weight if pooling == "catavgmax" else weight[:, :1024])
        network.load_state_dict({**networks["avg"].state_dict(), "classifier.0.weight": head})
    with torch.no_grad():
        logits = {pooling: network(images()) for pooling, network in networks.items()}
    mean, largest = features[0].mean(dim=(2, 3)), features[0].amax(dim=(2, 3))
    assert features[0].shape[2:] == (2, 2)  # more than one pixel: mean and maximum differ
    torch.testing.assert_close(logits["avg"], mean @ weight[:, :1024].T)
    torch.testing.assert_close(logits["max"], largest @ weight[:, :1024].T)
    torch.testing.assert_close(logits["avgmax"], (mean + largest) / 2 @ weight[:, :1024].T)
    torch.testing.assert_close(logits["catavgmax"], mean @ weight[:, :1024].T + largest @ weight[:, 1024:].T)


@pytest.mark.parametrize(("pooling", "layout"), [("avg", "original"), *((pooling, "torchvision") for pooling in POOLINGS)])
def test_a_model_file_restores_the_architecture(tmp_path: Path, pooling: str, layout: str) -> None:
    network = ShuffleNetV2(64, 7, "1.0x", pooling=pooling, layout=layout, head_bias=pooling == "max", bn_eps=1e-3)
    with_random_norms(network)
    record = model_record(network, class_names=list("abcdefg"), preprocessing=Preprocessing(64, 64), iteration=3)
    files.write(tmp_path / "model.pkl", record)
    weights = read_weights(tmp_path / "model.pkl")
    assert (weights.n_class, weights.model_size, weights.iteration) == (7, "1.0x", 3)
    for restored in (weights.network(), load_model(str(tmp_path / "model.pkl"))):
        assert restored.architecture == network.architecture
        assert {layer.eps for layer in restored.modules() if isinstance(layer, nn.BatchNorm2d)} == {1e-3}
        assert not restored.training
        assert torch.equal(restored(images()), network(images()))


@pytest.mark.parametrize("layout", ["original", "torchvision"])
@pytest.mark.parametrize("head_bias", [False, True])
@pytest.mark.parametrize("pooling", ["avg", "catavgmax"])
def test_a_bare_state_dict_determines_layout_bias_and_pooled_width(
    tmp_path: Path, pooling: str, head_bias: bool, layout: str
) -> None:
    network = with_random_norms(ShuffleNetV2(64, 7, "1.0x", pooling=pooling, layout=layout, head_bias=head_bias))
    torch.save({f"module.{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "bare.pth")
    restored = read_weights(tmp_path / "bare.pth").network()
    assert restored.architecture == network.architecture
    assert torch.equal(restored(images()), network(images()))


def test_the_torchvision_layout_has_torchvisions_number_of_parameters() -> None:
    def count(size: str, **settings: object) -> int:
        network = ShuffleNetV2(224, 1000, size, **settings)  # type: ignore[arg-type]
        return sum(parameter.numel() for parameter in network.parameters())

    assert count("1.0x", layout="torchvision", head_bias=True) == 2_278_604
    assert count("1.0x") == 2_278_760
    assert count("0.5x", layout="torchvision") == count("0.5x")
    network = ShuffleNetV2(64, 7, "1.0x", layout="torchvision")
    assert network.features[0].branch_proj[2].out_channels == 58  # type: ignore[union-attr, index]
    assert network(images()).shape == (2, 7)


def test_rates_of_stochastic_depth_grow_with_depth_except_in_units_of_stride_2() -> None:
    network = ShuffleNetV2(64, 7, "0.5x", drop_path=0.3)
    expected = timm.layers.calculate_drop_path_rates(0.3, DEPTH)
    for number, unit in enumerate(units(network)):
        rates = [getattr(layer, "drop_prob", None) for layer in layers(unit, timm.layers.DropPath)]
        assert rates == ([] if number in STRIDE_2 else [pytest.approx(expected[number])])
    assert not layers(ShuffleNetV2(64, 7, "0.5x"), timm.layers.DropPath)
    assert network.state_dict().keys() == ShuffleNetV2(64, 7, "0.5x").state_dict().keys()


def test_stochastic_depth_drops_the_main_branch_of_samples_at_its_rate() -> None:
    unit = units(ShuffleNetV2(64, 7, "0.5x", drop_path=0.4))[-1]
    make_output_positive(unit)
    x = torch.randn(1000, 192, 3, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = unit.eval()(x)
        torch.manual_seed(1)
        unit.drop.train()  # type: ignore[union-attr]
        dropped = unit(x)
    assert torch.equal(whole[:, :96], x[:, 0::2])
    assert torch.equal(dropped[:, :96], x[:, 0::2])  # the left branch is never dropped
    dropped_samples = (dropped[:, 96:] == 0).flatten(1).all(dim=1)
    assert dropped_samples.double().mean().item() == pytest.approx(0.4, abs=0.05)
    torch.testing.assert_close(dropped[~dropped_samples, 96:], whole[~dropped_samples, 96:] / 0.6)


def test_drops_have_no_effect_in_evaluation() -> None:
    plain = with_random_norms(ShuffleNetV2(64, 7, "0.5x"))
    dropping = ShuffleNetV2(64, 7, "0.5x", drop_path=0.5, drop_block=0.5, dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    assert torch.equal(dropping.eval()(images()), plain(images()))
    torch.manual_seed(0)
    for layer in layers(dropping, timm.layers.DropPath) + layers(dropping, timm.layers.DropBlock2d):
        layer.train()
    assert not torch.allclose(dropping(images()), plain(images()))


def test_dropblock_is_in_the_last_two_stages() -> None:
    network = ShuffleNetV2(64, 7, "0.5x", drop_block=0.2)
    for number, unit in enumerate(units(network)):
        settings = [
            (layer.drop_prob, layer.block_size, layer.gamma_scale)
            for layer in unit.modules()
            if isinstance(layer, timm.layers.DropBlock2d)
        ]
        assert settings == ([] if number < 4 else [(0.2, 5, 0.25)] if number < 12 else [(0.2, 3, 1.0)])
        assert not layers(unit, timm.layers.DropPath)
    both = units(ShuffleNetV2(64, 7, "0.5x", drop_block=0.2, drop_path=0.2))[-1]
    assert len(layers(both, timm.layers.DropBlock2d) + layers(both, timm.layers.DropPath)) == 2


def test_dropblock_zeroes_the_same_pixels_in_all_channels_of_the_main_branch() -> None:
    unit = units(ShuffleNetV2(224, 7, "0.5x", drop_block=0.3))[-1]
    make_output_positive(unit)
    x = torch.randn(200, 192, 7, 7, generator=torch.Generator().manual_seed(0))
    unit.eval()
    unit.drop.train()  # type: ignore[union-attr]
    torch.manual_seed(1)
    with torch.no_grad():
        output = unit(x)[:, 96:]
    holes = (output == 0).all(dim=1)
    assert torch.equal(holes, (output == 0).any(dim=1))
    assert 0.3 < holes.double().mean().item() < 0.45  # about the rate: timm's blocks may extend over the border


def test_batch_norm_settings_apply_to_every_layer() -> None:
    network = ShuffleNetV2(64, 7, "0.5x", bn_eps=1e-3, bn_momentum=0.25, drop_path=0.2)
    settings = [(layer.eps, layer.momentum) for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert settings == [(1e-3, 0.25)] * (2 + 3 * DEPTH + 2 * len(STRIDE_2))
    default = ShuffleNetV2(64, 7, "0.5x")
    assert {(layer.eps, layer.momentum) for layer in default.modules() if isinstance(layer, nn.BatchNorm2d)} == {(1e-5, 0.1)}
    default.load_state_dict(network.state_dict())
    assert same_tensors(default.state_dict(), network.state_dict())


def test_unknown_poolings_and_layouts_are_refused() -> None:
    for arguments in ({"pooling": "sum"}, {"layout": "other"}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} "):
            ShuffleNetV2(64, 7, "0.5x", **arguments)  # type: ignore[arg-type]
