"""Options of the network, its losses, its optimizer and the learning-rate schedule."""

from typing import Literal

from .fields import group, option
from .types import (
    Betas,
    Count,
    Counts,
    File,
    FractionAbove0,
    FractionBelow1,
    Names,
    Natural,
    NonNegative,
    OneOrTwoFractions,
    Positive,
    Probability,
    Text,
)

REFERENCE_BATCH_SIZE = 1024
REFERENCE_LEARNING_RATE = 0.5
REFERENCE_ITERS = 300_000


@group("model")
class ModelConfig:
    """The network."""

    model_size: Literal["0.5x", "1.0x", "1.5x", "2.0x"] = option(
        "1.5x", "width of the network", aliases=("--model",), recipe=True
    )
    gp: Literal["avg", "max", "avgmax", "catavgmax"] = option("avg", "global pooling before the classifier", recipe=True)
    drop: FractionBelow1 | None = option(
        None, "dropout rate before the classifier; default: 0.2 for 2.0x, 0 for the others", recipe=True
    )
    drop_path: FractionBelow1 = option(
        0.0,
        "stochastic-depth rate of the last unit; it falls linearly to 0 at the first",
        aliases=("--drop-connect",),
        recipe=True,
    )
    drop_block: FractionBelow1 = option(0.0, "DropBlock rate in the last two stages", recipe=True)
    bn_momentum: FractionAbove0 | None = option(None, "momentum of batch norm; default: 0.1", recipe=True)
    bn_eps: Positive | None = option(None, "epsilon of batch norm; default: 1e-5", recipe=True)
    bn_tf: bool = option(False, "use TensorFlow's batch-norm settings: momentum 0.01, epsilon 1e-3", recipe=True)
    sync_bn: bool = option(False, "compute batch-norm statistics over the batches of all processes (one GPU each)", recipe=True)
    dist_bn: Literal["broadcast", "reduce"] = option(
        "broadcast", "running batch-norm statistics of several processes: those of the first, or their average", recipe=True
    )
    split_bn: bool = option(False, "keep separate batch-norm statistics for each view of `aug_splits`", recipe=True)


@group("fine-tuning")
class FineTuningConfig:
    """Training that starts from given weights."""

    initial_checkpoint: File = option(
        "", "weight file to start from; a classifier for other classes is initialised anew", recipe=True
    )
    pretrained: bool = option(False, "start from the weights that torchvision publishes (they are downloaded)", recipe=True)
    freeze: Names = option(
        (),
        "parts not to train: stem, stage2, stage3, stage4, conv_last, backbone (everything but the classifier), or the name "
        "of a module",
        recipe=True,
    )
    backbone_lr_scale: Positive = option(
        1.0, "learning rate of everything but the classifier, as a multiple of the classifier's", recipe=True
    )


@group("distillation")
class DistillationConfig:
    """A second network whose outputs are learnt as well."""

    teacher: Text = option(
        "",
        "classifier to learn from as well: a weight file of this program, or a model name of torchvision or timm",
        recipe=True,
    )
    teacher_checkpoint: File = option(
        "", "weights of the teacher, trained on the same classes; default: its published weights", recipe=True
    )
    distill_alpha: Probability = option(0.5, "weight of the teacher's part of the loss", recipe=True)
    distill_temperature: Positive = option(4.0, "temperature by which both networks' logits are divided", recipe=True)


@group("optimisation")
class OptimizationConfig:
    """Length of the run, batch size, optimizer and loss."""

    total_iters: Count = option(None, f"number of iterations; default: {REFERENCE_ITERS:,}", recipe=True)
    epochs: Positive | None = option(None, "length in passes over the training images, instead of `total_iters`")
    batch_size: Count = option(
        REFERENCE_BATCH_SIZE, "images per iteration, over all GPUs and processes", short="-b", recipe=True
    )
    grad_accum_steps: Count = option(
        1, "number of equal parts into which the batch is divided to save memory; their gradients add up", recipe=True
    )
    learning_rate: Positive = option(
        None, "highest learning rate; default: 0.5 x batch size / 1024, which is for SGD", aliases=("--lr",), recipe=True
    )
    opt: Text = option("sgd", "optimizer: sgd, nesterov, adamw, lamb, rmsproptf, or another name that timm has", recipe=True)
    opt_eps: Positive | None = option(None, "epsilon of the optimizer; default: the optimizer's own", recipe=True)
    opt_betas: Betas | None = option(None, "betas of the optimizer; default: the optimizer's own", recipe=True)
    momentum: FractionBelow1 = option(0.9, "momentum of SGD-type optimizers", recipe=True)
    weight_decay: NonNegative = option(
        4e-5, "weight decay of parameters with more than one dimension; biases and batch norm have none", recipe=True
    )
    clip_grad: Positive | None = option(None, "limit for the gradients, measured as `clip_mode` says", recipe=True)
    clip_mode: Literal["norm", "value", "agc"] = option(
        "norm", "limit the norm of all gradients, each value, or each unit relative to its weights (adaptive)", recipe=True
    )
    label_smooth: FractionBelow1 = option(
        0.1, "label smoothing: fraction of the target spread over all classes", aliases=("--smoothing",), recipe=True
    )
    bce_loss: bool = option(False, "use the binary cross-entropy of each class as the loss", recipe=True)
    jsd: bool = option(
        False, "add the Jensen-Shannon divergence between the outputs for the views of `aug_splits` to the loss", recipe=True
    )
    model_ema: bool = option(
        False, "also keep an exponential moving average of the weights, saved as model-ema.pkl", recipe=True
    )
    model_ema_decay: FractionBelow1 = option(0.9998, "fraction of the average that is kept in each iteration", recipe=True)
    model_ema_warmup: bool = option(False, "start with a smaller `model_ema_decay` that grows to its value", recipe=True)
    model_ema_force_cpu: bool = option(False, "keep the average in host memory; every iteration waits for the copy")
    seed: Natural = option(0, "seed of the initial weights, the order of samples and the augmentation", recipe=True)


@group("learning-rate schedule")
class ScheduleConfig:
    """The learning rate as a function of the iteration."""

    sched: Literal["linear", "cosine", "step", "multistep", "tanh", "poly", "plateau", "constant"] = option(
        "linear", "shape of the decay of the learning rate", recipe=True
    )
    warmup_iters: Natural = option(
        0, "number of iterations in which the rate rises from `warmup_lr` to that of the schedule", recipe=True
    )
    warmup_lr: NonNegative = option(1e-6, "learning rate at the start of the warm-up", recipe=True)
    min_lr: NonNegative = option(0.0, "lowest learning rate of the schedule", recipe=True)
    decay_iters: Count | None = option(None, "number of iterations between two steps of the step schedule", recipe=True)
    decay_milestones: Counts = option((), "iterations of the steps of the multistep schedule", recipe=True)
    decay_rate: Positive | None = option(
        None, "factor of a step (default: 0.1), or exponent of the poly schedule (default: 1)", recipe=True
    )
    cooldown_iters: Natural = option(0, "number of iterations at `min_lr` at the end of the run", recipe=True)
    patience_iters: Count = option(
        10_000, "plateau schedule: number of iterations without a better top-1 accuracy before a step", recipe=True
    )
    lr_noise: OneOrTwoFractions | None = option(
        None, "vary the learning rate at random, from this fraction of the run on, or between two fractions", recipe=True
    )
    lr_noise_pct: FractionAbove0 = option(0.67, "largest random change, as a fraction of the learning rate", recipe=True)
    lr_noise_std: Positive = option(1.0, "standard deviation of the random change", recipe=True)
    lr_cycle_mul: Positive = option(1.0, "length of a cycle as a multiple of the one before", recipe=True)
    lr_cycle_limit: Count = option(1, "number of cycles of the cosine, tanh and poly schedules", recipe=True)
    lr_cycle_decay: FractionAbove0 = option(
        0.5, "highest learning rate of a cycle as a multiple of that of the cycle before", recipe=True
    )
