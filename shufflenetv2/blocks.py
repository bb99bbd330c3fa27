"""The unit that ShuffleNetV2 is built from (Ma et al. 2018, https://arxiv.org/abs/1807.11164, figure 3 c and d)."""

import torch
from torch import Tensor, nn


def conv_norm(inp: int, oup: int, ksize: int = 1, stride: int = 1, *, groups: int = 1, relu: bool = True) -> list[nn.Module]:
    """Make a convolution without bias and its batch norm, followed by ReLU if `relu`."""
    convolution = nn.Conv2d(inp, oup, ksize, stride, ksize // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(oup), *([nn.ReLU(inplace=True)] if relu else [])]


class ShuffleV2Block(nn.Module):
    """Transform half of the channels and keep the other half (stride 1), or transform all of them twice (stride 2).

    Stride 1: the left branch passes the even channels on unchanged; the right (main) branch transforms the odd ones. Taking
    every second channel of the previous unit's concatenation *is* the channel shuffle, followed by the channel split.
    Stride 2: all channels go through both branches, and height and width are halved.

    Args:
        inp: input channels of the main branch; with stride 1, half of the unit's input channels.
        oup: output channels of the unit.
        mid_channels: channels between the convolutions of the main branch.
        ksize: kernel size of the depthwise convolutions, odd.
        stride: 1 or 2.
        projected: output channels of the left branch with stride 2; default `inp`.
        drop: applied to the output of the main branch (stochastic depth, DropBlock).

    Shape:
        stride 1: (N, 2 * inp, H, W) -> (N, oup, H, W)
        stride 2: (N, inp, H, W) -> (N, oup, ceil(H / 2), ceil(W / 2))
    """

    def __init__(
        self,
        inp: int,
        oup: int,
        mid_channels: int,
        *,
        ksize: int,
        stride: int,
        projected: int | None = None,
        drop: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, not {stride}")
        left = inp if projected is None else projected
        right = oup - left
        if right <= 0:
            raise ValueError(f"oup ({oup}) must exceed the {left} channels of the left branch")
        self.stride = stride
        self.branch_main = nn.Sequential(
            *conv_norm(inp, mid_channels),
            *conv_norm(mid_channels, mid_channels, ksize, stride, groups=mid_channels, relu=False),
            *conv_norm(mid_channels, right),
        )
        self.drop = drop
        self.branch_proj: nn.Sequential | None = None
        if stride == 2:
            self.branch_proj = nn.Sequential(
                *conv_norm(inp, inp, ksize, stride, groups=inp, relu=False),
                *conv_norm(inp, left),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.branch_proj is None:
            left, right = x[:, 0::2], x[:, 1::2]  # channel shuffle and split: each (N, inp, H, W)
        else:
            left, right = self.branch_proj(x), x
        right = self.branch_main(right)  # (N, oup - left channels, H', W')
        if self.drop is not None:
            right = self.drop(right)
        return torch.cat((left, right), dim=1)  # (N, oup, H', W')
