"""The unit ShuffleNetV2 is made of (Ma et al. 2018, https://arxiv.org/abs/1807.11164, figure 3 c and d)."""

from typing import Any

import torch
from torch import Tensor, cat, nn
from torch.jit import is_scripting, is_tracing  # type: ignore[attr-defined]

from .kernels import training as branch


class Branch(nn.Sequential):
    """Convolutions, each followed by batch norm and, where said, by ReLU; what they make comes after what passes by them.

    Shape:
        x (N, C, H, W), passing (N, P, H', W') or None -> (N, P + D, H', W')
    """

    def forward(self, x: Tensor, passing: Tensor | None = None) -> Tensor:
        if not is_scripting():  # noqa: SIM102 -- TorchScript leaves out a block under this alone
            if branch.is_fast(self, x):
                return branch.forward(self, x, passing)
        for module in self:
            x = module(x)
        return x if passing is None else join(passing, x)


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
        projected: channels that the projection of stride 2 makes; inp, unless given.
        drop: applied to what the main branch makes (stochastic depth, DropBlock), if anything.

    Shape:
        stride 1: (N, 2 * inp, H, W) -> (N, oup, H, W)
        stride 2: (N, inp, H, W) -> (N, oup, ceil(H / 2), ceil(W / 2))

    Raises:
        ValueError: for another stride, or where no channels are left for the main branch.
    """

    def __init__(
        self, inp: int, oup: int, mid_channels: int, *, ksize: int, stride: int, projected: int | None = None,
        drop: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride is 1 or 2, not {stride}")
        # What passes by the main branch is inp channels in both published forms: untouched or projected.
        passing = inp if projected is None else projected
        if oup <= passing:
            raise ValueError(f"oup ({oup}) must exceed {passing}, which pass by the main branch: it makes the rest")
        self.stride = stride
        pad = ksize // 2
        self.branch_main = Branch(
            nn.Conv2d(inp, mid_channels, 1, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, mid_channels, ksize, stride, pad, groups=mid_channels, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.Conv2d(mid_channels, oup - passing, 1, bias=False),
            nn.BatchNorm2d(oup - passing),
            nn.ReLU(inplace=True),
        )
        self.drop = drop
        self.branch_proj: Branch | None = None
        if stride == 2:
            self.branch_proj = Branch(
                nn.Conv2d(inp, inp, ksize, stride, pad, groups=inp, bias=False),
                nn.BatchNorm2d(inp),
                nn.Conv2d(inp, passing, 1, bias=False),
                nn.BatchNorm2d(passing),
                nn.ReLU(inplace=True),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.branch_proj is None:
            passing, entering = split(x)
        else:
            passing, entering = self.branch_proj(x), x
        if self.drop is None:
            joined: Tensor = self.branch_main(entering, passing)
            return joined
        return join(passing, self.drop(self.branch_main(entering)))


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The even channels and the odd ones."""
    if is_scripting() or _is_plain(x):
        return x[:, 0::2], x[:, 1::2]
    passing, entering = _Split.apply(x)
    return passing, entering


def join(first: Tensor, second: Tensor) -> Tensor:
    """The channels of one after those of the other."""
    if is_scripting() or _is_plain(second):
        return cat((first, second), dim=1)
    joined: Tensor = _Join.apply(first, second)
    return joined


def _is_plain(x: Tensor) -> bool:
    # Without gradients there is nothing to gain, and whoever compiles or exports wants operations that all know.
    if is_tracing() or torch.compiler.is_compiling():  # type: ignore[no-untyped-call]
        return True
    return not (torch.is_grad_enabled() and x.requires_grad)


def _layout(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


class _Split(torch.autograd.Function):
    """Slicing whose backward pass writes each gradient once, where torch's fills two tensors with zeros and adds them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.layout = _layout(x)
        n, channels, height, width = x.shape
        entering = torch.empty((n, channels // 2, height, width), dtype=x.dtype, device=x.device, memory_format=ctx.layout)
        branch.gather(x[:, 1::2], entering)
        return x[:, 0::2], entering

    @staticmethod
    def backward(ctx: Any, passing: Tensor, entering: Tensor) -> Tensor:
        n, half, height, width = entering.shape
        gradient = torch.empty(
            (n, 2 * half, height, width), dtype=entering.dtype, device=entering.device, memory_format=ctx.layout
        )
        branch.interleave(passing, entering, gradient)
        return gradient


class _Join(torch.autograd.Function):
    """Concatenation whose gradients are in one piece where the inputs were; torch is slow on parts of a larger tensor."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.channels, ctx.layout = first.shape[1], _layout(second)
        ctx.in_one_piece = first.is_contiguous(memory_format=ctx.layout)
        return cat((first, second), dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        first, second = gradient[:, : ctx.channels], gradient[:, ctx.channels :]
        if ctx.in_one_piece:
            first = first.contiguous(memory_format=ctx.layout)
        return first, second.contiguous(memory_format=ctx.layout)
