"""ShuffleNetV2 as published, in its four sizes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import Branch, ShuffleV2Block

# size: output channels of the three stages, and of the last convolution (paper, table 5)
SIZES: dict[str, tuple[tuple[int, int, int], int]] = {
    "0.5x": ((48, 96, 192), 1024),
    "1.0x": ((116, 232, 464), 1024),
    "1.5x": ((176, 352, 704), 1024),
    "2.0x": ((244, 488, 976), 2048),
}
STAGE_UNITS = (4, 8, 4)
LAYOUTS = ("original", "torchvision")
POOLINGS = ("avg", "max", "avgmax", "catavgmax")
# DropBlock's (block size, share of the rate) in the last two stages, as timm's ResNet has it
DROP_BLOCKS = (None, (5, 0.25), (3, 1.0))
STEM_CHANNELS = 24
SMALLEST_INPUT = 32  # the network halves its input five times
DROPOUT = {"2.0x": 0.2}


def published_name(name: str) -> str:
    """Return the published name of a state-dict key or module path: other implementations call `conv_last` `last_conv`."""
    first, dot, rest = name.partition(".")
    return f"conv_last{dot}{rest}" if first == "last_conv" else name


class ShuffleNetV2(nn.Module):
    """The network: images in, logits out.

    Args:
        input_size: side of the square images it is meant for, in pixels. The weights do not depend
            on it, and any image of at least 32 x 32 pixels is taken.
        n_class: number of classes.
        model_size: '0.5x', '1.0x', '1.5x' or '2.0x'.
        dropout: probability, before the classifier; None is the published one, 0.2 for 2.0x and 0 else.
        mean, std: three numbers each, in BGR order and on the scale 0..255. Where they are not
            0 and 1 the network normalises its input first. They are part of the model but not of
            its state dict, whose names stay those of the published weights.
        pooling: 'avg', as published; 'max'; 'avgmax', the mean of the two; or 'catavgmax', one after the other.
        layout: 'original'; or 'torchvision' (mmpretrain's as well), where both branches of the very
            first unit make half of its channels. For 0.5x the two are the same.
        head_bias: whether the classifier has biases; the original's has none, torchvision's has.
        drop_path: stochastic depth: for how many of the samples the main branch of the last unit is zero,
            less the earlier the unit; those of stride 2 are spared. (timm.layers.DropPath)
        drop_block: rate of DropBlock in the last two stages, on what the main branches make. (timm.layers.DropBlock2d)
        bn_eps, bn_momentum: batch norm's, as torch defines them.

    Attributes:
        architecture: those of the arguments above, by name, that inference depends on.

    Shape:
        images (N, 3, H, W), BGR, 0..255, uint8 or floating point -> logits (N, n_class)

    Raises:
        ValueError: for an unknown size, too small an input, or no classes.
    """

    def __init__(
        self,
        input_size: int = 224,
        n_class: int = 1000,
        model_size: str = "1.5x",
        *,
        dropout: float | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        pooling: str = "avg",
        layout: str = "original",
        head_bias: bool = False,
        drop_path: float = 0.0,
        drop_block: float = 0.0,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if model_size not in SIZES:
            raise ValueError(f"model_size is one of {', '.join(SIZES)}, not {model_size!r}")
        if input_size < SMALLEST_INPUT:
            raise ValueError(f"input_size is at least {SMALLEST_INPUT} pixels, not {input_size}")
        if n_class < 1:
            raise ValueError(f"n_class is at least 1, not {n_class}")
        if pooling not in POOLINGS or layout not in LAYOUTS:
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, and layout one of {', '.join(LAYOUTS)}")
        self.input_size, self.n_class, self.model_size = input_size, n_class, model_size
        self.mean, self.std, self.pooling = tuple(mean), tuple(std), pooling
        self.architecture = {"pooling": pooling, "layout": layout, "head_bias": head_bias, "bn_eps": bn_eps}
        self.input_mean: Tensor
        self.input_std: Tensor
        self.normalizes = self.mean != (0.0, 0.0, 0.0) or self.std != (1.0, 1.0, 1.0)
        self.register_buffer("input_mean", torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("input_std", torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)

        stage_channels, last_channels = SIZES[model_size]
        self.first_conv = Branch(
            nn.Conv2d(3, STEM_CHANNELS, 3, 2, 1, bias=False),
            nn.BatchNorm2d(STEM_CHANNELS),
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        units: list[nn.Module] = []
        inp = STEM_CHANNELS
        for oup, repeats, block in zip(stage_channels, STAGE_UNITS, DROP_BLOCKS, strict=True):
            for number in range(repeats):
                path = drop_path * len(units) / (sum(STAGE_UNITS) - 1) if number else 0.0
                drop = _drop(path, drop_block if block else 0.0, block)
                if number:
                    units.append(ShuffleV2Block(oup // 2, oup, oup // 2, ksize=3, stride=1, drop=drop))
                else:
                    projected = inp if layout == "original" else oup // 2
                    units.append(ShuffleV2Block(inp, oup, oup // 2, ksize=3, stride=2, projected=projected, drop=drop))
            inp = oup
        self.features = nn.Sequential(*units)
        self.conv_last = Branch(
            nn.Conv2d(inp, last_channels, 1, bias=False),
            nn.BatchNorm2d(last_channels),
            nn.ReLU(inplace=True),
        )
        self.globalpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(DROPOUT.get(model_size, 0.0) if dropout is None else dropout)
        pooled = 2 * last_channels if pooling == "catavgmax" else last_channels
        self.classifier = nn.Sequential(nn.Linear(pooled, n_class, bias=head_bias))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = bn_eps, bn_momentum
        self.register_load_state_dict_pre_hook(_rename_keys)  # type: ignore[no-untyped-call]
        self.initialize_weights()

    def forward(self, images: Tensor) -> Tensor:
        x = self.first_conv(self.to_input(images))  # (N, 24, H/2, W/2)
        x = self.maxpool(x)  # (N, 24, H/4, W/4)
        x = self.features(x)  # (N, C, H/32, W/32)
        x = self.conv_last(x)
        x = self.pool(x)  # (N, 1024 or 2048)
        logits: Tensor = self.classifier(self.dropout(x))
        return logits

    def pool(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C), or (N, 2 C) with 'catavgmax'."""
        if self.pooling == "avg":
            pooled: Tensor = self.globalpool(x).flatten(1)
            return pooled
        largest = x.amax((2, 3))
        if self.pooling == "max":
            return largest
        mean = x.mean((2, 3))
        return (mean + largest) / 2 if self.pooling == "avgmax" else torch.cat((mean, largest), dim=1)

    def to_input(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) images as the first convolution takes them: floating point, normalised if this model is."""
        # The loader's bytes lie interleaved (N, H, W, 3) in memory; casting is the moment to plane them,
        # unless the weights want them as they are.
        weight: Tensor = self.first_conv[0].weight  # type: ignore[assignment]
        layout = torch.contiguous_format if weight.is_contiguous() else torch.channels_last
        dtype = images.dtype if images.is_floating_point() else weight.dtype
        images = images.to(dtype, memory_format=layout)
        if self.normalizes:
            images = (images - self.input_mean) / self.input_std
        return images

    def initialize_weights(self, generator: torch.Generator | None = None) -> None:
        """Draws new weights, as the original does: from `generator`, or from torch's global one."""
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


def _rename_keys(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Give the keys of a state dict that is being loaded their published names, in place."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        if (name := published_name(key.removeprefix(prefix))) != key.removeprefix(prefix):
            state_dict[prefix + name] = state_dict.pop(key)


def _drop(path: float, blocks: float, block: tuple[int, float] | None) -> nn.Module | None:
    """What drops a part of what a main branch makes, by stochastic depth, DropBlock or both; None where neither does."""
    if not (path or blocks):
        return None
    from timm.layers import DropBlock2d, DropPath  # here, since timm takes a second to load

    parts: list[nn.Module] = []
    if blocks and block:
        parts.append(DropBlock2d(blocks, block_size=block[0], gamma_scale=block[1]))
    if path:
        parts.append(DropPath(path))
    return nn.Sequential(*parts)
