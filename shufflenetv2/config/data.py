"""Options of images and their augmentation."""

from typing import Literal

from .fields import group, option
from .types import (
    BatchSize,
    Colour,
    Count,
    File,
    Folder,
    FractionBelow1,
    ImageFraction,
    ImageSize,
    InputSize,
    PixelCount,
    PositiveColour,
    Repeats,
    Text,
)

# 512 MiB of pixels in memory, in each loader thread. Pillow refuses larger images, too.
MAX_IMAGE_PIXELS = 178_956_970

Interpolation = Literal["bilinear", "bicubic", "area", "nearest", "lanczos"]
TrainInterpolation = Literal["bilinear", "bicubic", "area", "nearest", "lanczos", "random"]


@group("data")
class DataConfig:
    """Images to train and to evaluate on, and the size in which the network sees them."""

    dataset: Text = option(
        "folder",
        "folder (of class folders), digits (built in), the name of a torchvision data set (mnist, cifar10, ...), or a class of "
        "your own as package.module:Class",
        recipe=True,
        short="-d",
    )
    train_dir: Folder = option("", "training images: a folder with one folder of images per class")
    val_dir: Folder = option("", "validation images, in the same layout; without them nothing is validated")
    data_dir: Folder = option(
        "",
        "short for `train_dir` DIR/train `val_dir` DIR/val (or validation, or valid); "
        "for a named data set the folder that holds it",
        aliases=("--data-path",),
    )
    dataset_download: bool = option(False, "download the named data set into `data_dir`")
    train_split: Text = option("train", "split of the named data set to train on", recipe=True)
    val_split: Text = option("val", "split of the named data set to validate on")
    val_fraction: FractionBelow1 = option(
        0.0, "hold out this fraction of the training images of every class, and validate on it", recipe=True
    )
    class_map: File = option("", "file with the class names, one per line, in the order of their labels")
    on_bad_image: Literal["skip", "stop"] = option(
        "skip",
        "reaction to an image that cannot be decoded: train on another image of its class in its place and leave it out of "
        "validations (skip), or end the run (stop)",
    )
    max_bad_images: FractionBelow1 = option(
        0.01, "with `on_bad_image` skip: largest accepted fraction of such images; with more the run ends and names them"
    )
    num_classes: Count | None = option(None, "number of classes that is required; default: the number found")
    balanced_sampling: bool = option(
        False,
        "draw every class equally often, each in its own random order: images of small classes appear more often",
        recipe=True,
    )
    aug_repeats: Repeats = option(1, "number of differently augmented copies of each sample in a batch", recipe=True)
    max_image_pixels: PixelCount = option(
        MAX_IMAGE_PIXELS, "largest number of pixels of an image; a larger image is refused before it is decoded"
    )
    val_batch_size: BatchSize = option(
        None,
        "images in a validation batch, per process; default: `batch_size`, at most 256",
        short="-vb",
        aliases=("--validation-batch-size",),
    )
    input_size: InputSize = option(
        224,
        "side of the square image that the network sees, or its height and width, which may follow the number of channels",
        aliases=("--img-size", "--val-crop-size"),
        recipe=True,
    )
    resize_size: ImageSize = option(
        None,
        "length of the short side to which validation images are resized before the central crop, or height and width; "
        "`crop_mode` has the details; default: `input_size` / `crop_pct`",
        recipe=True,
        aliases=("--val-resize-size",),
    )
    train_crop_size: ImageSize | None = option(
        None, "side of the image in training, or its height and width; default: `input_size`", recipe=True
    )
    crop_pct: ImageFraction = option(0.875, "ratio of `input_size` to `resize_size`", recipe=True)
    crop_mode: Literal["center", "squash", "border"] = option(
        "center",
        "how validation images are resized before the central crop: center covers `resize_size`, squash changes the aspect "
        "ratio to that of `resize_size`, border fits into `resize_size` and is padded with the mean colour",
        recipe=True,
    )
    interpolation: Interpolation = option("bilinear", "interpolation used to resize validation images", recipe=True)
    train_interpolation: TrainInterpolation = option(
        "bilinear", "interpolation used to resize training images; random: bilinear or bicubic, drawn per image", recipe=True
    )
    mean: Colour = option(
        None,
        "mean subtracted from the pixels (BGR or grey, 0..255); default: 0, or that of the initial weights",
        recipe=True,
    )
    std: PositiveColour = option(
        None,
        "standard deviation by which the pixels are then divided (BGR or grey, 0..255); default: 1, or that of the initial "
        "weights",
        recipe=True,
    )
