"""Options of the training: length, batch size, loss, optimizer, learning-rate schedule."""

from typing import Annotated, Literal

from .fields import group, option
from .types import (
    Accepts,
    BatchSize,
    BatchSizeOrAuto,
    Betas,
    Count,
    Counts,
    Cycles,
    Factor,
    FractionAbove0,
    FractionBelow1,
    Iterations,
    Name,
    Natural,
    NonNegative,
    OneOrTwoFractions,
    Positive,
    Settings,
    Text,
)

REFERENCE_BATCH_SIZE = 1024
REFERENCE_LEARNING_RATE = 0.5
REFERENCE_ITERS = 300_000
RECALIBRATION_IMAGES = 1_280_000  # the original uses 1,250 batches of 1,024, about one epoch of ImageNet

ClassWeights = Annotated[Name, Accepts("balanced, sqrt or the name of a file of classes and weights", "balanced|sqrt|FILE")]


@group("optimisation")
class OptimizationConfig:
    """Length of the run, batch size, optimizer and loss."""

    total_iters: Count = option(None, f"number of iterations; default: {REFERENCE_ITERS:,}", recipe=True)
    epochs: Positive | None = option(None, "length in passes over the training images, instead of `total_iters`")
    batch_size: BatchSizeOrAuto = option(
        REFERENCE_BATCH_SIZE,
        "images per iteration, over all GPUs and processes; auto: the largest number that fits into the free memory, at most "
        f"{REFERENCE_BATCH_SIZE} and at most the number of training images",
        short="-b",
        recipe=True,
    )
    grad_accum_steps: BatchSize = option(
        1, "number of equal parts into which the batch is divided to save memory; their gradients add up", recipe=True
    )
    learning_rate: Positive = option(
        None, "highest learning rate; default: 0.5 x batch size / 1024, which is for SGD", aliases=("--lr",), recipe=True
    )
    opt: Text = option("sgd", "optimizer: sgd, nesterov, adamw, lamb, rmsproptf, or another name that timm has", recipe=True)
    opt_eps: Positive | None = option(None, "epsilon of the optimizer; default: the optimizer's own", recipe=True)
    opt_betas: Betas | None = option(None, "betas of the optimizer; default: the optimizer's own", recipe=True)
    opt_kwargs: Settings = option(
        (), "further arguments of the optimizer, by the names of torch or timm: nesterov=True, amsgrad=True, ...", recipe=True
    )
    momentum: FractionBelow1 = option(0.9, "momentum of SGD-type optimizers", recipe=True)
    weight_decay: NonNegative = option(
        4e-5,
        "weight decay of parameters with more than one dimension; biases and batch norm have none",
        aliases=("--wd",),
        recipe=True,
    )
    clip_grad: Positive | None = option(
        None, "limit for the gradients, measured as `clip_mode` says", aliases=("--clip-grad-norm",), recipe=True
    )
    clip_mode: Literal["norm", "value", "agc"] = option(
        "norm", "limit the norm of all gradients, each value, or each unit relative to its weights (adaptive)", recipe=True
    )
    label_smooth: FractionBelow1 = option(
        0.1,
        "label smoothing: fraction of the target spread over all classes",
        aliases=("--smoothing", "--label-smoothing"),
        recipe=True,
    )
    loss: Text = option(
        "",
        "loss function of your own as package.module:Name, called as f(logits, targets); default: cross-entropy",
        recipe=True,
    )
    bce_loss: bool = option(False, "use the binary cross-entropy of each class as the loss", recipe=True)
    bce_target_thresh: FractionBelow1 | None = option(
        None, "with `bce_loss`: replace smoothed and mixed targets above this value by 1, and the others by 0", recipe=True
    )
    class_weights: ClassWeights = option(
        "",
        "weight of each class in the loss, for unequal classes: in inverse proportion to its number of training images "
        "(balanced), to the square root of this number (sqrt), or from a file with lines of class and weight",
        recipe=True,
    )
    focal_gamma: NonNegative = option(
        0.0,
        "multiply the loss of an image by (1 - p) ** gamma, where p is the probability of its class (focal loss)",
        recipe=True,
    )
    jsd: bool = option(
        False,
        "add the Jensen-Shannon divergence between the outputs for the views of `aug_splits` to the loss",
        aliases=("--jsd-loss",),
        recipe=True,
    )
    model_ema: bool = option(
        False, "also keep an exponential moving average of the weights, saved as model-ema.pkl", recipe=True
    )
    model_ema_decay: FractionBelow1 = option(0.9998, "fraction of the average that is kept in each iteration", recipe=True)
    model_ema_warmup: bool = option(False, "start with a smaller `model_ema_decay` that grows to its value", recipe=True)
    model_ema_force_cpu: bool = option(False, "keep the average in host memory; every iteration waits for the copy")
    recalibration_images: Count = option(
        RECALIBRATION_IMAGES,
        "average the batch-norm statistics after the last iteration over at most this many training images",
        recipe=True,
    )
    seed: Natural = option(0, "seed of the initial weights, the order of samples and the augmentation", recipe=True)


@group("learning-rate schedule")
class ScheduleConfig:
    """The learning rate as a function of the iteration."""

    sched: Literal["linear", "cosine", "step", "multistep", "tanh", "poly", "plateau", "constant"] = option(
        "linear", "shape of the decay of the learning rate", recipe=True
    )
    warmup_iters: Iterations = option(
        0, "number of iterations in which the rate rises from `warmup_lr` to that of the schedule", recipe=True
    )
    warmup_lr: NonNegative = option(1e-6, "learning rate at the start of the warm-up", recipe=True)
    min_lr: NonNegative = option(0.0, "lowest learning rate of the schedule", aliases=("--lr-min",), recipe=True)
    decay_iters: Count | None = option(None, "number of iterations between two steps of the step schedule", recipe=True)
    decay_milestones: Counts = option((), "iterations of the steps of the multistep schedule", recipe=True)
    decay_rate: Positive | None = option(
        None,
        "factor of a step (default: 0.1), or exponent of the poly schedule (default: 1)",
        aliases=("--dr", "--lr-gamma"),
        recipe=True,
    )
    cooldown_iters: Iterations = option(0, "number of iterations at `min_lr` at the end of the run", recipe=True)
    patience_iters: Count = option(
        10_000, "plateau schedule: number of iterations without a better validation before a step", recipe=True
    )
    lr_noise: OneOrTwoFractions | None = option(
        None, "vary the learning rate at random, from this fraction of the run on, or between two fractions", recipe=True
    )
    lr_noise_pct: FractionAbove0 = option(0.67, "largest random change, as a fraction of the learning rate", recipe=True)
    lr_noise_std: Positive = option(1.0, "standard deviation of the random change", recipe=True)
    lr_cycle_mul: Factor = option(1.0, "length of a cycle as a multiple of the one before", recipe=True)
    lr_cycle_limit: Cycles = option(1, "number of cycles of the cosine, tanh and poly schedules", recipe=True)
    lr_cycle_decay: FractionAbove0 = option(
        0.5, "highest learning rate of a cycle as a multiple of that of the cycle before", recipe=True
    )
