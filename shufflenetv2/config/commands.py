"""Options of the commands other than `train`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..errors import UserError
from .data import MAX_IMAGE_PIXELS
from .fields import group, option
from .run import QUIET, USE_EMA, Files
from .types import (
    Accepts,
    BatchSize,
    Count,
    Distance,
    File,
    Folder,
    FractionBelow1,
    Natural,
    PixelCount,
    Pixels,
    Quality,
    Text,
    Workers,
)

WeightFormat = Literal["original", "torchvision", "mmpretrain", "shufflenetv2", "safetensors"]
ExportFormat = Literal["onnx", "torchscript", "exported", "executorch"]
Uint8Input = Literal["bgr-nchw", "bgr-nhwc", "rgb-nchw", "rgb-nhwc", "grey-nchw", "grey-nhwc"]

EXPORT_SUFFIXES: dict[str, str] = {
    "onnx": ".onnx",
    "torchscript": ".pt",
    "exported": ".pt2",
    "executorch": ".pte",
}
CALIBRATION_IMAGES = 256
OPSETS = (13, 22)  # oldest and newest version of the ONNX operator set that export writes
Opset = Annotated[int, Field(ge=OPSETS[0], le=OPSETS[1]), Accepts(f"a whole number from {OPSETS[0]} to {OPSETS[1]}", "N")]

WEIGHT_FILE = "weight file of this trainer, the original, torchvision or mmpretrain"
CHECK_WEIGHTS = "do not refuse weights that are NaN or infinite, and variances below 0"
PIXEL_LIMIT = "largest number of pixels of an image; a larger image is skipped"
LOADER_THREADS = "number of threads that load images; default: the usable cores"


@group("arguments of this command")
class PrepareConfig:
    """A data set to shrink."""

    source: Folder = option(..., "folder with one folder of images per class", positional=True)
    destination: Folder = option(..., "folder to write: new, or left by an interrupted run of the command", positional=True)
    short_side: Pixels = option(
        ...,
        "largest short side of a resulting image; at least the `resize_size` of the training to come (the larger of two "
        "numbers), which is 256 for an input of 224 pixels",
    )
    # 95: the reason is in data/shrinking.py.
    quality: Quality = option(95, "quality of the resulting JPEG files, from 1 to 100")
    workers: Workers | None = option(None, "number of threads; default: the usable cores", short="-j")
    quiet: bool = option(False, QUIET)
    max_image_pixels: PixelCount = option(MAX_IMAGE_PIXELS, PIXEL_LIMIT)


@group("arguments of this command")
class CheckConfig:
    """Folders of images to check."""

    folder: Folder = option(
        ...,
        "training images: a folder with one folder of images per class, or a folder that holds train/ and perhaps val/",
        positional=True,
    )
    val_dir: Folder = option("", "validation images, in the same layout")
    min_side: Count = option(32, "images with a shorter side, in pixels, are named as tiny")
    max_distance: Distance = option(
        6, "largest number of bits, of 64, in which the hashes of two images that look alike differ; 0 finds equal hashes only"
    )
    html: File = option("", "write a page with all findings to this file")
    json: bool = option(False, "print all findings as JSON")
    fix: Folder = option(
        "",
        "move files that cannot be decoded, and all but one of those with the same content in the same class, to this folder; "
        "without it nothing is moved",
    )
    workers: Workers | None = option(None, LOADER_THREADS, short="-j")
    quiet: bool = option(False, QUIET)


@group("arguments of this command")
class InfoConfig:
    """A weight file or an exported file to describe."""

    model: File = option(..., f"{WEIGHT_FILE}, or a file that `shufflenetv2 export` wrote", positional=True)
    use_ema: bool = option(False, USE_EMA)
    check_weights: bool = option(True, CHECK_WEIGHTS)
    json: bool = option(False, "print JSON")


@group("arguments of this command")
class ConvertConfig:
    """A weight file to convert."""

    source: File = option(..., WEIGHT_FILE, positional=True)
    destination: File = option(..., "file to write; an existing file is replaced", positional=True)
    to: WeightFormat = option(..., "format of the file to write")
    use_ema: bool = option(False, USE_EMA)
    check_weights: bool = option(True, CHECK_WEIGHTS)


@group("arguments of this command")
class RecalibrateConfig:
    """A weight file to recalibrate, and the images to do it with."""

    source: File = option(..., WEIGHT_FILE, positional=True)
    destination: File = option(..., "file to write; it may be the same file", positional=True)
    use_ema: bool = option(False, USE_EMA)
    images: Count | None = option(
        None, "number of images to average over; default: as in the training, which takes all up to 1,280,000"
    )
    seed: Natural | None = option(None, "seed of the order and augmentation of images; default: the seed of the recipe")
    train_dir: Folder = option(
        "",
        "training images: a folder with one folder of images per class; "
        "default: the named data set that the weights were trained on",
    )
    val_dir: Folder = option("", "validation images, in the same layout, to print the accuracy before and after")
    dataset: Text = option(
        "",
        "digits (built in) or the name of a torchvision data set, instead of folders; its validation images are evaluated too",
    )
    data_dir: Folder = option(
        "",
        "short for `train_dir` DIR/train `val_dir` DIR/val (or validation, or valid); "
        "for a named data set the folder that holds it",
    )
    class_map: File = option("", "file with the class names, one per line, in the order of their labels")
    on_bad_image: Literal["skip", "stop"] | None = option(
        None, "replace images that cannot be decoded (skip), or end at the first of them (stop); default: skip"
    )
    max_bad_images: FractionBelow1 | None = option(None, "largest accepted fraction of such images; default: 0.01")
    batch_size: BatchSize | None = option(None, "images in a batch; default: the batch size of the recipe", short="-b")
    workers: Workers | None = option(None, LOADER_THREADS, short="-j")
    device: Text = option("", "auto, cpu, cuda, cuda:N or mps; default: auto")
    quiet: bool = option(False, QUIET)


@group("arguments of this command")
class ExportConfig:
    """Weights to export, and the images on which the exported file is compared with them."""

    model: File = option(..., WEIGHT_FILE, positional=True)
    out: File = option("", "file to write; default: the name of the weight file with the suffix of the format", positional=True)
    use_ema: bool = option(False, USE_EMA)
    format: ExportFormat | None = option(None, "format of the file; default: by the suffix of the file to write, or else onnx")
    fold_bn: bool = option(True, "keep batch norms separate from the convolutions before them (not possible in ONNX)")
    uint8_input: Uint8Input | None = option(
        None, "take uint8 images with this order of channels and layout; default: float32, bgr-nchw or grey-nchw"
    )
    dynamic_batch: bool = option(False, "accept any batch size instead of 1; TorchScript always does")
    opset: Opset | None = option(None, f"version of the ONNX operator set; default: {OPSETS[0]}, which most runtimes read")
    images: Folder = option(
        "",
        "folder of images, at any depth, to compare the logits on; default: those of `calibrate`, or else the built-in digits",
    )
    int8: bool = option(False, "quantize to int8, which reduces the file to about a quarter (ONNX)")
    calibrate: Folder = option(
        "",
        f"with `int8`: folder of typical images, of which {CALIBRATION_IMAGES} are used to measure the range of activations; "
        "or digits",
    )
    val_dir: Folder = option(
        "", "with `int8`: folder with one folder of images per class, to print the accuracy before and after; or digits"
    )
    quiet: bool = option(False, QUIET)

    @property
    def chosen_format(self) -> str:
        """The format that was given, or that of the suffix of `out`, or else ONNX."""
        if self.format:
            return self.format
        return next((format for format, suffix in EXPORT_SUFFIXES.items() if Path(self.out).suffix == suffix), "onnx")

    @property
    def path(self) -> Path:
        """The file to write."""
        if self.out:
            return Path(self.out)
        model = Path(self.model)
        return model.with_name(model.stem + "-int8" * self.int8 + EXPORT_SUFFIXES[self.chosen_format])

    def check(self) -> None:
        """Check options against each other.

        Raises:
            UserError: for options that contradict each other, or that have no effect without another one.
        """
        format, suffix = self.chosen_format, EXPORT_SUFFIXES[self.chosen_format]
        if self.int8 and format != "onnx":
            raise UserError(f"`int8` is only possible with `format=onnx`, not {format}")
        if self.opset and format != "onnx":
            raise UserError(f"`opset` has no effect with `format={format}`; leave it out")
        if format == "onnx" and not self.fold_bn:
            raise UserError("`fold_bn=False`: torch's ONNX exporter always folds batch norms; leave it out")
        if self.int8 and not self.calibrate:
            raise UserError("`int8` needs `calibrate`: a folder of images to measure the range of activations on")
        if self.calibrate and not self.int8:
            raise UserError("`calibrate` has no effect without `int8`; leave it out, or give both")
        if self.val_dir and not self.int8:
            raise UserError("`val_dir` compares the accuracy of int8 with that of the weights, and needs `int8`")
        if self.path.suffix != suffix:
            raise UserError(f"{self.path}: the name of a file of the format {format} must end with {suffix}")


@group("arguments of this command")
class PredictConfig:
    """A model, and images to classify."""

    model: File = option(..., "weight file, or file written by `shufflenetv2 export`", positional=True)
    images: Files = option(..., "image files, folders of images, or digits for the built-in validation images", positional=True)
    use_ema: bool = option(False, USE_EMA)
    top: Count = option(5, "number of classes to print for each image")
    json: bool = option(False, "print one JSON object per line, with path and predictions (label, class, probability)")
    batch_size: BatchSize = option(64, "images in a batch", short="-b")
    workers: Workers | None = option(None, LOADER_THREADS, short="-j")
    device: Text = option("auto", "auto, cpu, cuda, cuda:N or mps; exported files run on the CPU only")
    max_image_pixels: PixelCount = option(MAX_IMAGE_PIXELS, PIXEL_LIMIT)


@group("arguments of this command")
class ReportConfig:
    """Runs to report on."""

    runs: Files = option(..., "log folder of a run, or its `save` folder; several runs are compared", positional=True)
    out: File = option(
        "", "file to write; default: report.html in the log folder, or comparison.html in this folder for several runs"
    )


@group("arguments of this command")
class PreviewConfig:
    """What to draw of a training before it begins."""

    out: Folder = option("preview", "folder to write; files of an earlier preview are replaced")
    batches: Count = option(1, "number of training batches to draw, at most 64 images of each")


# The group of options of every command but `train`
COMMAND_GROUPS = (
    PrepareConfig,
    CheckConfig,
    InfoConfig,
    ConvertConfig,
    RecalibrateConfig,
    ExportConfig,
    PredictConfig,
    ReportConfig,
    PreviewConfig,
)
