"""Training: `train.py` without `--eval` or `--throughput`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import yaml

from .. import data, files, terminal
from ..config import CommonConfig, Config, read_yaml
from ..engine import (
    Checkpointer,
    GracefulShutdown,
    RunIdentity,
    ShutdownRequested,
    Trainer,
    checkpoint,
    choose_devices,
    distributed,
    results,
)  # fmt: skip
from ..errors import UserError
from ..report import MLflow, OpenRecorder, RunDescription, RunLog, Session, TensorBoard, Wandb, next_commands, require_package
from ..weights import BEST, RESULT
from . import build
from .description import OPTIONS_FILE, log_description
from .parser import spell_options


def run_training(config: Config) -> int:
    """Train to the end, from the newest checkpoint if there is one, and write `model.pkl`.

    Returns:
        The exit status: 0, or that of the signal which ended the run early, with a checkpoint saved.
    """
    devices = choose_devices(config.common.device, config.execution)
    with distributed.init_process_group(devices.first):
        terminal.configure(quiet=config.common.quiet, silent=distributed.rank() > 0)
        build.check_batch_size(config)
        for option, package in (("log_wandb", "wandb"), ("log_mlflow", "mlflow")):
            if getattr(config.run, option):
                require_package(option, package)
        train_set, val_set = build.open_datasets(config)
        config, weights = build.read_initial_weights(config)
        config, estimate = build.choose_batch_size(config, devices, train_set, weights)
        config = config.with_length(len(train_set))
        checkpointer = Checkpointer(Path(config.common.save), RunIdentity.of(config.recipe(), train_set), config.run)
        is_finished = distributed.broadcast_from_rank0(
            distributed.rank() == 0 and config.run.auto_continue and checkpointer.is_finished()
        )
        if config.run.memory_check and not is_finished:
            config = build.check_memory(config, devices, train_set, weights, estimate)
        with run_folder(config) as log:
            if is_finished:
                result = checkpointer.folder / RESULT
                log.result(f"this run is finished: {result} is its result; --no-auto-continue starts over")
                return 0
            shutdown = GracefulShutdown()
            trainer = Trainer(config, devices, (train_set, val_set), checkpointer, log, shutdown, weights)
            if log.folder:
                files.write_bytes(log.folder / OPTIONS_FILE, config.to_yaml().encode(), durable=False)
                log_description(log, config, trainer)
            try:
                with record_session(log, trainer), shutdown:
                    trainer.run()
            except ShutdownRequested as signal:
                hint = "" if config.run.auto_continue else " without --no-auto-continue"
                iteration = trainer.state.iteration
                log.result(f"stopped by {signal} after iteration {iteration:,}; run the same command{hint} to continue")
                return signal.status
            finally:
                trainer.write_report()
            if log.folder:
                commands = next_commands(read_yaml(log.folder / OPTIONS_FILE), sys.orig_argv)
                log.result(f"log, metrics and report.html: {log.folder}; next:", *(f"  {command}" for _, command in commands))
    return 0


@contextmanager
def record_session(log: RunLog, trainer: Trainer) -> Iterator[None]:
    """Record in sessions.jsonl when the block begins, and how it ends; see `Session`."""
    session = Session(log.folder)
    session.start(trainer.state.iteration, sys.orig_argv, str(trainer.devices), data.usable_cores())
    reason = "finished"
    try:
        yield
    except (ShutdownRequested, KeyboardInterrupt) as signal:
        reason = f"stopped by {signal if isinstance(signal, ShutdownRequested) else 'SIGINT'}"
        raise
    except BaseException as error:
        reason = f"error: {spell_options(str(error), {}) or type(error).__name__}"
        raise
    finally:
        with log.optional() if reason == "finished" else suppress(UserError):  # the error that ended the run counts
            session.end(trainer.state.iteration, reason)


@contextmanager
def run_folder(config: Config) -> Iterator[RunLog]:
    """Open the folders of a run: lock the folder of checkpoints, set earlier results aside if wanted, and open the log.

    Only process 0 does so; the others get a silent log without a folder.
    """
    if distributed.rank() > 0:
        with RunLog(silent=True) as log:
            yield log
        return
    folder = Path(config.common.save)
    folder.mkdir(parents=True, exist_ok=True)
    with files.lock_folder(folder), RunLog(log_folder(config.common), recorders=choose_recorders(config)) as log:
        if not config.run.auto_continue and (previous := results.set_aside(folder)):
            log.info(f"starting over; the earlier results are in {previous}")
        elif (folder / BEST).exists() and not (folder / RESULT).exists() and not checkpoint.list_checkpoints(folder):
            previous = results.set_aside(folder)
            log.warning(f"an earlier start was killed before its first checkpoint; its {BEST} is in {previous}")
        yield log


def choose_recorders(config: Config) -> list[OpenRecorder]:
    """Return what receives the metrics of a run: TensorBoard, and the services that the options name."""
    options = yaml.safe_load(config.to_yaml())
    run = RunDescription(Path(config.common.save).name, options, starts_over=not config.run.auto_continue)
    trackers = ((config.run.log_wandb, Wandb), (config.run.log_mlflow, MLflow))
    return [TensorBoard, *(partial(tracker, run=run) for is_wanted, tracker in trackers if is_wanted)]


def log_folder(common: CommonConfig) -> Path:
    """Return the folder for the log of a run; runs with different folders never share one.

    ./models has ./logs/models, ./models/NAME has ./logs/NAME, and any other DIR has DIR/logs. With `log_dir` a run has its
    subfolder with the last part of `save`.

    Raises:
        UserError: the subfolder of `log_dir` is in use by another run.
    """
    save, models = (Path(os.path.abspath(folder)) for folder in (common.save, "models"))
    if common.log_dir:
        folder = Path(common.log_dir) / save.name
        owner = _run_of_log(folder)
        if owner and owner != save and owner.exists():
            raise UserError(f"{folder} is the log of {owner}; give `save` {common.save} another `log_dir`")
        return folder
    if save == models:
        return Path("logs/models")
    is_experiment = models in save.parents and save != models / "models"
    folder = Path("logs", save.relative_to(models)) if is_experiment else Path(common.save, "logs")
    former = Path("logs", save.name)  # where version 0.1.0 wrote the log
    return former if _run_of_log(former) == save and not folder.exists() else folder


def _run_of_log(folder: Path) -> Path | None:
    """Return the folder of the run that has its log in a folder; None if there is none."""
    try:
        options = read_yaml(folder / OPTIONS_FILE)
    except UserError:
        return None
    return Path(os.path.abspath(str(options["save"]))) if "save" in options else None
