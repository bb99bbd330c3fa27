"""Figures that need the network: where it looks (Grad-CAM), and a map of what it makes of the images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .grids import write_grid
from .style import ACCENT, BAD, new_figure, shorten

HEAT_SHARE = 0.5  # of the colours of the heat map in the mixture with the image
MAX_LEGEND = 20  # largest number of classes with a colour each
MAX_SIDE = 160  # pixels of an image


def draw_heat_maps(
    path: Path, images: NDArray[np.uint8], heat: NDArray[np.float32], captions: Sequence[str], is_wrong: Sequence[bool]
) -> None:
    """Draw each image beside the same image under its heat map.

    Args:
        path: PNG file to write.
        images: (N, C, H, W), BGR or grey, as the network receives them.
        heat: (N, H, W), from 0 to 1.
        captions: N texts.
        is_wrong: N booleans; the captions of these images are red.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib import colormaps

    step = -(-max(images.shape[2:]) // MAX_SIDE)
    images, heat = images[:, :, ::step, ::step], heat[:, ::step, ::step]
    bgr = images.repeat(3 // images.shape[1], 1).astype(np.float32)
    colours = (colormaps["turbo"](heat)[..., 2::-1] * 255).transpose(0, 3, 1, 2)
    mixed = (1 - HEAT_SHARE) * bgr + HEAT_SHARE * colours
    pairs = np.concatenate((bgr, mixed), 3).round().astype(np.uint8)
    title = "Grad-CAM: red regions speak for the prediction"
    write_grid(path, pairs, captions, columns=4, title=title, is_wrong=is_wrong)


def draw_embedding(
    path: Path, points: NDArray[np.float64], labels: NDArray[np.int64], is_wrong: NDArray[np.bool_], names: Sequence[str]
) -> None:
    """Draw a map of images: one point each, with the colour of its class, and a ring if its prediction is wrong.

    Args:
        path: PNG file to write.
        points: (N, 2).
        labels: (N,) true classes.
        is_wrong: (N,).
        names: of the classes. With more than 20 classes the colours show only right and wrong.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib import colormaps

    with new_figure(path, 9.5 if len(names) <= MAX_LEGEND else 8, 7) as figure:
        axes = figure.subplots()
        axes.grid(False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_title(f"Embeddings of {len(points):,} validation images")
        x, y = points.T
        if len(names) <= MAX_LEGEND:
            palette = colormaps["tab10" if len(names) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
            for label, name in enumerate(names):
                mine = labels == label
                axes.scatter(x[mine], y[mine], s=16, color=palette[label], alpha=0.8, linewidths=0, label=shorten(name))
        else:
            axes.scatter(x[~is_wrong], y[~is_wrong], s=12, color=ACCENT, alpha=0.6, linewidths=0, label="right")
        axes.scatter(
            x[is_wrong], y[is_wrong], s=46, label="wrong prediction", facecolors="none", edgecolors=BAD, linewidths=1.1
        )
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
