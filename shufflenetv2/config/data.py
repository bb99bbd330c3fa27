"""Options of images and their augmentation."""

from typing import Annotated, Literal

from .fields import group, option
from .types import (
    Colour,
    Count,
    File,
    Folder,
    FractionAbove0,
    FractionBelow1,
    Fractions,
    IntegerChoice,
    Jitter,
    Natural,
    NonNegative,
    Pixels,
    PositiveColour,
    Probability,
    Range,
    Text,
)

Interpolation = Literal["bilinear", "bicubic", "area", "nearest", "lanczos"]
TrainInterpolation = Literal["bilinear", "bicubic", "area", "nearest", "lanczos", "random"]


@group("data")
class DataConfig:
    """Images to train and to evaluate on, and the size in which the network sees them."""

    dataset: Text = option(
        "folder",
        "folder (of class folders), digits (built in), or the name of a torchvision data set: mnist, cifar10, ...",
        recipe=True,
    )
    train_dir: Folder = option("", "training images: a folder with one folder of images per class")
    val_dir: Folder = option("", "validation images, in the same layout; without them nothing is validated")
    data_dir: Folder = option(
        "",
        "short for `train_dir` DIR/train `val_dir` DIR/val (or validation, or valid); "
        "for a named data set the folder that holds it",
    )
    dataset_download: bool = option(False, "download the named data set into `data_dir`")
    train_split: Text = option("train", "split of the named data set to train on", recipe=True)
    val_split: Text = option("val", "split of the named data set to validate on")
    val_fraction: FractionBelow1 = option(
        0.0, "hold out this fraction of the training images of every class, and validate on it", recipe=True
    )
    class_map: File = option("", "file with the class names, one per line, in the order of their labels")
    num_classes: Count | None = option(None, "number of classes that is required; default: the number found")
    aug_repeats: Count = option(1, "number of differently augmented copies of each sample in a batch", recipe=True)
    val_batch_size: Count = option(None, "images in a validation batch, per process; default: `batch_size`, at most 256")
    input_size: Pixels = option(224, "side of the square image that the network sees", aliases=("--img-size",), recipe=True)
    resize_size: Pixels = option(
        None,
        "length of the short side to which validation images are resized before the central crop; "
        "default: `input_size` / `crop_pct`",
        recipe=True,
    )
    train_crop_size: Pixels | None = option(None, "side of the image in training; default: `input_size`", recipe=True)
    crop_pct: FractionAbove0 = option(0.875, "ratio of `input_size` to `resize_size`", recipe=True)
    interpolation: Interpolation = option("bilinear", "interpolation used to resize validation images", recipe=True)
    train_interpolation: TrainInterpolation = option(
        "bilinear", "interpolation used to resize training images; random: bilinear or bicubic, drawn per image", recipe=True
    )
    mean: Colour = option(
        None,
        "mean subtracted from the pixels (BGR, 0..255); default: 0, or that of the initial weights",
        recipe=True,
    )
    std: PositiveColour = option(
        None,
        "standard deviation by which the pixels are then divided (BGR, 0..255); default: 1, or that of the initial weights",
        recipe=True,
    )


@group("augmentation")
class AugmentationConfig:
    """Random changes of the training images and their targets."""

    no_aug: bool = option(False, "do not augment: training images are resized and cropped like validation images", recipe=True)
    scale: Fractions = option((0.08, 1.0), "range of the fraction of the image area that a random crop covers", recipe=True)
    ratio: Range = option((3 / 4, 4 / 3), "range of the width / height ratio of a random crop", recipe=True)
    hflip: Probability = option(0.5, "probability of a horizontal flip", recipe=True)
    vflip: Probability = option(0.0, "probability of a vertical flip", recipe=True)
    color_jitter: Jitter = option(
        None, "strength of the brightness, contrast and saturation jitter; default: 0.4, or 0 with `aa`", recipe=True
    )
    grayscale_prob: Probability = option(0.0, "probability that an image is converted to grayscale", recipe=True)
    gaussian_blur_prob: Probability = option(0.0, "probability that an image is blurred", recipe=True)
    aa: Text = option("", "augmentation policy: original, v0, rand-m9-mstd0.5, augmix-m3, ta_wide, ...", recipe=True)
    aug_splits: Annotated[Literal[0, 2, 3, 4, 5, 6, 7, 8, 9], IntegerChoice] = option(
        0,
        "number of views of each image in a batch: the first is only cropped and flipped, the others are augmented",
        recipe=True,
    )
    reprob: Probability = option(0.0, "probability that a rectangle of the image is erased", recipe=True)
    remode: Literal["const", "rand", "pixel"] = option(
        "const", "filling of an erased rectangle: the mean colour, a random colour, or a random colour per pixel", recipe=True
    )
    recount: Count = option(1, "largest number of rectangles erased in an image", recipe=True)
    resplit: bool = option(False, "do not erase in the first view of `aug_splits`", recipe=True)
    mixup: NonNegative = option(
        0.0, "mix pairs of images and targets; alpha of the Beta distribution of the mixing ratio", recipe=True
    )
    cutmix: NonNegative = option(
        0.0, "paste a rectangle of another image and mix the targets; alpha of the Beta distribution of its area", recipe=True
    )
    cutmix_minmax: Fractions | None = option(
        None,
        "smallest and largest side of the pasted rectangle as a fraction of the image side, instead of `cutmix`",
        recipe=True,
    )
    mixup_prob: Probability = option(1.0, "probability that a batch (or pair, or sample) is mixed at all", recipe=True)
    mixup_switch_prob: Probability = option(0.5, "probability of cutmix instead of mixup, where both are given", recipe=True)
    mixup_mode: Literal["batch", "pair", "elem"] = option(
        "batch", "draw the mixing ratio once per batch, per pair of samples, or per sample", recipe=True
    )
    mixup_off_iter: Natural = option(0, "iteration from which images are no longer mixed; 0: mix to the end", recipe=True)
