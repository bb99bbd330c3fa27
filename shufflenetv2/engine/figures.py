"""The figures of a run, with those that need the network: Grad-CAM, and a map of embeddings."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..config import Config
from ..data import Dataset, Subset, Transform, evaluation_batches
from ..network import ShuffleNetV2
from ..report import (
    Prediction,
    draw_embedding,
    draw_heat_maps,
    find_sample,
    prediction_caption,
    read_predictions,
    write_figures,
)
from .preview import draw_batches

SHOWN = 12  # mistakes in the sheet of heat maps, and as many correct predictions
MIN_MAP_SIDE = 4
MAX_POINTS = 1_000  # of the map of embeddings
BATCH_SIZE = 50
COMPONENTS = 50  # to which embeddings are reduced before t-SNE, as its authors recommend
PERPLEXITY = 30.0

logger = logging.getLogger("shufflenetv2")


def draw_run_figures(
    folder: Path, config: Config, datasets: tuple[Dataset, Dataset | None], network: ShuffleNetV2, transform: Transform
) -> None:
    """Draw all figures of a training, and the first batch that the network saw; see `try_figures`."""
    train_set, val_set = datasets

    def draw_first_batch() -> None:
        list(draw_batches(folder / "figures", config, train_set, 1))

    try_figures(folder, val_set, network, transform, draw_first_batch)


def try_figures(
    folder: Path,
    val_set: Dataset | None,
    network: nn.Module | None,
    transform: Transform,
    further: Callable[[], object] = lambda: None,
) -> None:
    """Draw all figures of a run into the subfolder `figures` of its log folder; a failure is a warning.

    Args:
        folder: log folder, with predictions.csv of the network.
        val_set: the validation set, if there is one.
        network: other networks than ShuffleNetV2 have no figures of their own.
        transform: transforms a decoded image into the pixels that the network receives.
        further: draws figures that need more than these.
    """
    try:
        write_figures(folder, val_set)
        further()
        if val_set is not None and isinstance(network, ShuffleNetV2):
            predictions = read_predictions(folder)
            _draw_heat_maps(folder / "figures/grad_cam.png", network, val_set, transform, predictions)
            _draw_embedding(folder / "figures/embedding.png", network, val_set, transform, predictions)
    except Exception as error:  # of any type: the results of the run are already written
        logger.warning("not all figures are drawn: %s", str(error).partition("\n")[0] or type(error).__name__)


def grad_cam(network: ShuffleNetV2, images: Tensor, labels: Tensor) -> Tensor:
    """Return where the evidence for a class is in each image (Selvaraju et al., 2017).

    The feature maps are those of the last convolution, or of an earlier stage where the last ones have fewer than 4 x 4 values.

    Args:
        images: (N, C, H, W), on the device of the network, which is in eval mode.
        labels: int64 (N,), the classes.

    Returns:
        float32 (N, H, W), from 0 to 1; all 0 where nothing speaks for the class.
    """
    with torch.enable_grad():
        stages = network.forward_features(images)
        fine = [maps for maps in stages.values() if min(maps.shape[2:]) >= MIN_MAP_SIDE]
        maps = fine[-1] if fine else stages["stem"]
        logits = network.classifier(network.pool(stages["conv_last"]))
        (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), maps)
    heat = (gradient.mean((2, 3), keepdim=True) * maps.detach()).sum(1, keepdim=True).relu().float()
    heat = functional.interpolate(heat, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)


def reduce_to_two(embeddings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Place embeddings (N, D) in a plane (N, 2): by t-SNE if scikit-learn is installed, else by their principal components."""
    centred = embeddings - embeddings.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    components: NDArray[np.float64] = left[:, :COMPONENTS] * singular[:COMPONENTS]
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return components[:, :2]
    if len(components) <= 3 * PERPLEXITY:
        return components[:, :2]
    points: NDArray[np.float64] = TSNE(perplexity=PERPLEXITY, init="pca", random_state=0).fit_transform(components)
    return points


def _draw_heat_maps(
    path: Path, network: ShuffleNetV2, val_set: Dataset, transform: Transform, predictions: Sequence[Prediction]
) -> None:
    by_confidence = sorted(predictions, key=lambda row: -row.probability)
    wrong = [row for row in by_confidence if row.label != row.prediction][:SHOWN]
    right: dict[str, Prediction] = {}  # the most confident of each class
    for row in by_confidence:
        if row.label == row.prediction and len(right) < SHOWN:
            right.setdefault(row.label, row)
    rows = [(row, index) for row in (*wrong, *right.values()) if (index := find_sample(val_set, row)) is not None]
    if not rows:
        return
    labels = {name: label for label, name in enumerate(val_set.class_names)}
    guesses = [labels.get(row.prediction, 0) for row, _ in rows]
    images = _load(val_set, transform, [index for _, index in rows])
    device = next(network.parameters()).device
    heat = grad_cam(network, images.to(device), torch.tensor(guesses, device=device)).cpu().numpy()
    is_wrong = [row.label != row.prediction for row, _ in rows]
    draw_heat_maps(path, images.numpy(), heat, [prediction_caption(row) for row, _ in rows], is_wrong)


def _draw_embedding(
    path: Path, network: ShuffleNetV2, val_set: Dataset, transform: Transform, predictions: Sequence[Prediction]
) -> None:
    positions = np.unique(np.linspace(0, max(0, len(predictions) - 1), MAX_POINTS).round().astype(int))
    sampled = [predictions[position] for position in positions if position < len(predictions)]
    rows = [(row, index) for row in sampled if (index := find_sample(val_set, row)) is not None]
    if len(rows) < 3:
        return
    device = next(network.parameters()).device
    embeddings = []
    with torch.no_grad():
        for start in range(0, len(rows), BATCH_SIZE):
            images = _load(val_set, transform, [index for _, index in rows[start : start + BATCH_SIZE]])
            maps = network.forward_features(images.to(device))["conv_last"]
            embeddings.append(network.pool(maps).double().cpu())
    points = reduce_to_two(torch.cat(embeddings).numpy())
    labels = val_set.targets[[index for _, index in rows]]
    is_wrong = np.array([row.label != row.prediction for row, _ in rows])
    draw_embedding(path, points, labels, is_wrong, val_set.class_names)


def _load(dataset: Dataset, transform: Transform, indices: list[int]) -> Tensor:
    """Load images of a dataset: uint8 (N, C, H, W)."""
    batches = evaluation_batches(Subset(dataset, np.array(indices, np.int64)), transform, len(indices))
    with closing(batches):
        return next(batches)[0]
