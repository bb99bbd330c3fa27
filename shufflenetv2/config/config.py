"""Every option of the command, its default and its meaning.

The groups below are the whole list. An option can be given on the command line (`--batch-size 64`)
or in a YAML file (`batch-size: 64`) named by `--config`; the command line wins. Imports nothing
heavy, so that help and complaints come at once.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import declaration
from .declaration import (
    ANY_NUMBER,
    COUNT,
    FILE,
    FOLDER,
    INTERVAL,
    NATURAL,
    NON_NEGATIVE,
    NUMBER,
    PIXELS,
    POSITIVE,
    RANGE,
    SHARE,
    SHARE_ABOVE_0,
    SHARE_BELOW_1,
    SHARES,
    SWITCH,
    TEXT,
    OptionsError,
    choice,
    flag,
    option,
    several,
)  # fmt: skip

REFERENCE_BATCH_SIZE = 1024
REFERENCE_LEARNING_RATE = 0.5
REFERENCE_ITERS = 300_000
REFERENCE_JITTER = 0.4
TRY_DIGITS = "to try the trainer on built-in images: --config configs/digits.yaml"
INTERPOLATIONS = ("bilinear", "bicubic", "area", "nearest", "lanczos")
BGR = several(NUMBER, "three numbers", "X", (3,))
BGR_POSITIVE = several(POSITIVE, "three numbers above 0", "X", (3,))
JITTER = several(NON_NEGATIVE, "one number of at least 0, or three", "X", (1, 3))
BACKEND = dataclasses.replace(TEXT, accepts="the name of a backend of torch.compile", metavar="BACKEND", alone="inductor")


@dataclass(frozen=True)
class Common:
    """common"""

    config: str = option("", FILE, "YAML file of options; the command line overrides it", short="-c")
    save: str = option(
        "./models", FOLDER, "where checkpoints and the finished model.pkl go", aliases=("--output", "--work-dir")
    )
    log_dir: str = option("./logs", FOLDER, "where logs go, in a folder named like the last part of --save")
    experiment: str = option("", TEXT, "name of the run: a folder of that name in --save")
    device: str = option("auto", TEXT, "auto, cpu, cuda, cuda:N or mps; auto takes every GPU there is")
    workers: int | None = option(
        None, COUNT, "threads that load images, per process; default: the usable cores, shared", short="-j"
    )
    debug: bool = option(False, SWITCH, "show the traceback of an error")


@dataclass(frozen=True)
class Data:
    """data"""

    dataset: str = option(
        "folder", TEXT, "folder (of class folders), digits (built in), or torchvision's: mnist, cifar10, ...", recipe=True
    )
    train_dir: str = option("", FOLDER, "folder of one folder of images per class")
    val_dir: str = option("", FOLDER, "the same for validation; without it nothing is validated")
    data_dir: str = option("", FOLDER, "for both: --train-dir DIR/train --val-dir DIR/val; or where a named data set lies")
    dataset_download: bool = option(False, SWITCH, "fetch the named data set into --data-dir")
    train_split: str = option("train", TEXT, "of the named data set, to train on", recipe=True)
    val_split: str = option("val", TEXT, "of the named data set, to validate on")
    val_fraction: float = option(
        0.0, SHARE_BELOW_1, "validate on this share of every class of the training images, held out", recipe=True
    )
    class_map: str = option("", FILE, "the class names, one per line, in the order of their labels")
    num_classes: int | None = option(None, COUNT, "how many there must be; default: as many as are found")
    aug_repeats: int = option(1, COUNT, "differently augmented copies of a sample in a batch", recipe=True)
    val_batch_size: int = option(None, COUNT, "images in a validation batch, per process; default: --batch-size, at most 256")
    input_size: int = option(224, PIXELS, "side of the images the network sees", aliases=("--img-size",), recipe=True)
    resize_size: int = option(
        None, PIXELS, "short side before the central crop in validation; default: --input-size / --crop-pct", recipe=True
    )
    train_crop_size: int | None = option(None, PIXELS, "side of the images in training; default: --input-size", recipe=True)
    crop_pct: float = option(0.875, SHARE_ABOVE_0, "--input-size / --resize-size", recipe=True)
    interpolation: str = option("bilinear", choice(*INTERPOLATIONS), "of resizing in validation", recipe=True)
    train_interpolation: str = option(
        "bilinear", choice(*INTERPOLATIONS, "random"), "in training; random: bilinear or bicubic", recipe=True
    )
    mean: tuple[float, float, float] = option(
        None, BGR, "subtracted from the pixels, BGR, 0..255; default: 0, or what initial weights are used to", recipe=True
    )
    std: tuple[float, float, float] = option(
        None, BGR_POSITIVE, "then divides them, BGR; default: 1, or what initial weights are used to", recipe=True
    )


@dataclass(frozen=True)
class Augmentation:
    """augmentation"""

    no_aug: bool = option(False, SWITCH, "train on what validation sees: resized, central crop", recipe=True)
    scale: tuple[float, float] = option((0.08, 1.0), SHARES, "share of the area a random crop covers", recipe=True)
    ratio: tuple[float, float] = option((3 / 4, 4 / 3), RANGE, "width / height of a random crop", recipe=True)
    hflip: float = option(0.5, SHARE, "probability of a horizontal flip", recipe=True)
    vflip: float = option(0.0, SHARE, "probability of a vertical flip", recipe=True)
    color_jitter: tuple[float, float, float] = option(
        None, JITTER, "strength of brightness, contrast and saturation jitter; default: 0.4, with --aa 0", recipe=True
    )
    grayscale_prob: float = option(0.0, SHARE, "probability that an image loses its colours", recipe=True)
    gaussian_blur_prob: float = option(0.0, SHARE, "probability that an image is blurred", recipe=True)
    aa: str = option("", TEXT, "policy: original, v0, rand-m9-mstd0.5, augmix-m3, ta_wide, ...", recipe=True)
    aug_splits: int = option(
        0, choice(0, *range(2, 10)), "views of each image in a batch: one only cropped and flipped, the others augmented",
        recipe=True,
    )  # fmt: skip
    reprob: float = option(0.0, SHARE, "probability that a rectangle of the image is erased", recipe=True)
    remode: str = option(
        "const", choice("const", "rand", "pixel"), "with the mean colour, a random one, or one per pixel", recipe=True
    )
    recount: int = option(1, COUNT, "erase at most so many", recipe=True)
    resplit: bool = option(False, SWITCH, "do not erase in the first of --aug-splits", recipe=True)
    mixup: float = option(
        0.0, NON_NEGATIVE, "mix images and targets; alpha of the Beta distribution of the shares", recipe=True
    )
    cutmix: float = option(0.0, NON_NEGATIVE, "paste a rectangle of another image; alpha, as above", recipe=True)
    cutmix_minmax: tuple[float, float] | None = option(
        None, SHARES, "smallest and largest side of that rectangle, as a share of the image's", recipe=True
    )
    mixup_prob: float = option(1.0, SHARE, "probability that a batch (pair, sample) is mixed at all", recipe=True)
    mixup_switch_prob: float = option(0.5, SHARE, "probability of --cutmix where --mixup is given too", recipe=True)
    mixup_mode: str = option(
        "batch", choice("batch", "pair", "elem"), "drawn once for the batch, for each pair, or for each sample", recipe=True
    )
    mixup_off_iter: int = option(0, NATURAL, "no mixing from this iteration on; 0: to the end", recipe=True)


@dataclass(frozen=True)
class Model:
    """model"""

    model_size: str = option(
        "1.5x", choice("0.5x", "1.0x", "1.5x", "2.0x"), "width of the network", aliases=("--model",), recipe=True
    )
    gp: str = option("avg", choice("avg", "max", "avgmax", "catavgmax"), "pooling before the classifier", recipe=True)
    drop: float | None = option(None, SHARE_BELOW_1, "dropout of the features; default: 0.2 for 2.0x, else 0", recipe=True)
    drop_path: float = option(
        0.0, SHARE_BELOW_1, "stochastic depth: rate of the last unit, falling to 0 towards the first",
        aliases=("--drop-connect",), recipe=True,
    )  # fmt: skip
    drop_block: float = option(0.0, SHARE_BELOW_1, "rate of DropBlock in the last two stages", recipe=True)
    bn_momentum: float | None = option(None, SHARE_ABOVE_0, "batch norm's; default: 0.1", recipe=True)
    bn_eps: float | None = option(None, POSITIVE, "batch norm's; default: 1e-5", recipe=True)
    bn_tf: bool = option(False, SWITCH, "TensorFlow's batch norm: momentum 0.01, epsilon 1e-3", recipe=True)
    sync_bn: bool = option(False, SWITCH, "normalise over the batches of all processes (GPUs)", recipe=True)
    dist_bn: str = option(
        "broadcast",
        choice("broadcast", "reduce"),
        "batch-norm statistics of several processes: the first one's, or their average",
        recipe=True,
    )
    split_bn: bool = option(False, SWITCH, "statistics of their own for each of --aug-splits", recipe=True)


@dataclass(frozen=True)
class FineTuning:
    """fine-tuning"""

    initial_checkpoint: str = option("", FILE, "weights to start from; a head for other classes starts anew", recipe=True)
    pretrained: bool = option(False, SWITCH, "start from torchvision's published weights, which are downloaded", recipe=True)
    freeze: tuple[str, ...] = option(
        (), several(TEXT, "names", "NAME", ANY_NUMBER),
        "do not train stem, stage2, stage3, stage4, conv_last, backbone (all but the head), or a module by name",
        recipe=True,
    )  # fmt: skip
    backbone_lr_scale: float = option(
        1.0, POSITIVE, "learning rate of all but the head, as a multiple of the head's", recipe=True
    )


@dataclass(frozen=True)
class Distillation:
    """distillation"""

    teacher: str = option(
        "", TEXT, "learn from this classifier too: a weight file of ours, or a name that torchvision or timm knows", recipe=True
    )
    teacher_checkpoint: str = option("", FILE, "its weights, for your classes; default: the published ones", recipe=True)
    distill_alpha: float = option(0.5, SHARE, "share of the teacher in the loss", recipe=True)
    distill_temperature: float = option(4.0, POSITIVE, "softens both answers", recipe=True)


@dataclass(frozen=True)
class Optimization:
    """optimisation"""

    total_iters: int = option(None, COUNT, f"iterations; default: {REFERENCE_ITERS:,}", recipe=True)
    epochs: float | None = option(None, POSITIVE, "instead of --total-iters: times the number of training images")
    batch_size: int = option(
        REFERENCE_BATCH_SIZE, COUNT, "images in an iteration, over all GPUs and processes", short="-b", recipe=True
    )
    grad_accum_steps: int = option(1, COUNT, "parts of the batch that are computed one after the other", recipe=True)
    learning_rate: float = option(
        None, POSITIVE, "the highest; default: 0.5 x batch size / 1024, which is for sgd", aliases=("--lr",), recipe=True
    )
    opt: str = option("sgd", TEXT, "sgd, nesterov, adamw, lamb, rmsproptf, or another name that timm knows", recipe=True)
    opt_eps: float | None = option(None, POSITIVE, "epsilon; default: the optimizer's", recipe=True)
    opt_betas: tuple[float, ...] | None = option(
        None,
        several(SHARE_BELOW_1, "two or three numbers from 0 to below 1", "X", (2, 3)),
        "default: the optimizer's",
        recipe=True,
    )
    momentum: float = option(0.9, SHARE_BELOW_1, "of sgd and its like", recipe=True)
    weight_decay: float = option(4e-5, NON_NEGATIVE, "on weights; biases and batch norm have none", recipe=True)
    clip_grad: float | None = option(None, POSITIVE, "limit of the gradient, in the sense of --clip-mode", recipe=True)
    clip_mode: str = option("norm", choice("norm", "value", "agc"), "its norm, each value, or adaptively", recipe=True)
    label_smooth: float = option(
        0.1, SHARE_BELOW_1, "share of the target spread over all classes", aliases=("--smoothing",), recipe=True
    )
    bce_loss: bool = option(False, SWITCH, "binary cross-entropy of each class", recipe=True)
    jsd: bool = option(False, SWITCH, "make the answers to --aug-splits alike (Jensen-Shannon divergence)", recipe=True)
    model_ema: bool = option(False, SWITCH, "average the weights over the iterations as well, into model-ema.pkl", recipe=True)
    model_ema_decay: float = option(0.9998, SHARE_BELOW_1, "share of the average kept in an iteration", recipe=True)
    model_ema_warmup: bool = option(False, SWITCH, "keep less at the beginning", recipe=True)
    model_ema_force_cpu: bool = option(False, SWITCH, "keep the average in the host's memory; every iteration waits for it")
    seed: int = option(0, NATURAL, "of the initial weights, the order of samples and the augmentation", recipe=True)


@dataclass(frozen=True)
class Schedule:
    """learning-rate schedule"""

    sched: str = option(
        "linear",
        choice("linear", "cosine", "step", "multistep", "tanh", "poly", "plateau", "constant"),
        "from the learning rate down",
        recipe=True,
    )
    warmup_iters: int = option(0, NATURAL, "iterations from --warmup-lr up to the schedule", recipe=True)
    warmup_lr: float = option(1e-6, NON_NEGATIVE, "where they start", recipe=True)
    min_lr: float = option(0.0, NON_NEGATIVE, "the lowest rate", recipe=True)
    decay_iters: int | None = option(None, COUNT, "iterations between two steps", recipe=True)
    decay_milestones: tuple[int, ...] = option(
        (), several(COUNT, "whole numbers of at least 1", "N", ANY_NUMBER), "iterations of the steps of multistep", recipe=True
    )
    decay_rate: float | None = option(None, POSITIVE, "factor of a step, default: 0.1; power of poly, default: 1", recipe=True)
    cooldown_iters: int = option(0, NATURAL, "iterations at the end at --min-lr", recipe=True)
    patience_iters: int = option(10_000, COUNT, "plateau: a step after so many without a better top-1", recipe=True)
    lr_noise: tuple[float, ...] | None = option(
        None, several(SHARE, "one or two numbers from 0 to 1", "P", (1, 2)),
        "vary the rate at random from this share of the run on, or between two", recipe=True,
    )  # fmt: skip
    lr_noise_pct: float = option(0.67, SHARE_ABOVE_0, "limit of that, as a share of the rate", recipe=True)
    lr_noise_std: float = option(1.0, POSITIVE, "its standard deviation", recipe=True)
    lr_cycle_mul: float = option(1.0, POSITIVE, "length of a cycle, as a multiple of the one before", recipe=True)
    lr_cycle_limit: int = option(1, COUNT, "cycles of cosine, tanh and poly", recipe=True)
    lr_cycle_decay: float = option(0.5, SHARE_ABOVE_0, "rate of a cycle, as a multiple of the one before", recipe=True)


@dataclass(frozen=True)
class Execution:
    """execution"""

    channels_last: bool = option(
        False, SWITCH, "interleave the channels in memory (NHWC): faster on a CPU; rounds a little differently", recipe=True
    )
    amp: bool = option(False, SWITCH, "compute in --amp-dtype where that is safe", recipe=True)
    amp_dtype: str = option("bfloat16", choice("bfloat16", "float16"), "for --amp; float16 scales the loss", recipe=True)
    torchcompile: str = option("", BACKEND, "compile the network for training; inductor if no backend is named", recipe=True)
    torchscript: bool = option(False, SWITCH, "train the network as a TorchScript program", recipe=True)
    deterministic: bool = option(False, SWITCH, "refuse operations whose result is not the same every time", recipe=True)


@dataclass(frozen=True)
class Running:
    """running"""

    auto_continue: bool = option(True, SWITCH, "start over instead of going on from the newest checkpoint in --save")
    resume: str = option("", FILE, "go on from this checkpoint, if there is none in --save", aliases=("--resume-from",))
    resume_opt: bool = option(True, SWITCH, "take only the weights and the iteration from --resume")
    on_nonfinite: str = option(
        "stop",
        choice("stop", "skip", "rollback"),
        "a loss that is not finite ends the run, or from the newest checkpoint on its iteration is left out, "
        "or all up to it are",
    )
    display_interval: int = option(20, COUNT, "iterations between two TRAIN lines", aliases=("--log-interval", "--print-freq"))
    validate: bool = option(True, SWITCH, "do not validate during training")
    val_interval: int = option(10_000, COUNT, "iterations between two validations")
    save_interval: int | str = option(10_000, INTERVAL, "iterations, or time (90s, 10m, 2h), between two checkpoints")
    recovery_interval: int | None = option(None, COUNT, "iterations between checkpoints of which only the newest is kept")
    checkpoint_hist: int | None = option(None, COUNT, "checkpoints to keep; default: all")
    eval_metric: str = option("top1", choice("top1", "top5", "loss"), "what makes a checkpoint the best.pth.tar")
    save_images: bool = option(False, SWITCH, "draw what the network sees, at every TRAIN line")
    hook: tuple[str, ...] = option(
        (), several(TEXT, "package.module:Class", "MODULE:CLASS", ANY_NUMBER), "call this class as the run goes on; see Hook"
    )
    throughput: bool = option(False, SWITCH, "only measure how fast the network is, and how fast the loader")


@dataclass(frozen=True)
class Evaluation:
    """evaluation"""

    eval: bool = option(False, SWITCH, "evaluate --eval-resume on --val-dir instead of training", aliases=("--test-only",))
    eval_resume: str = option("", FILE, "weights to evaluate; default: model.pkl in --save")
    tta: int = option(1, choice(1, 2, 5, 10), "average over views: the image and its mirror image, five crops, or both")


GROUPS = (
    Common, Data, Augmentation, Model, FineTuning, Distillation, Optimization, Schedule, Execution, Running, Evaluation
)  # fmt: skip

# Options of other trainers that have no meaning here.
REFUSED = {
    "apex-amp": "apex has gone; use --amp",
    "native-amp": "there is no other any more; use --amp",
    "local-rank": "torchrun tells each process its number; leave it out",
    "use-multi-epochs-loader": "the iterator never restarts; leave it out",
    "epoch-repeats": "the iterator never restarts; --epochs or --total-iters is the length",
    "no-prefetcher": "batches are always loaded ahead; leave it out",
    "pin-mem": "memory is pinned where there is a GPU; leave it out",
    "start-epoch": "a run goes on where it was; --resume takes up a checkpoint from elsewhere",
} | {
    theirs: f"here it is {ours}"
    for theirs, ours in {
        "arch": "--model-size",
        "auto-augment": "--aa",
        "cutmix-alpha": "--cutmix",
        "data": "--data-dir",
        "drop-rate": "--drop",
        "mixup-alpha": "--mixup",
        "nesterov": "--opt nesterov",
        "random-erase": "--reprob",
        "val-freq": "--val-interval",
        "wd": "--weight-decay",
        "warmup-epochs": "--warmup-iters, in iterations; an epoch has training images / --batch-size of them",
        "decay-epochs": "--decay-iters, in iterations; an epoch has training images / --batch-size of them",
        "cooldown-epochs": "--cooldown-iters, in iterations; an epoch has training images / --batch-size of them",
        "patience-epochs": "--patience-iters, in iterations; an epoch has training images / --batch-size of them",
        "mixup-off-epoch": "--mixup-off-iter, in iterations; an epoch has training images / --batch-size of them",
    }.items()
}

# Options that only mean something beside another.
NEEDS = {
    "amp_dtype": "amp",
    "distill_alpha": "teacher",
    "distill_temperature": "teacher",
    "model_ema_decay": "model_ema",
    "model_ema_force_cpu": "model_ema",
    "recount": "reprob",
    "remode": "reprob",
    "tta": "eval",
    "warmup_lr": "warmup_iters",
}

DESCRIPTION = "Trains and evaluates ShuffleNetV2. Run the same command again after an interruption, and it goes on."
EXAMPLES = """examples:
  train on the built-in digits:     {prog} --config configs/digits.yaml
  train on your own images:         {prog} --model-size 1.0x --train-dir DIR --val-dir DIR
  evaluate what came out of it:     {prog} --eval --eval-resume models/model.pkl --val-dir DIR
"""


@dataclass(frozen=True)
class Options(
    Evaluation, Running, Execution, Schedule, Optimization, Distillation, FineTuning, Model, Augmentation, Data, Common
):  # fmt: skip
    """All options. From `parse` they come resolved: a default of None that depends on another option has its value.

    Attributes:
        given: the names of those on the command line. In an evaluation these outweigh what the
            weight file says of itself, which in turn outweighs a YAML file.
    """

    given: frozenset[str] = frozenset()

    @property
    def views(self) -> int:
        """How often an image is in a training batch."""
        return self.aug_splits or 1


def fields() -> Iterable[dataclasses.Field[Any]]:
    """The options in the order of their groups."""
    return declaration.fields(GROUPS)


DEFAULTS = {field.name: field.default for field in fields()}


def recipe_of(options: Options) -> dict[str, Any]:
    """The options that decide the result, by name."""
    return {field.name: getattr(options, field.name) for field in fields() if field.metadata["recipe"]}


def default_learning_rate(batch_size: int) -> float:
    """The reference's 0.5 at its batch size, in proportion elsewhere."""
    return REFERENCE_LEARNING_RATE * batch_size / REFERENCE_BATCH_SIZE


def to_yaml(options: Options) -> str:
    """The options as a file for `--config`, in their groups."""
    return declaration.to_yaml(GROUPS, options)


def parse(argv: Sequence[str], prog: str = "train.py") -> Options:
    """Options from a command line, and from the YAML file it names.

    Raises:
        OptionsError: for a name that is unknown, a value that is not accepted, a file that cannot
            be read, or options that contradict each other.
        SystemExit: after printing the help.
    """
    given, from_file = declaration.read(GROUPS, argv, prog, DESCRIPTION, EXAMPLES, REFUSED)
    for one, other in (("epochs", "total_iters"), ("total_iters", "epochs")):
        if one in given and other not in given:
            from_file.pop(other, None)  # the command line wins
    return _resolve(Options(**(from_file | given), given=frozenset(given)))


def _resolve(options: Options) -> Options:
    """Fills in what depends on other options, and refuses what contradicts itself."""
    for name in ("scale", "ratio", "cutmix_minmax"):
        low, high = getattr(options, name) or (0, 0)
        if low > high:
            raise OptionsError(f"{flag(name)} {low} {high}: the smaller number comes first")
    for culprit, wrong, remedy in _contradictions(options):
        if wrong:
            raise OptionsError(f"{culprit} {remedy}")
    for name, needed in NEEDS.items():
        if getattr(options, name) != DEFAULTS[name] and not getattr(options, needed):
            raise OptionsError(f"{flag(name)} has no effect without {flag(needed)}; leave it out, or give both")
    if options.mean and 0 < max(options.mean) <= 1:
        raise OptionsError(
            f"--mean {' '.join(map(str, options.mean))} is for pixels of 0..1 in RGB; here they are 0..255 in BGR, "
            "so reverse --mean and --std, and multiply by 255"
        )
    options = _resolve_data(options)
    resize_size = options.resize_size or int(options.input_size / options.crop_pct + 0.5)
    if resize_size < options.input_size and not options.eval:  # there the weight file may say otherwise
        raise OptionsError(f"--resize-size {resize_size} is smaller than --input-size {options.input_size}")
    if options.learning_rate is None and options.opt not in ("sgd", "nesterov", "momentum") and not options.eval:
        raise OptionsError(f"--opt {options.opt} needs a --learning-rate: the default is for sgd")
    starts_from_weights = bool(options.initial_checkpoint or options.pretrained) and not options.eval
    jitter = options.color_jitter or ((0.0,) if options.aa else (REFERENCE_JITTER,))
    return dataclasses.replace(
        options,
        resize_size=resize_size,
        learning_rate=options.learning_rate or default_learning_rate(options.batch_size),
        total_iters=options.total_iters or (0 if options.epochs else REFERENCE_ITERS),
        val_batch_size=options.val_batch_size or min(options.batch_size, 256),
        color_jitter=jitter if len(jitter) == 3 else jitter * 3,
        mean=options.mean or (None if starts_from_weights else (0.0, 0.0, 0.0)),
        std=options.std or (None if starts_from_weights else (1.0, 1.0, 1.0)),
        eval_resume=options.eval_resume or (options.resume if options.eval else ""),
        save=os.path.join(options.save, options.experiment) if options.experiment else options.save,
        experiment="",  # is in --save now
    )


def _contradictions(options: Options) -> Iterable[tuple[str, bool, str]]:
    """(an option, whether it stands in contradiction to others, what to do about it)"""
    mixes, splits = bool(options.mixup or options.cutmix or options.cutmix_minmax), bool(options.aug_splits)
    colours = bool(options.grayscale_prob or options.gaussian_blur_prob)
    augments = bool(options.aa or options.reprob or splits or options.vflip or colours)
    return [
        ("--eval-resume", bool(options.eval_resume) and not options.eval, "is for --eval; without it nothing is evaluated"),
        ("--epochs", bool(options.epochs and options.total_iters), "and --total-iters both say how long; give one of them"),
        ("--jsd", options.jsd and not splits, "compares the views of an image, and needs --aug-splits 3"),
        ("--split-bn", options.split_bn and not splits, "is for the views of an image, and needs --aug-splits"),
        ("--resplit", options.resplit and not splits, "is for the first of several views, and needs --aug-splits"),
        ("--mixup", mixes and options.jsd, "or --cutmix cannot go with --jsd, which needs images of one class; leave one out"),
        ("--mixup", mixes and splits, "or --cutmix would mix the views of --aug-splits; leave one out"),
        ("--jsd", options.jsd and options.bce_loss, "brings cross-entropy; leave --bce-loss out"),
        ("--no-aug", options.no_aug and augments, "leaves no augmentation; leave the others out"),
        ("--mixup-off-iter", bool(options.mixup_off_iter) and not mixes, "needs --mixup or --cutmix"),
        ("--grad-accum-steps", options.grad_accum_steps > 1 and splits, "would tear --aug-splits apart; leave one out"),
        (
            "--batch-size",
            options.batch_size % options.grad_accum_steps > 0,
            f"{options.batch_size} cannot be divided into --grad-accum-steps {options.grad_accum_steps}",
        ),
        ("--clip-mode", options.clip_mode != "norm" and not options.clip_grad, "needs a limit: --clip-grad"),
        ("--torchscript", options.torchscript and options.sync_bn, "cannot hold --sync-bn; leave one out"),
        ("--torchscript", options.torchscript and options.split_bn, "cannot hold --split-bn; leave one out"),
        ("--torchscript", options.torchscript and bool(options.torchcompile), "and --torchcompile exclude each other"),
        ("--bn-tf", options.bn_tf and bool(options.bn_eps or options.bn_momentum), "says what --bn-eps and --bn-momentum say"),
        ("--sync-bn", options.sync_bn and options.split_bn, "and --split-bn exclude each other"),
        ("--pretrained", bool(options.pretrained and options.initial_checkpoint), "and --initial-checkpoint: give one of them"),
        ("--teacher-checkpoint", bool(options.teacher_checkpoint) and not options.teacher, "needs --teacher: whose they are"),
        ("--no-resume-opt", not options.resume_opt and not options.resume, "is for --resume"),
        ("--model-ema-warmup", options.model_ema_warmup and not options.model_ema, "needs --model-ema"),
        (
            "--sched plateau",
            options.sched == "plateau" and not options.validate,
            "looks at the validation; leave --no-validate out",
        ),
        (
            "--recovery-interval",
            bool(options.recovery_interval) and not isinstance(options.save_interval, int),
            "is told apart by iterations; give --save-interval in iterations too",
        ),
        ("--eval", options.eval and options.throughput, "and --throughput exclude each other"),
    ]  # fmt: skip


def _resolve_data(options: Options) -> Options:
    """Which folders are meant, with what they leave unsaid."""
    named = options.dataset != "folder"
    if named:
        for name in ("train_dir", "val_dir", "class_map"):
            if getattr(options, name):
                raise OptionsError(f"{flag(name)} needs --dataset folder; {options.dataset} brings its own images")
        if options.dataset == "digits" and options.data_dir:
            raise OptionsError("--data-dir is not needed: digits are built in")
        if options.dataset != "digits" and not options.data_dir:
            raise OptionsError(f"--data-dir is missing: where {options.dataset} lies, or --dataset-download is to put it")
        return options
    if options.dataset_download:
        raise OptionsError("--dataset-download needs a --dataset by name")
    if options.data_dir:
        held_out = options.val_fraction and not os.path.isdir(os.path.join(options.data_dir, "val"))
        options = dataclasses.replace(
            options,
            train_dir=options.train_dir or os.path.join(options.data_dir, "train"),
            val_dir=options.val_dir or ("" if held_out else os.path.join(options.data_dir, "val")),
            data_dir="",  # is in the others now
        )
    if options.val_fraction and options.val_dir:
        raise OptionsError("--val-fraction takes the place of --val-dir; leave one out")
    if options.eval and not options.val_dir and not (options.val_fraction and options.train_dir):
        raise OptionsError("--val-dir is missing: the folder of one folder of images per class to evaluate on")
    if not options.eval and not options.train_dir:
        raise OptionsError(f"--train-dir is missing: a folder of one folder of images per class; {TRY_DIGITS}")
    return options
