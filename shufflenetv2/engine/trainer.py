"""A training run: from the newest checkpoint, or from the beginning, to the results."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

from torch import Tensor, nn

from ..config import Config
from ..data import (
    BadImages,
    DataIterator,
    Dataset,
    ImageError,
    build_evaluation_transform,
    build_preprocessing,
    build_train_transform,
    worker_count,
)
from ..errors import UserError
from ..network import ShuffleNetV2
from ..recipe import build_class_weights, describe_class_weights, load_teacher
from ..report import ReportPage, RunLog, TrainMetrics
from ..terminal import progress
from ..weights import BEST, RESULT, RESULT_EMA, Weights, model_record
from . import distributed
from .background import time_limit
from .bad_images import BadImageReport
from .checkpoint import Checkpointer, checkpoint_name
from .contention import CoreContention
from .devices import Devices
from .evaluation import EvaluationResult, Evaluator
from .figures import draw_run_figures
from .free_memory import release_freed_memory
from .hooks import load_hooks
from .loop import Callbacks, StepSettings, recalibrate_batch_norm, train
from .nonfinite import NonFiniteLossError, next_gap, recover_from_nonfinite
from .results import ValidatedWeights, finished_lines, name_weights
from .signals import GracefulShutdown, ShutdownRequested
from .state import build_training_state


class Trainer(Callbacks):
    """Trains a network: call `run`.

    Args:
        config: all options, resolved.
        devices: where the network runs.
        datasets: images for training, and for validation, if there are any.
        checkpointer: the checkpoints and results of this run.
        log: receives the TRAIN and TEST lines and other messages.
        shutdown: ends the run between two iterations when a signal arrives.
        initial_weights: weights to start from; None for random weights.

    Attributes:
        state: the network, the optimizer and everything else the next iteration depends on.
        train_set, val_set: the datasets.
        workers: number of threads that load images.
    """

    def __init__(
        self,
        config: Config,
        devices: Devices,
        datasets: tuple[Dataset, Dataset | None],
        checkpointer: Checkpointer,
        log: RunLog,
        shutdown: GracefulShutdown,
        initial_weights: Weights | None = None,
    ) -> None:
        self.config, self.devices, self.checkpointer, self.log, self.shutdown = config, devices, checkpointer, log, shutdown
        checkpointer.while_waiting(shutdown.check_while_waiting)
        self.train_set, self.val_set = datasets
        self.initial_weights, self.class_names = initial_weights, self.train_set.class_names
        self.preprocessing = build_preprocessing(config.data)
        self.state = build_training_state(config, devices, self.class_names, initial_weights, log.info)
        self.placed = devices.place(self.state.network)  # for evaluation
        self.model = distributed.wrap_ddp(devices.place(self.state.network, training=True), devices.first)
        teacher = load_teacher(config.distillation, len(self.class_names), self.class_names, config.model.in_chans)
        class_weights = build_class_weights(
            config.optimization.class_weights, self.class_names, self.train_set.targets,
            balanced_sampling=config.data.balanced_sampling, device=devices.first,
        )  # fmt: skip
        if class_weights is not None:
            log.info(describe_class_weights(class_weights, self.class_names))
        self.settings = StepSettings.from_config(config, self.state.network, teacher and devices.place(teacher), class_weights)
        self._stop_request, self._any_stop_request = "", distributed.DelayedAllReduceMax()
        self.hooks = load_hooks(config.run, log.folder, self.class_names)
        self._train_transform = build_train_transform(config.data, config.augmentation)
        self.workers = worker_count(config.common.workers, distributed.local_world_size())
        self._contention = CoreContention(distributed.local_world_size())
        self._report = ReportPage(log.folder, *datasets) if log.folder else None
        self._bad_images = BadImages.from_config(config.data, self.train_set, "training")
        bad_val_images = BadImages.from_config(config.data, self.val_set, "validation") if self.val_set is not None else None
        self._evaluator = None
        if self.val_set is not None:
            self._evaluator = Evaluator(
                self.val_set, build_evaluation_transform(self.preprocessing), log, batch_size=config.val_batch_size,
                workers=self.workers, pin_memory=devices.pin_memory, shutdown=shutdown, bad_images=bad_val_images,
            )  # fmt: skip
        origin = checkpointer.restore(self.state)
        collections = {"training": self._bad_images, "validation": bad_val_images}
        self._report_bad_images = BadImageReport(log, collections, is_new=origin is None)
        if origin:
            log.info(f"continuing from {origin.name}")
            if origin.change:
                log.info(origin.change)
        self._recipe_changed = bool(origin and origin.change)

    def run(self) -> None:
        """Train to the last iteration, recalibrate batch norm, evaluate, and write the results.

        Raises:
            ShutdownRequested: a signal arrived; nothing is lost.
            ImageError: an image cannot be decoded, and `on_bad_image` is 'stop'; or there are too many; nothing is lost.
            NonFiniteLossError: a loss is not finite, and `on_nonfinite` is 'stop', or does not help.
        """
        self.hooks.before_run(self)
        if self._recipe_changed:
            self.save()  # under the new recipe: from now on the same command continues with and without the option
            self._write_best()
        self.train()
        self.write_results()
        self.hooks.after_run(self)

    def stop(self, reason: str) -> None:
        """End the training after this iteration; recalibration, evaluation and results follow as after the last iteration.

        May be called by a hook, in any process; several processes stop together, after the next iteration.

        Args:
            reason: for the log and the results.
        """
        self._stop_request = reason

    # ---- training

    def train(self) -> None:
        """Perform all iterations, and save the last checkpoint."""
        is_complete = False
        while not is_complete:
            self.log.start(
                self.state.iteration,
                self.config.optimization.total_iters,
                val_interval=self.config.run.val_interval if self._evaluator else 0,
                best_accuracy=1 - best.result.top1_error if (best := self.state.best) and best.result else None,
            )
            try:
                self._train_to_end()
                is_complete = True
            except NonFiniteLossError as error:
                self.log.warning(recover_from_nonfinite(error, self.config.run.on_nonfinite, self.state, self._restore))
            except ShutdownRequested:
                self.checkpointer.while_waiting(time_limit())
                self._save_at_exit()
                raise
            except UserError as error:
                if isinstance(error, ImageError):
                    self._report_bad_images.write(self._report_bad_images.take_new())
                if distributed.world_size() == 1:  # saving needs all processes, and the others may not have this error
                    with suppress(UserError):  # such as the error of the checkpoint before
                        self._save_at_exit()
                raise
        self.checkpointer.wait()  # the weights are final: what follows can be repeated from this checkpoint
        self.log.end_training()

    def _train_to_end(self) -> None:
        total_iters = self.config.optimization.total_iters
        if self.state.iteration and self.state.iteration % self.config.run.val_interval == 0:
            self.validate()  # unless it was completed before the interruption
        while self.state.iteration < total_iters and not self.state.stop_reason:
            first_skipped, last_skipped = next_gap(self.state.skipped, self.state.iteration, total_iters)
            self._train_until(first_skipped - 1)
            if not self.state.stop_reason:
                self.state.fast_forward(last_skipped)
        self._any_stop_request.close()
        if self.state.stop_reason:
            self.log.result(f"stopped after iteration {self.state.iteration}: {self.state.stop_reason}")
        self.save()

    def _train_until(self, iteration: int) -> None:
        with closing(self._batches()) as batches:
            try:
                train(
                    self.model, self.state, batches, self.settings,
                    until=iteration, display_interval=self.config.run.display_interval, callbacks=self,
                )  # fmt: skip
            except NonFiniteLossError as error:
                raise error.with_samples(batches.sample_names(error.iteration)) from error

    def _batches(self) -> DataIterator:
        """Return the training batches, beginning with that of the next iteration."""
        optimization, data = self.config.optimization, self.config.data
        return DataIterator(
            self.train_set, self._train_transform, optimization.batch_size, seed=optimization.seed,
            start_iteration=self.state.iteration, offset=self.state.order_offset, workers=self.workers,
            pin_memory=self.devices.pin_memory, repeats=data.aug_repeats, balanced=data.balanced_sampling,
            bad_images=self._bad_images, rank=distributed.rank(), world_size=distributed.world_size(),
            while_waiting=self.shutdown.check_while_waiting,
        )  # fmt: skip

    # ---- callbacks of the loop

    def before_iteration(self, iteration: int, images: Tensor, targets: Tensor) -> None:
        self.hooks.before_iteration(iteration, images, targets)

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        self.log.advance(iteration)
        self.hooks.after_iteration(iteration, loss, logits)

    def on_metrics(self, metrics: TrainMetrics) -> None:
        self.log.training(metrics)
        if warning := self._contention.check():
            self.log.warning(warning)

    def between_iterations(self, iteration: int) -> None:
        self.shutdown.check()
        self.checkpointer.check()
        # Several processes communicate for this report, at the TRAIN lines, where they wait for each other anyway.
        if distributed.world_size() == 1 or iteration % self.config.run.display_interval == 0:
            self._report_bad_images()
        if iteration % self.config.run.val_interval == 0:
            self.validate()
        if self.config.run.hook and self._any_stop_request(bool(self._stop_request)):
            self.state.stop_reason = distributed.broadcast_from_rank0(self._stop_request) or "requested in another process"

    def on_complete(self, iteration: int) -> None:
        if self.checkpointer.is_due(iteration):
            if self.checkpointer.is_multiple(iteration):
                self.save()
            else:
                self._save_if_finite()

    # ---- checkpoints

    def save(self, name: str = "") -> None:
        """Write a checkpoint of the present state; every checkpoint is finite.

        Raises:
            NonFiniteLossError: the state is not finite.
        """
        self.state.require_finite()
        content = self._model_record(self.state.network) | self.state.state_dict()
        self._write(name or checkpoint_name(self.state.iteration), content)

    def _save_if_finite(self) -> None:
        """Save a checkpoint whose iteration depends on times; how the run recovers must not depend on them."""
        try:
            self.save()
        except NonFiniteLossError as error:
            if self.config.run.on_nonfinite == "stop":
                raise
            self.log.warning(f"not saved: {error}")  # the run meets this again at the next TRAIN line, and recovers

    def _save_at_exit(self) -> None:
        self._save_if_finite()
        self.checkpointer.wait()

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        path = self.checkpointer.save(name, content)
        self.hooks.after_save(self.state.iteration, str(path))

    def _model_record(self, network: ShuffleNetV2) -> dict[str, Any]:
        record = model_record(
            network, class_names=self.class_names, preprocessing=self.preprocessing, iteration=self.state.iteration
        )
        return record | {"history": self.state.history, "stop_reason": self.state.stop_reason}

    def _restore(self) -> str:
        """Return to the newest checkpoint, or to the beginning, after a non-finite loss.

        With 'rollback' only checkpoints at multiples of the save interval count, so that the skipped iterations do not depend
        on when the run was interrupted.
        """
        self.checkpointer.wait()
        self._stop_request = ""  # of an iteration that will be repeated
        is_rollback = self.config.run.on_nonfinite == "rollback"
        if origin := self.checkpointer.restore(self.state, self.checkpointer.interval if is_rollback else None):
            self._write_best()  # the file may hold weights of iterations that are now left out
            return origin.name
        initial = build_training_state(self.config, self.devices, self.class_names, self.initial_weights)
        self.state.load_state_dict(initial.state_dict())
        return "the beginning"

    # ---- evaluation and results

    def write_report(self) -> None:
        """Write report.html in the log folder, if there is one; a failure is a warning."""
        if self._report:
            self._report.update()

    def validate(self) -> None:
        """Evaluate the weights and their average, and write the better of them if they are the best; once per iteration."""
        state = self.state
        if state.validated == state.iteration or self._evaluator is None:
            return
        state.require_finite()
        models = {"": self.placed}
        if state.averaged:
            models["EMA "] = self.devices.place(state.averaged.on(self.devices.first))
        results: list[EvaluationResult] = []
        for prefix, model in models.items():
            results += filter(None, [self.evaluate(model, prefix, others=results)])
        self.model.train()
        is_best = state.complete_validation(results)
        if is_best:
            self._write_best()
        better = max(results, key=lambda result: result.score(state.eval_metric))
        with self.log.optional():
            self._evaluator.write_files(better, state.iteration, BEST if is_best else "")
        patience, is_last = self.config.run.early_stop_iters, state.iteration == self.config.optimization.total_iters
        if patience and not is_last and state.iterations_without_improvement() >= patience:
            state.stop_reason = f"no better {state.eval_metric} on validation for {patience} iterations"
        self.write_report()

    def _write_best(self) -> None:
        if best := self.state.best:
            self._write(BEST, self._model_record(self.state.network) | best.record())
            self.log.detail(f"{self.checkpointer.folder / BEST}: {best.name}{best.figures(self.state.eval_metric)}")

    def evaluate(
        self,
        model: nn.Module,
        prefix: str = "",
        *,
        recalibrated: int | None = None,
        others: Sequence[EvaluationResult] = (),
    ) -> EvaluationResult | None:
        """Evaluate a model on the validation set, if there is one; see `Evaluator`.

        Args:
            recalibrated: iteration of the weights, which are those of a result; None for the weights of this iteration.
            others: earlier results of the same validation.
        """
        if self._evaluator is None:
            return None
        self.hooks.before_evaluation(self.state.iteration)
        if recalibrated is None:
            result = self._evaluator(
                model, self.state.iteration, prefix=prefix, is_best=lambda result: self.state.is_best(result, others)
            )
        else:
            result = self._evaluator(model, recalibrated, prefix=prefix, final=True)
        self._report_bad_images()
        self.hooks.after_evaluation(self.state.iteration, result)
        return result

    def write_results(self) -> None:
        """Recalibrate batch norm, evaluate, and write the results."""
        state = self.state
        results = {RESULT: self._recalibrate(state.network, state.iteration)}
        if averaged := state.averaged:
            network = averaged.on(self.devices.first)
            results[RESULT_EMA] = self._recalibrate(network, state.iteration, averaged=True, prefix="EMA ")
            averaged.network.load_state_dict(network.state_dict())  # for the checkpoint, if it is a copy
        self.save(checkpoint_name(state.iteration, "bnps-"))
        if self._evaluator:
            best = results[BEST] = self._best_of([*results.values()])
            if best.result:
                with self.log.optional():
                    self._evaluator.write_files(best.result, best.iteration, BEST, final=True)
        for name, weights in reversed(results.items()):  # model.pkl last: its presence means that the run is finished
            self._write(name, self._model_record(state.network) | weights.record())
        self.checkpointer.wait()
        if self.log.folder and self.config.run.figures:
            network = copy.deepcopy(state.network).eval()
            network.load_state_dict(results.get(BEST, results[RESULT]).state_dict)
            transform = build_evaluation_transform(self.preprocessing)
            draw_run_figures(self.log.folder, self.config, (self.train_set, self.val_set), network, transform)
        self._report_bad_images()
        if summary := self._report_bad_images.summary():
            self.log.result(summary)
        for line in finished_lines(self.checkpointer.folder, results, state.eval_metric):
            self.log.result(line)

    def _best_of(self, candidates: list[ValidatedWeights]) -> ValidatedWeights:
        """Return the best of the results and of the best weights during training, recalibrated; the first of equals."""
        best = self.state.best
        if best and best.iteration < self.state.iteration:  # later weights are among the results
            network = copy.deepcopy(self.state.network)
            network.load_state_dict(best.state_dict)
            candidates.append(self._recalibrate(network, best.iteration, averaged=best.averaged, prefix="best "))
        return max(candidates, key=lambda weights: weights.score(self.state.eval_metric))

    def _recalibrate(
        self, network: ShuffleNetV2, iteration: int, *, averaged: bool = False, prefix: str = ""
    ) -> ValidatedWeights:
        """Recalibrate batch norm of a network in place, evaluate the network, and return its weights."""
        model = self.devices.place(network)
        optimization, batch_size = self.config.optimization, self.config.optimization.batch_size
        count = max(1, min(len(self.train_set), optimization.recalibration_images) // batch_size)
        of_weights = f" of {name_weights(iteration, averaged)}" if prefix else ""
        self.log.info(f"recalibrating batch norm{of_weights} over {count} batch{'es' * (count > 1)}")
        release_freed_memory()
        with closing(self._batches()) as batches:
            steps = progress(range(count), "recalibrating", count * batch_size, "images", lambda step: batch_size)
            images = (next(batches)[0] for _ in steps)
            recalibrate_batch_norm(model, self.shutdown.interruptible(images))
        result = self.evaluate(model, prefix, recalibrated=iteration)
        return ValidatedWeights(iteration, averaged, network.state_dict(), result, recalibrated=True)
