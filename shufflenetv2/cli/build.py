"""Assembly of what several commands need: data sets, initial weights, and the checks that involve all processes.

Where files may be downloaded, one process of a machine goes first, and the others find the files.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from .. import data, recipe
from ..config import REFERENCE_BATCH_SIZE, Config, describe_size, height_width
from ..data import Dataset
from ..engine import Devices, MemoryEstimate, checkpoint, distributed, estimate_memory
from ..errors import UserError
from ..network import STRIDE
from ..weights import Preprocessing, Weights


def open_datasets(config: Config) -> tuple[Dataset, Dataset | None]:
    """Open the training set and, if the run validates and there is one, the validation set.

    Raises:
        UserError: if a data set cannot be opened or has a single class, or an option needs a validation set that does not
            exist.
    """
    with distributed.local_rank0_first() if config.data.dataset_download else nullcontext():
        train_set, val_set = data.open_datasets(config.data, config.optimization.seed)
    if len(train_set.class_names) == 1:
        raise UserError(
            f"{config.data.train_dir} has a single class folder, {train_set.class_names[0]!r}; a classifier needs two or more"
        )
    if not config.run.validate:
        return train_set, None
    if config.needs_validation and val_set is None:
        raise UserError(f"{config.needs_validation[0]} needs validation results; give `val_dir` or `val_fraction`")
    return train_set, val_set


def open_validation_set(config: Config, class_names: list[str] | None) -> Dataset:
    """Open the validation set, labelled by the classes of the model."""
    with distributed.local_rank0_first() if config.data.dataset_download else nullcontext():
        return data.open_validation_set(config.data, config.optimization.seed, class_names)


def read_initial_weights(config: Config) -> tuple[Config, Weights | None]:
    """Read the weights to start from, if any; return the config with their normalization as its default."""
    with distributed.local_rank0_first() if config.fine_tuning.pretrained else nullcontext():
        weights = recipe.read_initial_weights(config.fine_tuning, config.model)
    preprocessing = (weights and weights.preprocessing) or Preprocessing()
    return config.with_normalization(*preprocessing.normalization(config.model.in_chans)), weights


def choose_batch_size(
    config: Config, devices: Devices, train_set: Dataset, weights: Weights | None
) -> tuple[Config, MemoryEstimate | None]:
    """Choose the batch size if it is `auto`: that of the run to be continued, or else the largest that fits.

    Returns:
        A config with a batch size, and the estimate if one was made.

    Raises:
        UserError: no batch size fits, or the free memory is unknown.
    """
    if config.optimization.batch_size is not None:
        return config, None
    recorded = checkpoint.recorded_options(Path(config.common.save), config.run) if distributed.rank() == 0 else {}
    if batch_size := distributed.broadcast_from_rank0(recorded.get("batch_size")):
        config = config.with_batch_size(batch_size)
        check_batch_size(config)  # the number of processes may be another
        return config, None
    limit, accum_steps = min(REFERENCE_BATCH_SIZE, len(train_set)), config.optimization.grad_accum_steps
    estimate = estimate_memory(config.with_batch_size(limit).with_length(limit), devices, train_set.class_names, weights)
    if not estimate.is_free_memory_known:
        raise UserError(f"`batch_size` auto: the free memory of {devices} is not known; give a number")
    if (batch_size := estimate.largest_batch_size(limit, accum_steps)) is None:
        smallest = distributed.world_size() * accum_steps
        estimate.require_fit(smallest, accum_steps)
        raise UserError(f"`batch_size` auto: {limit} images cannot be divided into {smallest} parts")
    config = config.with_batch_size(batch_size)
    check_batch_size(config)
    return config, estimate


def check_memory(
    config: Config, devices: Devices, train_set: Dataset, weights: Weights | None, estimate: MemoryEstimate | None = None
) -> Config:
    """Check that a run fits into the free memory; return the config with a line for the log about it.

    Raises:
        UserError: it does not fit; names what would.
    """
    estimate = estimate or estimate_memory(config, devices, train_set.class_names, weights)
    batch_size, accum_steps = config.optimization.batch_size, config.optimization.grad_accum_steps
    is_continued = config.run.auto_continue and bool(checkpoint.list_checkpoints(Path(config.common.save)))
    estimate.require_fit(batch_size, accum_steps, is_continued=is_continued)
    return replace(config, notes=(*config.notes, estimate.describe(batch_size, accum_steps)))


def check_batch_size(config: Config) -> None:
    """Check that the batch can be divided among processes and accumulation steps, into parts that batch norm can learn from.

    Raises:
        UserError: if not.
    """
    processes = distributed.world_size()
    batch_size, accum_steps = config.optimization.batch_size, config.optimization.grad_accum_steps
    if batch_size is None:  # auto: chosen such that it can be divided
        return
    if batch_size % (processes * accum_steps):
        raise UserError(
            f"`batch_size` {batch_size} cannot be divided among {processes} processes"
            + (f" and `grad_accum_steps` {accum_steps}" if accum_steps > 1 else "")
        )
    input_size = config.data.train_crop_size or config.data.input_size
    if batch_size == processes * accum_steps and max(height_width(input_size)) <= STRIDE:
        raise UserError(f"batch norm cannot learn from single images of {describe_size(input_size)}; raise `batch_size`")
