"""ShuffleNetV2 as published, in its four sizes (section 3 of the paper)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import ShuffleV2Block, conv_norm

# size: output channels of stages 2, 3 and 4, and of the last convolution (table 5 of the paper)
SIZES: dict[str, tuple[tuple[int, int, int], int]] = {
    "0.5x": ((48, 96, 192), 1024),
    "1.0x": ((116, 232, 464), 1024),
    "1.5x": ((176, 352, 704), 1024),
    "2.0x": ((244, 488, 976), 2048),
}
STAGE_UNITS = (4, 8, 4)
STAGE_ENDS = {4: "stage2", 12: "stage3", 16: "stage4"}  # number of a stage's last unit: name of the stage in the paper
LAYOUTS = ("original", "torchvision")
POOLINGS = ("avg", "max", "avgmax", "catavgmax")
# (block size, factor of the rate) of DropBlock in stages 2 (no DropBlock), 3 and 4, as in timm's ResNet
DROP_BLOCKS = (None, (5, 0.25), (3, 1.0))
STEM_CHANNELS = 24
STRIDE = 32  # the network halves its input five times
SMALLEST_INPUT = 16  # pixels of the shorter side: stages 3 and 4 then see a single pixel
INPUT_CHANNELS = (1, 3)  # grey, or blue, green and red


def published_name(name: str) -> str:
    """Return the published name of a state-dict key or module path: other implementations rename `conv_last` to `last_conv`."""
    first, dot, rest = name.partition(".")
    return f"conv_last{dot}{rest}" if first == "last_conv" else name


class ShuffleNetV2(nn.Module):
    """The network ShuffleNetV2, which classifies images.

    Args:
        input_size: side of the images in pixels, or (height, width). Recorded only: the network accepts any image of at least
            16 x 16 pixels.
        n_class: number of classes.
        model_size: '0.5x', '1.0x', '1.5x' or '2.0x'.
        dropout: probability of dropout before the classifier; None is the published value, 0.2 for 2.0x and 0 otherwise.
        in_chans: number of input channels: 3 (BGR) or 1 (grey).
        mean, std: mean and standard deviation by which the network normalizes its input, in BGR order, on the scale 0..255; one
            number per channel. Default: 0 and 1.
            They are not part of the state dict, so that its names stay those of the published weights.
        pooling: 'avg' as published, 'max', 'avgmax' (the mean of both) or 'catavgmax' (both, concatenated).
        layout: 'original', or 'torchvision' (also mmpretrain's), in which each branch of the first unit has half of the unit's
            output channels. For 0.5x both layouts are the same.
        head_bias: whether the classifier has biases, as torchvision's has and the original's has not.
        drop_path: rate of stochastic depth in the last unit, decreasing linearly to the first; units with stride 2 have none.
        drop_block: rate of DropBlock on the main branches of stages 3 and 4.
        bn_eps, bn_momentum: epsilon and momentum of batch norm, in torch's definition.

    Shape:
        (N, in_chans, H, W), BGR or grey, 0..255, uint8 or floating point -> logits (N, n_class)
    """

    def __init__(
        self,
        input_size: int | tuple[int, int] = 224,
        n_class: int = 1000,
        model_size: str = "1.5x",
        *,
        dropout: float | None = None,
        in_chans: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pooling: str = "avg",
        layout: str = "original",
        head_bias: bool = False,
        drop_path: float = 0.0,
        drop_block: float = 0.0,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        choices = {
            "model_size": (model_size, SIZES), "pooling": (pooling, POOLINGS), "layout": (layout, LAYOUTS),
            "in_chans": (in_chans, INPUT_CHANNELS),
        }  # fmt: skip
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}")
        if min((input_size,) if isinstance(input_size, int) else input_size) < SMALLEST_INPUT:
            raise ValueError(f"input_size must be at least {SMALLEST_INPUT} pixels, not {input_size}")
        no_mean, no_std = (0.0,) * in_chans, (1.0,) * in_chans
        mean, std = no_mean if mean is None else tuple(mean), no_std if std is None else tuple(std)
        if not len(mean) == len(std) == in_chans:
            raise ValueError(f"mean and std must have in_chans = {in_chans} numbers, not {len(mean)} and {len(std)}")
        if n_class < 1:
            raise ValueError(f"n_class must be at least 1, not {n_class}")
        self.input_size, self.n_class, self.model_size = input_size, n_class, model_size
        self.in_chans, self.mean, self.std, self.pooling = in_chans, mean, std, pooling
        # The arguments that a loaded model needs for inference; they are written to model files.
        self.architecture = {
            "in_chans": in_chans, "pooling": pooling, "layout": layout, "head_bias": head_bias, "bn_eps": bn_eps
        }  # fmt: skip
        self.input_mean: Tensor
        self.input_std: Tensor
        self.normalizes = (mean, std) != (no_mean, no_std)
        self.register_buffer("input_mean", torch.tensor(mean).view(1, in_chans, 1, 1), persistent=False)
        self.register_buffer("input_std", torch.tensor(std).view(1, in_chans, 1, 1), persistent=False)

        stage_channels, last_channels = SIZES[model_size]
        self.first_conv = nn.Sequential(*conv_norm(in_chans, STEM_CHANNELS, 3, stride=2))
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        units: list[nn.Module] = []
        inp = STEM_CHANNELS
        for oup, repeats, block in zip(stage_channels, STAGE_UNITS, DROP_BLOCKS, strict=True):
            block_rate = drop_block if block else 0.0
            projected = inp if layout == "original" else oup // 2
            drop = _make_drop(0.0, block_rate, block)
            units.append(ShuffleV2Block(inp, oup, oup // 2, ksize=3, stride=2, projected=projected, drop=drop))
            for _ in range(repeats - 1):
                drop = _make_drop(drop_path * len(units) / (sum(STAGE_UNITS) - 1), block_rate, block)
                units.append(ShuffleV2Block(oup // 2, oup, oup // 2, ksize=3, stride=1, drop=drop))
            inp = oup
        self.features = nn.Sequential(*units)
        self.conv_last = nn.Sequential(*conv_norm(inp, last_channels))
        self.globalpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout if dropout is not None else 0.2 if model_size == "2.0x" else 0.0)
        pooled = 2 * last_channels if pooling == "catavgmax" else last_channels
        self.classifier = nn.Sequential(nn.Linear(pooled, n_class, bias=head_bias))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = bn_eps, bn_momentum
        self.register_load_state_dict_pre_hook(_rename_keys)  # type: ignore[no-untyped-call]
        self.initialize_weights()

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.first_conv(self.to_input(images)))  # (N, 24, H/4, W/4)
        x = self.features(x)  # (N, C, H/32, W/32)
        x = self.conv_last(x)  # (N, 1024 or 2048, H/32, W/32)
        x = self.dropout(self.pool(x))  # (N, 1024 or 2048)
        logits: Tensor = self.classifier(x)  # (N, n_class)
        return logits

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        """Return the feature maps of every stage, for detection, segmentation or retrieval.

        Shape:
            (N, in_chans, H, W) -> "stem" (N, 24, H/4, W/4), "stage2" (N, C2, H/8, W/8), "stage3" (N, C3, H/16, W/16), "stage4"
            (N, C4, H/32, W/32), "conv_last" (N, C5, H/32, W/32), rounded up; C2 to C5 as in SIZES
        """
        x = self.maxpool(self.first_conv(self.to_input(images)))
        maps = {"stem": x}
        for number, unit in enumerate(self.features, 1):
            x = unit(x)
            if number in STAGE_ENDS:
                maps[STAGE_ENDS[number]] = x
        maps["conv_last"] = self.conv_last(x)
        return maps

    def pool(self, x: Tensor) -> Tensor:
        """Pool the maps of the last convolution: (N, C, H, W) -> (N, C), or (N, 2 C) with 'catavgmax'."""
        if self.pooling == "avg":
            return torch.flatten(self.globalpool(x), 1)
        largest = x.amax((2, 3))
        if self.pooling == "max":
            return largest
        mean = x.mean((2, 3))
        return (mean + largest) / 2 if self.pooling == "avgmax" else torch.cat((mean, largest), dim=1)

    def to_input(self, images: Tensor) -> Tensor:
        """Convert images (N, 3, H, W) to floating point and, if the model has a mean and std, normalize them."""
        images = convert_like(images, self.first_conv[0].weight)  # type: ignore[arg-type]
        return (images - self.input_mean) / self.input_std if self.normalizes else images

    def initialize_weights(self, generator: torch.Generator | None = None, distribution: str = "original") -> None:
        """Draw new weights, with torch's global generator by default.

        Args:
            distribution: 'original', or 'torch': PyTorch's default for each layer, as in torchvision's network, uniform within
                1 / sqrt(fan-in) of 0. The scale of a weight before a batch norm does not change the output, but the steps
                relative to the weight are larger the smaller it is.
        """
        if distribution == "torch":
            self._initialize_as_torch(generator)
            return
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                std = 0.01 if name.startswith("first_conv") else 1.0 / module.weight.shape[1]
                nn.init.normal_(module.weight, 0.0, std, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.constant_(module.bias, 0.0001)
                module.reset_running_stats()
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _initialize_as_torch(self, generator: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = 1 / math.sqrt(module.weight[0].numel())
                for parameter in module.parameters():
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


def convert_like(images: Tensor, weight: Tensor) -> Tensor:
    """Convert images to the memory layout of `weight`, the first convolution's, and uint8 images to its dtype as well."""
    # The loader's images are channels-last in memory; without a conversion, the output of every layer would be, too.
    layout = torch.contiguous_format if weight.is_contiguous() else torch.channels_last
    return images.to(images.dtype if images.is_floating_point() else weight.dtype, memory_format=layout)


torch.fx.wrap("convert_like")  # torch.fx records the call as one node, since it cannot trace conditions on tensors


def _rename_keys(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Rename the keys of a state dict to the published names before it is loaded, in place."""
    for key in [key for key in state_dict if key.startswith(f"{prefix}last_conv.")]:
        state_dict[prefix + published_name(key.removeprefix(prefix))] = state_dict.pop(key)


def _make_drop(path_rate: float, block_rate: float, block: tuple[int, float] | None) -> nn.Module | None:
    """Return DropBlock and stochastic depth for a main branch, or None if both rates are 0."""
    if not (path_rate or block_rate):
        return None
    from timm.layers import DropBlock2d, DropPath  # imported here: timm takes a second to load

    blocks = [DropBlock2d(block_rate, block_size=block[0], gamma_scale=block[1])] if block_rate and block else []
    return nn.Sequential(*blocks, *([DropPath(path_rate)] if path_rate else []))
