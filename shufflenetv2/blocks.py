"""The unit ShuffleNetV2 is made of (Ma et al. 2018, https://arxiv.org/abs/1807.11164, figure 3 c and d)."""

from torch import Tensor, cat, nn


class ShuffleV2Block(nn.Module):
    """One unit; its stride decides which of the paper's two forms it takes.

    Stride 1: the even channels pass through, the odd ones go through the main branch. Taking
    every second channel of what the previous unit concatenated *is* the channel shuffle, followed
    by the split. Stride 2: every channel goes through both branches, and the image halves.

    Args:
        inp: channels that enter the main branch. With stride 1 that is half of the unit's input.
        oup: channels that leave the unit.
        mid_channels: channels between the convolutions of the main branch.
        ksize: side of the depthwise kernel, odd.
        stride: 1 or 2.

    Shape:
        stride 1: (N, 2 * inp, H, W) -> (N, oup, H, W)
        stride 2: (N, inp, H, W) -> (N, oup, ceil(H / 2), ceil(W / 2))

    Raises:
        ValueError: for another stride, or where no channels are left for the main branch.
    """

    def __init__(self, inp: int, oup: int, mid_channels: int, *, ksize: int, stride: int) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride is 1 or 2, not {stride}")
        if oup <= inp:
            raise ValueError(f"oup ({oup}) must exceed inp ({inp}): the main branch makes oup - inp channels")
        self.stride = stride
        pad = ksize // 2
        # What passes by the main branch is inp channels in both forms: untouched or projected.
        self.branch_main = nn.Sequential(
            nn.Conv2d(inp, mid_channels, 1, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, mid_channels, ksize, stride, pad, groups=mid_channels, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.Conv2d(mid_channels, oup - inp, 1, bias=False),
            nn.BatchNorm2d(oup - inp),
            nn.ReLU(inplace=True),
        )
        self.branch_proj: nn.Sequential | None = None
        if stride == 2:
            self.branch_proj = nn.Sequential(
                nn.Conv2d(inp, inp, ksize, stride, pad, groups=inp, bias=False),
                nn.BatchNorm2d(inp),
                nn.Conv2d(inp, inp, 1, bias=False),
                nn.BatchNorm2d(inp),
                nn.ReLU(inplace=True),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.branch_proj is None:
            return cat((x[:, 0::2], self.branch_main(x[:, 1::2])), dim=1)
        return cat((self.branch_proj(x), self.branch_main(x)), dim=1)
