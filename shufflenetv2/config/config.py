"""All options of a training run: validation, constraints between options, and defaults that depend on other options."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

import yaml

from ..errors import UserError, nearest
from ..files import nearest_path
from .augmentation import AugmentationConfig
from .data import DataConfig
from .fields import Option, in_words, is_group, options_of, validate
from .model import DistillationConfig, FineTuningConfig, ModelConfig
from .pixels import normalization_constraints, read_channels, resolve_pixels
from .run import REFERENCE_VAL_INTERVAL, CommonConfig, EvaluationConfig, ExecutionConfig, RunConfig
from .training import (
    REFERENCE_BATCH_SIZE,
    REFERENCE_ITERS,
    REFERENCE_LEARNING_RATE,
    OptimizationConfig,
    ScheduleConfig,
)
from .types import split_interval

REFERENCE_JITTER = 0.4
REFERENCE_CROP = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
KEPT_RATIO_CROP = {"scale": (0.8, 1.0), "ratio": (0.9, 1 / 0.9)}  # timm's defaults of rkrc and rkrr
MAX_VAL_BATCH_SIZE = 256  # unless `val_batch_size` is given
VALIDATION_FOLDERS = ("val", "validation", "valid")  # in `data_dir`; the first that exists
SGD_OPTIMIZERS = ("sgd", "nesterov", "momentum")


@dataclass(frozen=True)
class GivenRate:
    """A learning rate that was given for another batch size than that of the run.

    Attributes:
        name: of the option.
        batch_size: for which the rate was given.
        source: file that gives it.
    """

    name: str
    batch_size: int
    source: str


@dataclass(frozen=True)
class Config:
    """The options in their groups.

    `from_values` returns a resolved config: options whose default depends on other options have their value. What depends
    on data as well is filled in by `with_length` and `with_normalization`, and what depends on the free memory
    (`batch_size` auto) by `with_batch_size`.

    Attributes:
        explicit: names of the options given by the caller or on the command line. In an evaluation these take precedence
            over what the weight file records, which takes precedence over a YAML file.
        notes: lines for the log about values that were derived from other options.
        given_rates: learning rates to scale to the batch size of the run.
    """

    common: CommonConfig
    data: DataConfig
    augmentation: AugmentationConfig
    model: ModelConfig
    fine_tuning: FineTuningConfig
    distillation: DistillationConfig
    optimization: OptimizationConfig
    schedule: ScheduleConfig
    execution: ExecutionConfig
    run: RunConfig
    evaluation: EvaluationConfig
    explicit: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    given_rates: tuple[GivenRate, ...] = ()

    @classmethod
    def from_values(
        cls, values: Mapping[str, Any], *, explicit: Iterable[str] | None = None, given_rates: Iterable[GivenRate] = ()
    ) -> "Config":
        """Validate values by name of option, check them against each other, and resolve defaults.

        Args:
            values: texts as on a command line, or Python values; None leaves an option at its default.
            explicit: see the attribute; default: all of them.
            given_rates: see the attribute; the rates themselves are among `values`.

        Raises:
            UserError: for an unknown name, a value that is not accepted, or options that contradict each other.
        """
        for name in values:
            if name not in GROUP_OF:
                near = nearest(name, GROUP_OF)
                raise UserError(f"unknown option {name!r}" + (f"; did you mean {near!r}?" if near else ""))
        names = frozenset(values if explicit is None else explicit)
        given, values = values, read_channels(values)
        if "input_size" in names:
            names |= values.keys() - given.keys()
        groups: dict[str, Any] = {
            attribute: validate(group, {name: value for name, value in values.items() if GROUP_OF[name] == attribute})
            for attribute, group in GROUPS.items()
        }
        config = cls(**groups, explicit=names, given_rates=tuple(given_rates))
        check(config)
        return _resolved(config)

    def values(self) -> dict[str, Any]:
        """Return the value of every option by its name."""
        return {name: getattr(getattr(self, attribute), name) for name, attribute in GROUP_OF.items()}

    def recipe(self) -> dict[str, Any]:
        """Return the values of the options that decide the result of a run; checkpoints hold them in this form."""
        names = [option.name for option in OPTIONS if option.recipe]
        if self.schedule.sched == "plateau" or self.run.early_stop_iters:
            names += ["val_interval", "eval_metric"]  # validations decide when the learning rate falls, or the run ends
        return {name: getattr(getattr(self, GROUP_OF[name]), name) for name in names}

    @property
    def needs_validation(self) -> list[str]:
        """The options given, as messages write them, that have an effect only with validation results."""
        given = {
            "`sched` plateau": self.schedule.sched == "plateau",
            "`early_stop_iters`": self.run.early_stop_iters,
            "`checkpoint_by` metric": self.run.checkpoint_by == "metric",
        }
        return [option for option, is_given in given.items() if is_given]

    def replace(self, **values: Any) -> "Config":
        """Return a config in which these options have other values, without validation."""
        changed = {
            attribute: replace(getattr(self, attribute), **mine)
            for attribute in GROUPS
            if (mine := {name: value for name, value in values.items() if GROUP_OF[name] == attribute})
        }
        return replace(self, **changed)

    @property
    def val_batch_size(self) -> int:
        """The number of images in a validation batch, per process."""
        return self.data.val_batch_size or min(self.optimization.batch_size or REFERENCE_BATCH_SIZE, MAX_VAL_BATCH_SIZE)

    def with_batch_size(self, batch_size: int) -> "Config":
        """Return a config with this batch size, and with the learning rates that follow from it."""
        rates: dict[str, float] = {}
        notes = list(self.notes)
        for given in self.given_rates:
            rate = getattr(getattr(self, GROUP_OF[given.name]), given.name)
            if rate and batch_size != given.batch_size:
                rates[given.name] = scaled = rate * batch_size / given.batch_size
                what = given.name.replace("_", " ").replace("lr", "learning rate")
                before = f"{given.source} gives {rate:g} for batch size {given.batch_size}"
                notes.append(f"{what} {scaled:g} for batch size {batch_size}: {before}")
        if self.optimization.learning_rate is None:
            rates["learning_rate"] = rate = REFERENCE_LEARNING_RATE * batch_size / REFERENCE_BATCH_SIZE
            if batch_size != REFERENCE_BATCH_SIZE:
                batch_sizes = f"{batch_size} / {REFERENCE_BATCH_SIZE}"
                notes.append(f"learning rate {rate:g}: {REFERENCE_LEARNING_RATE} x batch size {batch_sizes}")
        return replace(self, notes=tuple(notes), given_rates=()).replace(batch_size=batch_size, **rates)

    def with_length(self, images: int) -> "Config":
        """Return a config in which the length is in iterations, for this number of training images."""
        total_iters, epochs = self.optimization.total_iters, self.optimization.epochs
        if epochs is not None:
            total_iters = max(1, round(epochs * images / self.optimization.batch_size))
        val_interval = self.run.val_interval or min(REFERENCE_VAL_INTERVAL, math.ceil(total_iters / 10))
        return self.replace(total_iters=total_iters, epochs=None, val_interval=val_interval)

    def with_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Config":
        """Return a config in which a mean or standard deviation that was left to the initial weights has this value."""
        return self.replace(mean=self.data.mean or mean, std=self.data.std or std)

    def to_yaml(self) -> str:
        """Return a file for `--config` with all options in their groups; options that are not set are left out."""
        lines = []
        heading = ""
        for option in OPTIONS:
            if option.heading != heading:
                heading = option.heading
                lines.append(f"# {heading}")
            value = getattr(getattr(self, GROUP_OF[option.name]), option.name)
            if value not in (None, "", ()) and option.name != "config":
                plain = list(value) if isinstance(value, tuple) else value
                # Other than in double quotes, a line break in a text would be one in the file.
                style = '"' if isinstance(plain, str) and not plain.isprintable() else None
                text = yaml.safe_dump(plain, default_flow_style=True, default_style=style, width=math.inf, allow_unicode=True)
                lines.append(f"{option.key}: {text.splitlines()[0]}")
        return "\n".join(lines) + "\n"


GROUPS: dict[str, type] = {name: cls for name, cls in get_type_hints(Config).items() if is_group(cls)}
OPTIONS: list[Option] = options_of(*GROUPS.values())
GROUP_OF = {option.name: attribute for attribute, group in GROUPS.items() for option in options_of(group)}
DEFAULTS = {option.name: option.default for option in OPTIONS}


# Options that have no effect without another one.
REQUIRES = {
    "amp_dtype": "amp",
    "checkpoint_by": "checkpoint_hist",
    "bce_target_thresh": "bce_loss",
    "distill_alpha": "teacher",
    "distill_temperature": "teacher",
    "model_ema_decay": "model_ema",
    "model_ema_force_cpu": "model_ema",
    "recount": "reprob",
    "remode": "reprob",
    "tta": "eval",
    "use_ema": "eval",
    "warmup_lr": "warmup_iters",
}


def describe_changes(options: Mapping[str, Sequence[Any]]) -> str:
    """Describe changed values of options, {name: (before, now)}, in one line for the log."""
    return ", ".join(
        f"{name.replace('_', '-')} {in_words(before)} -> {in_words(now)}" for name, (before, now) in options.items()
    )


def check(config: Config) -> None:
    """Check options against each other.

    Raises:
        UserError: for options that contradict each other, or that have no effect without another one.
    """
    for violated, message in constraints(config):
        if violated:
            raise UserError(message)
    values = config.values()
    for name, required in REQUIRES.items():
        if values[name] != DEFAULTS[name] and not values[required]:
            raise UserError(f"`{name}` has no effect without `{required}`; leave it out, or give both")


def constraints(config: Config) -> list[tuple[bool, str]]:
    """Return the constraints between options: whether each is violated, and the message in that case."""
    augmentation, model, fine_tuning = config.augmentation, config.model, config.fine_tuning
    optimization, execution, run, evaluation = config.optimization, config.execution, config.run, config.evaluation
    mixes = bool(augmentation.mixup or augmentation.cutmix or augmentation.cutmix_minmax)
    splits = augmentation.aug_splits > 0
    changes_colours = bool(augmentation.grayscale_prob or augmentation.gaussian_blur_prob)
    augments = bool(augmentation.aa or augmentation.reprob or splits or augmentation.vflip or changes_colours)
    return [
        (
            bool(evaluation.eval_resume) and not evaluation.eval,
            "`eval_resume` names weights to evaluate, and nothing is evaluated without `eval`",
        ),
        (
            config.data.val_split.replace(".", "", 1).isdecimal() and config.data.dataset == "folder",
            "`val_split` is the name of a split; `val_fraction` holds out a part of the training images",
        ),
        (
            bool(optimization.epochs and optimization.total_iters),
            "`epochs` and `total_iters` both give the length of the run; leave one out",
        ),
        (optimization.jsd and not splits, "`jsd` compares the views of an image, and needs `aug_splits=3`"),
        (model.split_bn and not splits, "`split_bn` is for the views of an image, and needs `aug_splits`"),
        (augmentation.resplit and not splits, "`resplit` is for the first of several views, and needs `aug_splits`"),
        (
            mixes and optimization.jsd,
            "`mixup` or `cutmix` cannot be combined with `jsd`, which needs images of one class; leave one out",
        ),
        (mixes and splits, "`mixup` or `cutmix` would mix the views of `aug_splits`; leave one out"),
        (
            optimization.bce_target_thresh is not None and bool(optimization.class_weights or optimization.focal_gamma),
            "`bce_target_thresh` cannot be combined with `class_weights` or `focal_gamma`; leave one out",
        ),
        (
            bool(optimization.loss)
            and bool(optimization.bce_loss or optimization.jsd or optimization.focal_gamma or optimization.class_weights),
            "`loss` replaces cross-entropy; leave `bce_loss`, `jsd`, `focal_gamma` and `class_weights` out",
        ),
        (optimization.jsd and optimization.bce_loss, "`jsd` includes cross-entropy; leave `bce_loss` out"),
        (
            augmentation.no_aug and augmentation.train_crop_mode != "rrc",
            "`no_aug` crops training images like validation images; leave `train_crop_mode` out",
        ),
        (augmentation.no_aug and augments, "`no_aug` turns augmentation off; leave the options of augmentation out"),
        (bool(augmentation.mixup_off_iter) and not mixes, "`mixup_off_iter` has no effect without `mixup` or `cutmix`"),
        (
            optimization.grad_accum_steps > 1 and splits,
            "`grad_accum_steps` would separate the views of `aug_splits`; leave one out",
        ),
        (
            (optimization.batch_size or 0) % optimization.grad_accum_steps > 0,
            f"`batch_size` {optimization.batch_size} cannot be divided into `grad_accum_steps` {optimization.grad_accum_steps}",
        ),
        (
            optimization.clip_mode != "norm" and not optimization.clip_grad,
            "`clip_mode` has no effect without a limit; give `clip_grad` too",
        ),
        (execution.torchscript and model.sync_bn, "`torchscript` cannot be combined with `sync_bn`; leave one out"),
        (execution.torchscript and model.split_bn, "`torchscript` cannot be combined with `split_bn`; leave one out"),
        (
            execution.torchscript and bool(execution.torchcompile),
            "`torchscript` cannot be combined with `torchcompile`; leave one out",
        ),
        (
            model.bn_tf and bool(model.bn_eps or model.bn_momentum),
            "`bn_tf` sets what `bn_eps` and `bn_momentum` set; leave it or these out",
        ),
        (model.sync_bn and model.split_bn, "`sync_bn` cannot be combined with `split_bn`; leave one out"),
        (
            bool(fine_tuning.pretrained and fine_tuning.initial_checkpoint),
            "`pretrained` and `initial_checkpoint` both give the weights to start from; leave one out",
        ),
        (
            bool(config.distillation.teacher_checkpoint) and not config.distillation.teacher,
            "`teacher_checkpoint` holds weights of a `teacher`, which is missing",
        ),
        (
            config.data.balanced_sampling and optimization.class_weights in ("balanced", "sqrt"),
            f"`class_weights` {optimization.class_weights} is for classes that are drawn in proportion to their images, and "
            "`balanced_sampling` draws all equally often; leave one out",
        ),
        *(
            (
                bool(config.distillation.teacher) and config.distillation.distill_alpha == 1 and bool(value),
                f"`{name}` has no effect with `distill_alpha=1`, which leaves the targets out of the loss; leave one out",
            )
            for name, value in (("class_weights", optimization.class_weights), ("focal_gamma", optimization.focal_gamma))
        ),
        (not run.resume_opt and not run.resume, "`resume_opt` has no effect without `resume`"),
        (
            optimization.model_ema_warmup and not optimization.model_ema,
            "`model_ema_warmup` has no effect without `model_ema`; leave it out, or give both",
        ),
        (
            bool(config.needs_validation) and not run.validate,
            f"{next(iter(config.needs_validation), '')} needs validation results, and `validate=False` rules them out; "
            "leave one out",
        ),
        (
            bool(run.recovery_interval) and split_interval(run.save_interval)[0] is None,
            "`recovery_interval` needs a `save_interval` in iterations, by which the two kinds of checkpoints differ",
        ),
        (evaluation.eval and run.throughput, "`eval` cannot be combined with `throughput`; leave one out"),
        *normalization_constraints(config.data, model.in_chans, evaluates=evaluation.eval),
        (
            model.in_chans == 1 and bool(augmentation.grayscale_prob),
            "`grayscale_prob` has no effect on grey images (`in_chans=1`); leave it out",
        ),
    ]


def _resolved(config: Config) -> Config:
    """Fill in the defaults that depend on other options."""
    config = replace(config, data=_resolved_data(config))
    data, optimization, evaluates = config.data, config.optimization, config.evaluation.eval
    starts_from_weights = bool(config.fine_tuning.initial_checkpoint or config.fine_tuning.pretrained) and not evaluates
    pixels = resolve_pixels(data, config.model.in_chans, evaluates=evaluates, starts_from_weights=starts_from_weights)
    if optimization.learning_rate is None and optimization.opt not in SGD_OPTIMIZERS and not evaluates:
        raise UserError(f"`opt` {optimization.opt} needs a `learning_rate`: the default is for sgd")
    crop = REFERENCE_CROP if config.augmentation.train_crop_mode == "rrc" else KEPT_RATIO_CROP
    jitter = 0.0 if config.augmentation.aa else REFERENCE_JITTER
    common = config.common
    if optimization.batch_size is not None:  # else auto
        config = config.with_batch_size(optimization.batch_size)
    return config.replace(
        **pixels,
        total_iters=optimization.total_iters or (0 if optimization.epochs else REFERENCE_ITERS),
        scale=config.augmentation.scale or crop["scale"],
        ratio=config.augmentation.ratio or crop["ratio"],
        color_jitter=config.augmentation.color_jitter or (jitter,) * 3,
        eval_resume=config.evaluation.eval_resume or (config.run.resume if evaluates else ""),
        save=os.path.join(common.save, common.experiment) if common.experiment else common.save,
        experiment="",  # now part of `save`
    )


def _resolved_data(config: Config) -> DataConfig:
    """Fill in the folders of images."""
    data, evaluates = config.data, config.evaluation.eval
    if data.dataset != "folder":
        for name in ("train_dir", "val_dir", "class_map"):
            if getattr(data, name):
                raise UserError(f"`{name}` is for `dataset=folder`; {data.dataset} has its own images and classes")
        if data.dataset == "digits" and data.data_dir:
            raise UserError("`data_dir` has no effect: the digits are built in; leave it out")
        if data.dataset != "digits" and ":" not in data.dataset and not data.data_dir:
            raise UserError(f"`data_dir` is missing: the folder that holds {data.dataset}, or into which to download it")
        return data
    if data.dataset_download:
        raise UserError("`dataset_download` needs a `dataset` by name")
    if data.data_dir:
        if not os.path.isdir(data.data_dir) and (near := nearest_path(data.data_dir, is_folder=True)):
            raise UserError(f"`data_dir` {data.data_dir} is not a folder; did you mean {near}?")
        train_dir = data.train_dir or os.path.join(data.data_dir, "train")
        val_dirs = [os.path.join(data.data_dir, name) for name in VALIDATION_FOLDERS]
        val_dir = next(filter(os.path.isdir, val_dirs), "" if data.val_fraction else val_dirs[0])
        if not evaluates and os.path.isdir(data.data_dir) and not os.path.isdir(train_dir):
            raise UserError(
                f"{train_dir} is missing in `data_dir` {data.data_dir}; if that is the folder of class folders, "
                f"give `train_dir={data.data_dir}`"
            )
        data = replace(
            data,
            train_dir=train_dir,
            val_dir=data.val_dir or val_dir,
            data_dir="",  # now part of the two
        )
    if data.val_fraction and data.val_dir:
        raise UserError("`val_fraction` replaces `val_dir`; leave one out")
    if evaluates and not data.val_dir and not (data.val_fraction and data.train_dir):
        raise UserError("`val_dir` is missing: the folder with one folder of images per class to evaluate on")
    if not evaluates and not data.train_dir:
        raise UserError(
            "`train_dir` is missing: a folder with one folder of images per class; "
            "to try the trainer on built-in images: `config=configs/digits.yaml`"
        )
    return data
