"""Options of augmentation: random changes of the training images and their targets."""

from typing import Annotated, Literal

from .fields import group, option
from .types import Fractions, IntegerChoice, Iterations, Jitter, NonNegative, Probability, Range, Repeats, Text


@group("augmentation")
class AugmentationConfig:
    """Random changes of the training images and their targets."""

    no_aug: bool = option(False, "do not augment: training images are resized and cropped like validation images", recipe=True)
    train_crop_mode: Literal["rrc", "rkrc", "rkrr"] = option(
        "rrc",
        "crop of training images: rrc resizes a random crop; rkrc and rkrr keep the aspect ratio up to a small random change, "
        "and take the central part, or one at a random position",
        recipe=True,
    )
    scale: Fractions = option(
        None,
        "range of the fraction of the image area that a random crop covers; default: 0.08 1, or 0.8 1 with rkrc and rkrr",
        recipe=True,
    )
    ratio: Range = option(
        None,
        "range of the width / height ratio of a random crop (default: 3/4 to 4/3), or with rkrc and rkrr of the change of the "
        "image's ratio (default: 0.9 to 1/0.9)",
        recipe=True,
    )
    hflip: Probability = option(0.5, "probability of a horizontal flip", recipe=True)
    vflip: Probability = option(0.0, "probability of a vertical flip", recipe=True)
    color_jitter: Jitter = option(
        None, "strength of the brightness, contrast and saturation jitter; default: 0.4, or 0 with `aa`", recipe=True
    )
    grayscale_prob: Probability = option(0.0, "probability that an image is converted to grayscale", recipe=True)
    gaussian_blur_prob: Probability = option(0.0, "probability that an image is blurred", recipe=True)
    aa: Text = option(
        "",
        "augmentation policy: original, v0, rand-m9-mstd0.5, augmix-m3, ta_wide, ..., or a function of your own as "
        "package.module:function, called as f(image, rng)",
        recipe=True,
    )
    aug_splits: Annotated[Literal[0, 2, 3, 4, 5, 6, 7, 8, 9], IntegerChoice] = option(
        0,
        "number of views of each image in a batch: the first is only cropped and flipped, the others are augmented",
        recipe=True,
    )
    reprob: Probability = option(
        0.0, "probability that a rectangle of the image is erased", aliases=("--random-erase",), recipe=True
    )
    remode: Literal["const", "rand", "pixel"] = option(
        "const", "filling of an erased rectangle: the mean colour, a random colour, or a random colour per pixel", recipe=True
    )
    recount: Repeats = option(1, "largest number of rectangles erased in an image", recipe=True)
    resplit: bool = option(False, "do not erase in the first view of `aug_splits`", recipe=True)
    mixup: NonNegative = option(
        0.0,
        "mix pairs of images and targets; alpha of the Beta distribution of the mixing ratio",
        aliases=("--mixup-alpha",),
        recipe=True,
    )
    cutmix: NonNegative = option(
        0.0,
        "paste a rectangle of another image and mix the targets; alpha of the Beta distribution of its area",
        aliases=("--cutmix-alpha",),
        recipe=True,
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
    mixup_off_iter: Iterations = option(0, "iteration from which images are no longer mixed; 0: mix to the end", recipe=True)
