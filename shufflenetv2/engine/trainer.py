"""A training run in its folder: what it goes on from, what it saves, and what it ends with."""

import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..cli import build
from ..config import Config
from ..data import DataIterator, Dataset, ImageError, evaluation_batches
from ..errors import UserError
from ..network import ShuffleNetV2
from ..recipe import PlateauSchedule
from ..report import RunLog, write_confusion, write_grid
from ..weights import Preprocessing, Weights, model_record
from . import (
    Devices,
    EvaluationResult,
    GracefulShutdown,
    Hook,
    NonFiniteLossError,
    ShutdownRequested,
    checkpoint,
    distributed,
    evaluate,
    every,
    load_hook,
    recalibrate_batch_norm,
    train,
)  # fmt: skip
from .identity import fingerprint, require_same_run

# The original recalibrates over 1,250 batches of 1,024 images: about one epoch of ImageNet.
RECALIBRATION_IMAGES = 1_280_000

SAMPLES_SHOWN = 8
MOST_SKIPPED = 10  # a recipe that needs more of it is not one
MOST_CONFUSED = 2_000  # classes: their counts take 32 MB


class TrainingRun:
    """A run in its folder, from the newest good checkpoint there, or from the beginning.

    Args:
        initial: the weights to start from, if not from new ones.
        folder: where checkpoints are and results go.
        shutdown: what may end it between two iterations, or within a validation or the recalibration.
    """

    def __init__(
        self, options: Config, devices: Devices, train_set: Dataset, val_set: Dataset | None, initial: Weights | None,
        folder: Path, log: RunLog, shutdown: GracefulShutdown,
    ) -> None:  # fmt: skip
        self.options, self.devices, self.train_set, self.val_set = options, devices, train_set, val_set
        self.initial, self.folder, self.log, self.shutdown = initial, folder, log, shutdown
        self.class_names = train_set.class_names
        self.writer = checkpoint.Writer()
        self.preprocessing = build.preprocessing(options)
        self.samples = fingerprint(train_set)  # once: a million names take a second
        if distributed.broadcast_from_rank0(self.samples) != self.samples:
            raise UserError(f"process {distributed.rank()} sees other training images than process 0")
        self.hooks: list[Hook] = [load_hook(name) for name in options.hook]
        if options.save_images and log.folder:
            self.hooks.append(_SaveImages(log.folder / "images", options.display_interval, self.class_names))
        found = self.newest()
        self.state = build.training_state(options, devices, self.class_names, log.info, initial)
        self.placed = devices.place(self.state.network)
        self.model = distributed.wrap_ddp(devices.place(self.state.network, training=True), devices.first)
        self.teacher = build.teacher(options, devices, self.class_names)
        if found:
            self.load(*found)
            log.info(f"going on from {found[0]}")

    def newest(self, interval: int | None = None) -> tuple[str, dict[str, Any]] | None:
        """The name and the content of the newest good checkpoint; only of every so many iterations, where that is given.

        Where there is none it is that of --resume, or None.
        """
        found: tuple[str, dict[str, Any]] | None = None
        if distributed.rank() == 0:
            if newest := checkpoint.read_newest(self.folder, interval):
                found = str(newest[0]), newest[1]
            elif self.options.resume:
                found = self.options.resume, checkpoint.read(Path(self.options.resume))
            if found and found[0] != self.options.resume:
                require_same_run(self.options, self.train_set, found[1], Path(found[0]))
            elif found and self.options.resume_opt:
                remedy = "--no-resume-opt takes its weights and its iteration alone, --initial-checkpoint its weights"
                require_same_run(self.options, self.train_set, found[1], Path(found[0]), remedy)
            if found and found[1]["samples"] != self.samples:
                checkpoint.logger.warning(
                    "the training images are others than when this run began, and its result will be another too"
                )
        shared: tuple[str, dict[str, Any]] | None = distributed.broadcast_from_rank0(found)
        return shared

    def load(self, name: str, content: dict[str, Any]) -> None:
        if name == self.options.resume and not self.options.resume_opt:
            self.state.load_weights(content)
        else:
            self.state.load_state_dict(content)

    def record(self, network: ShuffleNetV2) -> dict[str, Any]:
        """What a file says of a network beside its weights."""
        described = model_record(
            network,
            class_names=self.class_names,
            preprocessing=self.preprocessing,
            iteration=self.state.iteration,
        )
        return described | {
            "options": self.options.recipe(),
            "samples": self.samples,
            "version": __version__,
            "host": socket.gethostname(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def write(self, name: str, content: dict[str, Any]) -> None:
        if distributed.rank() == 0:
            self.writer.write(self.folder / name, content, self.prune)
        for hook in self.hooks:
            hook.after_save(self.state.iteration, str(self.folder / name))

    def prune(self) -> None:
        """Removes the checkpoints that need not be kept."""
        options = self.options
        interval = options.save_interval if options.recovery_interval else None
        if options.checkpoint_hist or interval:
            checkpoint.prune(self.folder, hist=options.checkpoint_hist, interval=interval)

    def save(self, name: str = "") -> None:
        """Has a checkpoint written; what is saved is good.

        Raises:
            NonFiniteLossError: where it would not be.
        """
        self.state.require_finite()
        content = self.record(self.state.network) | self.state.state_dict()
        self.write(name or checkpoint.name_of(self.state.iteration), content)

    def test(self, model: nn.Module, prefix: str = "", final: bool = False) -> EvaluationResult | None:
        """Evaluates on the validation set, if there is one."""
        if self.val_set is None:
            return None
        for hook in self.hooks:
            hook.before_evaluation(self.state.iteration)
        result = report_evaluation(
            self.log, model, self.val_set, self.preprocessing, self.options, self.devices, self.state.iteration,
            self.shutdown, prefix, final,
        )  # fmt: skip
        for hook in self.hooks:
            hook.after_evaluation(self.state.iteration, result)
        return result

    def averaged_placed(self) -> nn.Module | None:
        """The averaged weights where they can be evaluated."""
        if self.state.averaged is None:
            return None
        return self.devices.place(self.state.averaged.on(self.devices.first))

    def validate(self) -> None:
        state = self.state
        if state.validated == state.iteration:
            return
        result = self.test(self.placed)
        averaged = self.averaged_placed()
        if averaged:
            self.test(averaged, "EMA ")
        if result and isinstance(state.scheduler, PlateauSchedule):
            state.scheduler.observe(result.top1_error)
        state.validated = state.iteration
        if result:
            value = {"top1": -result.top1_error, "top5": -result.top5_error, "loss": -result.loss}[self.options.eval_metric]
            if state.best is None or value > state.best:
                state.best = value
                self.save(checkpoint.BEST)

    def check(self) -> None:
        self.shutdown.check()
        self.writer.check()

    def batches(self) -> "closing[DataIterator]":
        """From the next iteration on; to be closed."""
        return closing(
            DataIterator(
                self.train_set,
                build.train_transform(self.options),
                self.options.batch_size,
                seed=self.options.seed,
                start_iteration=self.state.iteration,
                workers=build.workers(self.options),
                pin_memory=self.devices.pin_memory,
                repeats=self.options.aug_repeats,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
            )
        )

    def train(self) -> None:
        """The iterations.

        Raises:
            ShutdownRequested, ImageError: with everything saved that is needed to go on.
            NonFiniteLossError: where that is to be the end.
        """
        for hook in self.hooks:
            hook.before_run(self)
        while True:
            self.log.start(self.state.iteration, self.options.total_iters)
            try:
                if self.state.iteration % self.options.val_interval == 0 and self.state.iteration:
                    self.validate()  # the one that the last attempt did not get to, or not through
                while self.state.iteration < self.options.total_iters:
                    self.train_up_to_a_gap()
                self.save()
                break
            except NonFiniteLossError as error:
                self.go_around(error)
            except (ShutdownRequested, ImageError) as end:
                if isinstance(end, ImageError) and distributed.world_size() > 1:
                    raise  # the others have not met that image, and saving takes all
                try:
                    self.save()
                except NonFiniteLossError as error:
                    if self.options.on_nonfinite == "stop":
                        raise
                    self.log.info(f"not saved, as {error}")  # the next attempt comes by there again
                self.writer.wait()
                raise
        self.writer.wait()  # the weights are final, and all that follows can be repeated from this checkpoint

    def train_up_to_a_gap(self) -> None:
        """Trains until the next iterations that are to be left out, and passes over those."""
        options, state = self.options, self.state
        gaps = [(first, last) for first, last in state.skipped if last > state.iteration]
        first, last = min(gaps, default=(options.total_iters + 1, options.total_iters))
        save_due, recovery_due = every(options.save_interval), every(options.recovery_interval or options.save_interval)
        with self.batches() as batches:
            try:
                train(
                    self.model,
                    state,
                    batches,
                    build.loss(options),
                    total_iters=first - 1,
                    seed=options.seed,
                    log=self.log,
                    display_interval=options.display_interval,
                    mixing=build.mixing(options, len(self.class_names)),
                    teacher=self.teacher,
                    parts=options.grad_accum_steps,
                    clip=build.clip(options, state.network),
                    dist_bn=options.dist_bn,
                    hooks=self.hooks,
                    events=[
                        (every(options.val_interval), self.validate),
                        (lambda iteration: save_due(iteration) or recovery_due(iteration), self.save),
                    ],
                    check=self.check,
                )
            except NonFiniteLossError as error:
                names = batches.sample_names(error.iteration)
                shown = ", ".join(names[:SAMPLES_SHOWN]) + (", ..." if len(names) > SAMPLES_SHOWN else "")
                error.args = (f"{error}; its {len(names)} samples were {shown}",)
                raise
        state.pass_over(last)

    def go_around(self, error: NonFiniteLossError) -> None:
        """Back to a good checkpoint (else the beginning), leaving out the bad iteration, or all from there to it.

        That iteration comes from the schedule of saves, not from when the run was interrupted, so
        that an interrupted run leaves out the same ones.
        """
        state, options = self.state, self.options
        rollback = options.on_nonfinite == "rollback"
        if options.on_nonfinite == "stop" or len(state.skipped) == MOST_SKIPPED:
            tried = f", {MOST_SKIPPED} times by now" if state.skipped else ""
            error.args = (f"{error}{tried}. What was saved before is good; a lower --learning-rate helps",)
            raise error
        self.writer.wait()
        skipped, interval = state.skipped, options.save_interval
        found = self.newest(interval if rollback and isinstance(interval, int) else None)
        if found:
            self.load(*found)
        else:
            anew = build.training_state(options, self.devices, self.class_names, lambda _: None, self.initial)
            state.load_state_dict(anew.state_dict())
        first = state.iteration + 1 if rollback else error.iteration
        state.skipped = [*skipped, (first, error.iteration)]
        came_from = found[0] if found else "the beginning"
        self.log.info(f"{error}; going on from {came_from} without iterations {first} to {error.iteration}")

    def finish(self) -> None:
        """After the last iteration: recalibration, the last validation, and the result.

        Raises:
            ShutdownRequested: nothing is lost; all of it is repeated.
        """
        results = {"model.pkl": self.recalibrated(self.placed, self.state.network)}
        if self.state.averaged and (averaged := self.averaged_placed()):
            results["model-ema.pkl"] = self.recalibrated(averaged, self.state.averaged.network, "EMA ")
        self.save(checkpoint.name_of(self.state.iteration, "bnps-"))
        for name, content in reversed(results.items()):  # model.pkl last: it says that the run is finished
            self.write(name, content)
        self.writer.wait()
        for name, content in results.items():
            accuracy = content["accuracy"]
            told = f", top-1 {accuracy['top1']:.2%} on validation" if accuracy else ""
            self.log.info(f"finished: {self.folder / name}{told}")
        for hook in self.hooks:
            hook.after_run(self)

    def recalibrated(self, model: nn.Module, bare: ShuffleNetV2, prefix: str = "") -> dict[str, Any]:
        """Recalibrates and tests a network; gives what is to be its file."""
        count = max(1, min(len(self.train_set), RECALIBRATION_IMAGES) // self.options.batch_size)
        self.log.info(f"{prefix}recalibrating batch norm over {count} batches")
        with self.batches() as batches:
            recalibrate_batch_norm(model, self.shutdown.interruptible(next(batches)[0] for _ in range(count)))
        tested = self.test(model, prefix, final=True)
        accuracy = tested and {"top1": 1 - tested.top1_error, "top5": 1 - tested.top5_error, "loss": tested.loss}
        content = self.record(bare) | {"accuracy": accuracy}
        # Split batch norm's further statistics are for augmented images.
        published = {name: tensor for name, tensor in content["state_dict"].items() if ".aux_bn." not in name}
        return content | {"state_dict": published}


class _SaveImages(Hook):
    """Draws what the network sees, every so many iterations."""

    def __init__(self, folder: Path, interval: int, class_names: list[str]) -> None:
        self.folder, self.interval, self.class_names = folder, interval, class_names

    def before_iteration(self, iteration: int, images: Tensor, goals: Tensor) -> None:
        if iteration % self.interval:
            return
        if goals.ndim == 1:
            captions = [self.class_names[goal] for goal in goals[: len(images)].tolist()]
        else:
            captions = []
            for shares in goals:
                two = [
                    (float(share), self.class_names[int(at)])
                    for share, at in zip(*shares.topk(min(2, len(shares))), strict=True)
                ]
                captions.append(" / ".join(f"{name} {share:.2f}" for share, name in two if share))
        pixels = images.clamp(0, 255).to("cpu", torch.uint8).contiguous().numpy()
        write_grid(self.folder / f"{iteration:06}.png", pixels, captions)


def report_evaluation(
    log: RunLog, model: nn.Module, val_set: Dataset, preprocessing: Preprocessing, options: Config,
    devices: Devices, iteration: int, shutdown: GracefulShutdown | None = None, prefix: str = "", final: bool = False,
) -> EvaluationResult:  # fmt: skip
    """Evaluates, and prints the TEST line; at the end of all it is also told what is taken for what."""
    started = time.perf_counter()
    confusion = final and not prefix and len(val_set.class_names) <= MOST_CONFUSED
    batches = evaluation_batches(
        val_set,
        build.evaluation_transform(preprocessing, options.tta if options.eval else 1),
        options.val_batch_size * distributed.world_size(),
        workers=build.workers(options),
        pin_memory=devices.pin_memory,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    with closing(batches):
        result = evaluate(model, shutdown.interruptible(batches) if shutdown else batches, confusion=confusion)
    log.test(
        iteration,
        loss=result.loss,
        top1_error=result.top1_error,
        top5_error=result.top5_error,
        val_time=time.perf_counter() - started,
        prefix=prefix,
        final=final,
    )
    if result.confusion is not None and log.folder:
        write_confusion(log.folder, result.confusion.numpy(), val_set.class_names)
    return result
