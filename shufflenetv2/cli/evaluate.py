"""Evaluation of a weight file: `train.py --eval`."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from ..config import Config, contains, describe_size, in_words
from ..data import BadImages, Dataset, build_evaluation_transform, build_preprocessing, worker_count
from ..engine import BadImageReport, Evaluator, choose_devices, distributed
from ..errors import UserError
from ..report import RunLog
from ..weights import Preprocessing, Weights, read_weights
from . import build


def run_evaluation(config: Config) -> int:
    """Evaluate a weight file, print the TEST line, and write the accuracy per class to the folder `eval` of the logs.

    Returns:
        The exit status.
    """
    devices = choose_devices(config.common.device, config.execution)
    weights = read_weights(
        config.evaluation.eval_resume or Path(config.common.save) / "model.pkl", use_ema=config.evaluation.use_ema
    )
    preprocessing = evaluation_preprocessing(config, weights)
    val_set = build.open_validation_set(config, weights.class_names)
    _require_matching_model(config, weights, val_set)
    model = devices.place(weights.network(preprocessing)).eval()
    with distributed.init_process_group(devices.first):
        log_folder = Path(config.common.log_dir or "logs") / "eval"
        with RunLog(log_folder) if distributed.rank() == 0 else RunLog(silent=True) as log:
            bad_images = BadImages.from_config(config.data, val_set, "validation")
            report_bad_images = BadImageReport(log, {"validation": bad_images}, is_new=True)
            evaluator = Evaluator(
                val_set,
                build_evaluation_transform(preprocessing, config.evaluation.tta),
                log,
                batch_size=config.val_batch_size,
                workers=worker_count(config.common.workers, distributed.local_world_size()),
                pin_memory=devices.pin_memory,
                bad_images=bad_images,
            )
            result = evaluator(model, weights.iteration, final=True)
            report_bad_images()
            evaluator.write_files(result, weights.iteration, str(weights.path), final=True)
    return 0


def _require_matching_model(config: Config, weights: Weights, val_set: Dataset) -> None:
    size = config.model.model_size
    if "model_size" in config.explicit and size != weights.model_size:
        raise UserError(f"{weights.path} holds a {weights.model_size} model, not `model_size` {size}; leave `model_size` out")
    if len(val_set.class_names) != weights.n_class:
        source = config.data.val_dir or config.data.dataset
        raise UserError(f"{weights.path} has {weights.n_class} classes, but {source} has {len(val_set.class_names)}")


def evaluation_preprocessing(config: Config, weights: Weights) -> Preprocessing:
    """Return the preprocessing that the file records, modified by the options that the user gave.

    If the file records no preprocessing, all values come from the options, with their defaults.
    """
    in_chans = config.model.in_chans
    if "in_chans" in config.explicit and in_chans != weights.channels:
        raise UserError(f"{weights.path} takes images with `in_chans` {weights.channels}, not {in_chans}; leave it out")
    names = {field.name for field in fields(Preprocessing)}
    if weights.preprocessing is not None:
        names &= config.explicit
        if config.explicit & {"input_size", "crop_pct"}:
            names.add("resize_size")  # its default follows from these options
    values = {name: getattr(build_preprocessing(config.data), name) for name in names}
    for name in names & {"mean", "std"}:
        values[name] = _for_each_channel(name, values[name], weights.channels)
    preprocessing = replace(weights.preprocessing_or_default(), **values)
    if not contains(preprocessing.resize_size, preprocessing.input_size):
        raise UserError(
            f"`resize_size` {in_words(preprocessing.resize_size)} is smaller than the model's input of "
            f"{describe_size(preprocessing.input_size)}"
        )
    return preprocessing


def _for_each_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return the values of an option for a model, which may have another number of channels than the options."""
    if len(values) == channels:
        return tuple(values)
    if len(set(values)) > 1:
        raise UserError(f"`{name}` {in_words(values)}: the model takes grey images, which need a single number")
    return (values[0],) * channels
