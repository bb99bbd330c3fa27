"""Networks with random weights, weight files, and the networks of other projects, for the tests of several parts."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from shufflenetv2 import ShuffleNetV2, files
from shufflenetv2.engine import recalibrate_batch_norm
from shufflenetv2.weights import Preprocessing, Weights, model_record
from tests.reference import SIZES, ReferenceNetwork

IMAGENET = Preprocessing(mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))
CLASSES = 7
SIZE = 32  # input size of write_model's networks, in pixels


def randomize_batch_norms(module: nn.Module, seed: int) -> None:
    """Draw weights, biases and running statistics of every batch norm."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            state = layer.state_dict()
            for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
                state[name].copy_(torch.rand(state[name].shape, generator=generator) + low)


class ConvModule(nn.Module):
    """mmcv's ConvModule: a convolution and a batch norm under mmcv's names."""

    def __init__(self, inp: int, oup: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, oup, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(oup)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x.relu() if self.relu else x


class MMUnit(nn.Module):
    """mmpretrain's unit: split in halves, then shuffle, written channel by channel."""

    def __init__(self, inp: int, oup: int, stride: int) -> None:
        super().__init__()
        half = oup // 2
        self.stride = stride
        if stride == 2:
            self.branch1 = nn.Sequential(ConvModule(inp, inp, 3, 2, inp, relu=False), ConvModule(inp, half))
        self.branch2 = nn.Sequential(
            ConvModule(inp if stride == 2 else half, half),
            ConvModule(half, half, 3, stride, half, relu=False),
            ConvModule(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        if self.stride == 2:
            left, right = self.branch1(x), self.branch2(x)
        else:
            left, right = x[:, :half], self.branch2(x[:, half:])
        return torch.stack([channel for pair in zip(left.unbind(1), right.unbind(1), strict=True) for channel in pair], 1)


class MMBackbone(nn.Module):
    def __init__(self, model_size: str) -> None:
        super().__init__()
        inp, *stages, last = SIZES[model_size]
        self.conv1 = ConvModule(3, inp, 3, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layers = nn.ModuleList()
        for oup, units in zip(stages, (4, 8, 4), strict=True):
            self.layers.append(nn.Sequential(*(MMUnit(oup if i else inp, oup, 1 if i else 2) for i in range(units))))
            inp = oup
        self.layers.append(ConvModule(inp, last))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for layer in self.layers:
            x = layer(x)
        return x


class MMHead(nn.Module):
    def __init__(self, inp: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inp, CLASSES)


class MMClassifier(nn.Module):
    """mmpretrain's ImageClassifier with a ShuffleNetV2 backbone."""

    def __init__(self, model_size: str) -> None:
        super().__init__()
        self.backbone, self.head = MMBackbone(model_size), MMHead(SIZES[model_size][-1])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head.fc(self.backbone(x).mean((2, 3)))
        return logits


def torchvision_network(model_size: str, classes: int = CLASSES) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(
        f"shufflenet_v2_x{model_size.replace('.', '_')[:-1]}", weights=None, num_classes=classes
    )
    return model


def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all weights and statistics, so that activations stay near 1, and switch to eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(len(name))
        elif tensor.dim() > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        else:
            tensor.uniform_(0.5, 1.5, generator=generator)
            if not name.endswith(("running_var", "weight")):
                tensor.sub_(1)
    return network.eval()


def random_weights(model_size: str, path: str = "weights.pkl", **architecture: Any) -> Weights:
    """Make the weights of a network of this project, without a file."""
    network = randomized(ShuffleNetV2(64, CLASSES, model_size, **architecture), seed=3)
    assert isinstance(network, ShuffleNetV2)
    return Weights(Path(path), network.state_dict(), model_size, CLASSES, architecture=dict(network.architecture))


def random_images(count: int, size: int = SIZE, seed: int = 0) -> Tensor:
    """Return uint8 images (count, 3, size, size), each around a different colour."""
    rng = torch.Generator().manual_seed(seed)
    colour = torch.randint(0, 200, (count, 3, 1, 1), generator=rng)
    return (colour + torch.randint(0, 56, (count, 3, size, size), generator=rng)).to(torch.uint8)


def example_image() -> Tensor:
    """Return one image (1, 3, 64, 64), float32, 0..255."""
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255


def write_original(path: Path, model_size: str) -> Path:
    """Write random weights of the original's network, in a file of the original's form."""
    torch.save({"state_dict": randomized(ReferenceNetwork(CLASSES, model_size)).state_dict()}, path)
    return path


def write_model(path: Path, model_size: str = "0.5x", n_class: int = 7, size: int = SIZE, **architecture: Any) -> Path:
    """Write a model file with random weights, recalibrated batch norms and named classes."""
    rng = torch.Generator().manual_seed(1)
    preprocessing = Preprocessing(size, size + 8, architecture.pop("mean", (0.0,) * 3), architecture.pop("std", (1.0,) * 3))
    network = ShuffleNetV2(
        size, n_class, model_size, mean=preprocessing.mean, std=preprocessing.std, **architecture
    )  # fmt: skip
    network.initialize_weights(rng)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=rng)
            nn.init.normal_(module.bias, 0.0, 0.1, generator=rng)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.3, generator=rng)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 1.0, generator=rng)
    recalibrate_batch_norm(network, [random_images(32, size, seed=5)])
    names = [f"Käfer {label}" for label in range(n_class)]
    files.write(path, model_record(network, class_names=names, preprocessing=preprocessing, iteration=3))
    return path
