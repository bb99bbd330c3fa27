"""What a run prints at its start: what it will do."""

from pathlib import Path

import torchinfo

from .. import data
from ..config import Config, describe_size, height_width, split_interval
from ..engine import Trainer
from ..report import RunLog
from ..terminal import in_time
from .parser import spell_options

OPTIONS_FILE = "options.yaml"


def log_description(log: RunLog, config: Config, trainer: Trainer) -> None:
    """Log the network, the data, and the values that were derived from other options; the table of layers to train.log only."""
    table = torchinfo.summary(
        trainer.state.network,
        (1, config.model.in_chans, *height_width(config.data.input_size)),
        depth=2,
        mode="eval",
        device=trainer.devices.first,
        verbose=0,
        col_names=("output_size", "num_params", "mult_adds"),
    )
    # torchinfo prints the name of an enum since Python 3.11.
    log.detail(*str(table).replace("(Units.MEGABYTES)", "(M)").split("\n"))
    network = f"ShuffleNetV2 {config.model.model_size} at {describe_size(config.data.input_size)}"
    log.info(f"{network}: {table.total_params:,} parameters, {table.total_mult_adds / 1e6:,.1f} M mult-adds")
    for name, text in _description(config, trainer, log.folder).items():
        log.info(f"  {name:<12}{spell_options(text, {})}")
    for note in config.notes:
        log.info(f"  {spell_options(note, {})}")
    is_balanced = bool(config.data.balanced_sampling or config.optimization.class_weights)
    for problem in data.find_problems(trainer.train_set, trainer.val_set, is_balanced=is_balanced):
        log.warning(spell_options(problem, {}))


def _description(config: Config, trainer: Trainer, log_folder: Path | None) -> dict[str, str]:
    optimization, run = config.optimization, config.run
    train_set, val_set = trainer.train_set, trainer.val_set
    source = config.data.train_dir or config.data.dataset
    validation = "none (`val_dir` is not given)" if run.validate else "none (`validate=False`)"
    if val_set:
        held_out = f"{config.data.val_fraction:g} of the training images" if config.data.val_fraction else ""
        place = held_out or config.data.val_dir or config.data.dataset
        interval = "iteration" if run.val_interval == 1 else f"{run.val_interval:,} iterations"
        validation = f"{len(val_set):,} images ({place}), every {interval}"
    epochs = optimization.total_iters * (optimization.batch_size or 1) / len(train_set)
    batches = "1 batch" if optimization.total_iters == 1 else f"{optimization.total_iters:,} batches"
    batches += f" of {optimization.batch_size:,} ({epochs:,.1f} epochs)"
    schedule = f"{optimization.opt}, rate {optimization.learning_rate:.4g}, {config.schedule.sched}"
    iterations, seconds = split_interval(run.save_interval)
    intervals = [f"{iterations:,} iterations"] * bool(iterations) + [in_time(seconds or 0)] * bool(seconds)
    threads = "threads load" if trainer.workers > 1 else "thread loads"
    return {
        "training": f"{len(train_set):,} images in {len(train_set.class_names):,} classes ({source})",
        "classes": data.describe_classes(train_set),
        "validation": validation,
        "schedule": f"{batches}; {schedule}",
        "device": f"{trainer.devices}; {trainer.workers} {threads} images",
        "results": f"{config.common.save}, a checkpoint every {' or '.join(intervals)}",
        "log": str(log_folder),
    }
