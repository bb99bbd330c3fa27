"""The published network and recipe, written literally from the original's code, as a reference for the package.

Independent of the package: the channel shuffle is a reshape and a transposition, the loss and the learning rate are
formulas.
"""

import torch
from torch import Tensor, nn

SIZES = {
    "0.5x": [24, 48, 96, 192, 1024],
    "1.0x": [24, 116, 232, 464, 1024],
    "1.5x": [24, 176, 352, 704, 1024],
    "2.0x": [24, 244, 488, 976, 2048],
}


def shuffle_and_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the even channels and the odd ones: (N, C, H, W) -> two times (N, C/2, H, W)."""
    n, c, h, w = x.shape
    x = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
    return x[0], x[1]


class ReferenceUnit(nn.Module):
    def __init__(self, inp: int, oup: int, stride: int) -> None:
        super().__init__()
        mid, right = oup // 2, oup - inp
        self.stride = stride
        self.branch_main = nn.Sequential(
            nn.Conv2d(inp, mid, 1, 1, 0, bias=False), nn.BatchNorm2d(mid), nn.ReLU(),
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), nn.BatchNorm2d(mid),
            nn.Conv2d(mid, right, 1, 1, 0, bias=False), nn.BatchNorm2d(right), nn.ReLU(),
        )  # fmt: skip
        if stride == 2:
            self.branch_proj = nn.Sequential(
                nn.Conv2d(inp, inp, 3, 2, 1, groups=inp, bias=False), nn.BatchNorm2d(inp),
                nn.Conv2d(inp, inp, 1, 1, 0, bias=False), nn.BatchNorm2d(inp), nn.ReLU(),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            left, right = shuffle_and_split(x)
            return torch.cat((left, self.branch_main(right)), 1)
        return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)


class ReferenceNetwork(nn.Module):
    def __init__(self, n_class: int, model_size: str, input_size: int = 224) -> None:
        super().__init__()
        stem, *stages, last = SIZES[model_size]
        self.first_conv = nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        units: list[nn.Module] = []
        inp = stem
        for oup, repeats in zip(stages, (4, 8, 4), strict=True):
            for i in range(repeats):
                units.append(ReferenceUnit(inp, oup, 2) if i == 0 else ReferenceUnit(oup // 2, oup, 1))
            inp = oup
        self.features = nn.Sequential(*units)
        self.conv_last = nn.Sequential(nn.Conv2d(inp, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU())
        self.globalpool = nn.AvgPool2d(-(-input_size // 32))
        self.dropout = nn.Dropout(0.2) if model_size == "2.0x" else nn.Identity()
        self.classifier = nn.Sequential(nn.Linear(last, n_class, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_last(self.features(self.maxpool(self.first_conv(x))))
        x = self.dropout(self.globalpool(x)).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, epsilon: float) -> Tensor:
    classes = logits.shape[1]
    one_hot = torch.zeros_like(logits).scatter_(1, targets[:, None], 1.0)
    smoothed = (1 - epsilon) * one_hot + epsilon / classes
    return (-smoothed * torch.log_softmax(logits, 1)).mean(0).sum()


def reference_training(
    network: nn.Module, batches: list[tuple[Tensor, Tensor]], *, base: float, total: int, decay: float = 4e-5
) -> list[float]:
    """Train with the original's recipe on batches of float images, with SGD of momentum 0.9; return the losses."""
    velocity: dict[str, Tensor] = {}
    losses = []
    network.train()
    for k, (images, targets) in enumerate(batches, 1):
        rate = base * (1 - k / total)
        loss = smoothed_cross_entropy(network(images), targets, 0.1)
        network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None
                gradient = parameter.grad + (decay * parameter if parameter.dim() > 1 else 0)
                velocity[name] = 0.9 * velocity[name] + gradient if name in velocity else gradient.clone()
                parameter.sub_(rate * velocity[name])
        losses.append(loss.item())
    return losses
