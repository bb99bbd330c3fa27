"""What `train.py` does, once it knows what is wanted: train, evaluate, or measure."""

import time
from contextlib import ExitStack, closing
from pathlib import Path

import torch
import torchinfo

from .. import files
from ..config import REFERENCE_BATCH_SIZE, Config, default_learning_rate
from ..config.declaration import OptionsError
from ..data import DataIterator, Dataset
from ..engine import Devices, GracefulShutdown, ShutdownRequested, checkpoint, choose_devices, distributed, train_step
from ..engine.identity import is_finished
from ..engine.trainer import TrainingRun, report_evaluation
from ..network import SMALLEST_INPUT, ShuffleNetV2
from ..report import RunLog
from ..weights import Preprocessing, Weights, WeightsError
from ..weights.conversion import read_any
from . import build

BATCHES_MEASURED = 20


def run_training(options: Config) -> int:
    """Trains to the end, from the newest checkpoint if there is one, and writes `model.pkl`.

    Returns:
        The exit status: 0, or that of the signal which ended the run early, with a checkpoint saved.
    """
    devices = choose_devices(options.device, build.execution(options))
    with distributed.init_process_group(devices.first):
        return _train(options, devices)  # which leaves nothing behind that the processes have in common


def _train(options: Config, devices: Devices) -> int:
    folder = Path(options.save)
    log_folder = Path(options.log_dir) / folder.resolve().name
    with ExitStack() as stack:
        parts = distributed.world_size() * options.grad_accum_steps
        if options.batch_size % parts:
            raise OptionsError(
                f"--batch-size {options.batch_size} cannot be divided among {distributed.world_size()} processes"
                + (f" and --grad-accum-steps {options.grad_accum_steps}" if options.grad_accum_steps > 1 else "")
            )
        if options.batch_size == parts and (options.train_crop_size or options.input_size) <= SMALLEST_INPUT:
            raise OptionsError(f"batch norm cannot learn from single images of {SMALLEST_INPUT} pixels; raise --batch-size")
        train_set, val_set = build.data_sets(options)
        if options.sched == "plateau" and val_set is None:
            raise OptionsError("--sched plateau looks at the validation, and needs --val-dir or --val-fraction")
        options, initial = build.initial_weights(options.with_length(len(train_set)))
        first = distributed.rank() == 0
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.lock_folder(folder))
        log = stack.enter_context(RunLog(log_folder) if first else RunLog(silent=True))
        if first and not options.auto_continue and (aside := checkpoint.set_aside(folder)):
            log.info(f"starting over; the earlier results are in {aside}")
        if distributed.broadcast_from_rank0(first and is_finished(options, train_set, folder / "model.pkl")):
            log.info(f"this run is finished: {folder / 'model.pkl'} is its result; --no-auto-continue trains anew")
            return 0
        if first:
            (log_folder / "options.yaml").write_text(options.to_yaml(), encoding="utf-8")
        shutdown = GracefulShutdown()
        run = TrainingRun(options, devices, train_set, val_set, initial, folder, log, shutdown)
        if first:
            describe(log, options, devices, run.state.network, train_set, val_set)
        with shutdown:
            try:
                run.train()
                run.finish()
            except ShutdownRequested as signal:
                log.info(
                    f"stopped by {signal} after iteration {run.state.iteration}; the command goes on from there"
                    + ("" if options.auto_continue else " if --no-auto-continue is left out")
                )
                return signal.status
    return 0


def run_evaluation(options: Config) -> int:
    """Evaluates a weight file, prints the TEST line, and leaves per-class figures in the log folder's `eval`.

    Returns:
        The exit status.
    """
    devices = choose_devices(options.device, build.execution(options))
    weights = read_any(options.eval_resume or Path(options.save) / "model.pkl")
    if "model_size" in options.explicit and options.model_size != weights.model_size:
        raise WeightsError(f"{weights.path} holds a {weights.model_size} model, and --model-size says {options.model_size}")
    preprocessing = evaluation_preprocessing(options, weights)
    val_set = build.validation_set(options, weights.class_names)
    if len(val_set.class_names) != weights.n_class:
        where = options.val_dir or options.dataset
        raise WeightsError(f"{weights.path} knows {weights.n_class} classes, and {where} has {len(val_set.class_names)}")
    model = devices.place(weights.network(preprocessing)).eval()
    with distributed.init_process_group(devices.first):
        first = distributed.rank() == 0
        with RunLog(Path(options.log_dir) / "eval") if first else RunLog(silent=True) as log:
            report_evaluation(log, model, val_set, preprocessing, options, devices, weights.iteration, final=True)
    return 0


def evaluation_preprocessing(options: Config, weights: Weights) -> Preprocessing:
    """The file's own, unless the command line says otherwise; the options where the file says nothing."""
    said = build.preprocessing(options)
    own = weights.preprocessing or said
    use = Preprocessing(
        said.input_size if "input_size" in options.explicit else own.input_size,
        said.resize_size if options.explicit & {"input_size", "resize_size", "crop_pct"} else own.resize_size,
        said.mean if "mean" in options.explicit else own.mean,
        said.std if "std" in options.explicit else own.std,
        said.interpolation if "interpolation" in options.explicit else own.interpolation,
    )
    if use.resize_size < use.input_size:
        raise OptionsError(f"--resize-size {use.resize_size} is smaller than the {use.input_size} pixels of the model's input")
    return use


def run_throughput(options: Config) -> int:
    """Prints the images per second of the network alone and of the loader alone. Returns the exit status."""
    devices = choose_devices(options.device, build.execution(options))
    train_set, _ = build.data_sets(options)
    options, initial = build.initial_weights(options.with_length(len(train_set)))
    iterator = DataIterator(
        train_set, build.train_transform(options), options.batch_size, seed=options.seed, workers=build.workers(options),
        pin_memory=devices.pin_memory,
    )  # fmt: skip
    with RunLog() as log, closing(iterator) as batches:
        for _ in range(3):  # those that were loaded ahead
            images, targets = next(batches)
        started = time.perf_counter()
        for _ in range(BATCHES_MEASURED):
            next(batches)
        loader = BATCHES_MEASURED * options.batch_size / (time.perf_counter() - started)
        batches.close()
        state = build.training_state(options, devices, train_set.class_names, log.info, initial)
        model = devices.place(state.network, training=True)
        images = images.to(devices.first)
        targets = targets.to(devices.first).repeat(len(images) // len(targets))
        loss = build.loss(options) if not options.teacher else torch.nn.CrossEntropyLoss()
        times = []
        for _ in range(BATCHES_MEASURED):
            started = time.perf_counter()
            float(train_step(model, images, targets, loss, state.optimizer, parts=options.grad_accum_steps)[0])  # waits
            times.append(time.perf_counter() - started)
        network = options.batch_size / sorted(times)[len(times) // 2]
        log.info(f"the network alone, trained on {devices}: {network:,.0f} images/s; the loader alone: {loader:,.0f} images/s")
    return 0


def describe(
    log: RunLog, options: Config, devices: Devices, network: ShuffleNetV2, train_set: Dataset, val_set: Dataset | None
) -> None:
    """Says at the start what is about to be trained."""
    side = options.input_size
    summary = torchinfo.summary(
        network, (1, 3, side, side), depth=2, mode="eval", device=devices.first, verbose=0,
        col_names=("output_size", "num_params", "mult_adds"),
    )  # fmt: skip
    table = str(summary).replace("(Units.MEGABYTES)", "(M)")  # what torchinfo prints since Python 3.11
    log.info(f"ShuffleNetV2 {options.model_size} at {side} x {side} pixels\n{table}")
    reason = "no --val-dir" if options.validate else "--no-validate"
    validation = f"validated on {len(val_set):,}" if val_set else f"without validation ({reason})"
    log.info(f"{len(train_set):,} images in {len(train_set.class_names)} classes, {validation}; training on {devices}")
    for note in options.notes:
        log.info(note)
    if options.learning_rate == default_learning_rate(options.batch_size) and options.batch_size != REFERENCE_BATCH_SIZE:
        log.info(f"learning rate {options.learning_rate:g}: 0.5 x batch size {options.batch_size} / {REFERENCE_BATCH_SIZE}")
