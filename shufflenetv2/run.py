"""A run from its options: what `train.py` does, once it knows what is wanted."""

import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
import torchinfo
from torch import nn

from . import UserError, __version__
from .data import (
    DataIterator,
    Dataset,
    Digits,
    EvaluationTransform,
    FolderDataset,
    TrainTransform,
    evaluation_batches,
    usable_cores,
)  # fmt: skip
from .engine import (
    Devices,
    Evaluation,
    Execution,
    NonFiniteLossError,
    Preempted,
    Preemption,
    TrainingState,
    checkpoint,
    choose_devices,
    distributed,
    evaluate,
    every,
    recalibrate_batch_norm,
    train,
)  # fmt: skip
from .identity import fingerprint, is_finished, require_same_run
from .network import ShuffleNetV2
from .options import REFERENCE_BATCH_SIZE, Options, OptionsError, default_learning_rate, recipe_of, to_yaml
from .recipe import AveragedWeights, linear_decay, parameter_groups
from .report import Journal
from .weights import Preprocessing, Weights, WeightsError, model_record, read_weights

# The original recalibrates over 1,250 batches of 1,024 images: about one epoch of ImageNet.
RECALIBRATION_IMAGES = 1_280_000

SAMPLES_SHOWN = 8
MOST_SKIPPED = 10  # a recipe that needs more of it is not one


def run_training(options: Options) -> int:
    """Trains to the end, from the newest checkpoint if there is one, and writes `model.pkl`.

    Returns:
        The exit status: 0, or that of the signal which ended the run early, with a checkpoint saved.
    """
    devices = choose_devices(options.device, execution_of(options))
    with distributed.joined(devices.first):
        return _train(options, devices)  # which leaves nothing behind that the processes have in common


def _train(options: Options, devices: Devices) -> int:
    folder = Path(options.save)
    log_folder = Path(options.log_dir) / folder.resolve().name
    with ExitStack() as stack:
        if options.batch_size % distributed.size():
            raise OptionsError(f"--batch-size {options.batch_size} cannot be divided among {distributed.size()} processes")
        train_set, val_set = open_training_sets(options)
        first = distributed.rank() == 0
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(checkpoint.locked(folder))
        journal = stack.enter_context(Journal(log_folder) if first else Journal(silent=True))
        if first and not options.auto_continue and (aside := checkpoint.set_aside(folder)):
            journal.say(f"starting over; the earlier results are in {aside}")
        if distributed.from_first(first and is_finished(options, train_set, folder / "model.pkl")):
            journal.say(f"this run is finished: {folder / 'model.pkl'} is its result; --no-auto-continue trains anew")
            return 0
        if first:
            (log_folder / "options.yaml").write_text(to_yaml(options), encoding="utf-8")
        preemption = Preemption()
        run = TrainingRun(options, devices, train_set, val_set, folder, journal, preemption)
        with preemption:
            try:
                run.train()
                run.finish()
            except Preempted as signal:
                journal.say(
                    f"stopped by {signal} after iteration {run.state.iteration}; the command goes on from there"
                    + ("" if options.auto_continue else " if --no-auto-continue is left out")
                )
                return signal.status
    return 0


class TrainingRun:
    """A run in its folder, from the newest good checkpoint there, or from the beginning.

    Args:
        folder: where checkpoints are and results go.
        preemption: what may end it between two iterations, or within a validation or the recalibration.
    """

    def __init__(
        self, options: Options, devices: Devices, train_set: Dataset, val_set: Dataset | None, folder: Path,
        journal: Journal, preemption: Preemption,
    ) -> None:  # fmt: skip
        self.options, self.devices, self.train_set, self.val_set = options, devices, train_set, val_set
        self.folder, self.journal, self.preemption = folder, journal, preemption
        self.writer = checkpoint.Writer()
        self.preprocessing = Preprocessing(options.input_size, options.resize_size, options.mean, options.std)
        self.samples = fingerprint(train_set)  # once: a million names take a second
        if distributed.from_first(self.samples) != self.samples:
            raise UserError(f"process {distributed.rank()} sees other training images than process 0")
        self.state = build_state(options, len(train_set.class_names))
        self.state.scaler = devices.scaler()
        if distributed.rank() == 0:
            describe(journal, options, devices, self.state.network, train_set, val_set)
        # On its device before loading, so that the optimizer's state lands beside the weights.
        self.placed = devices.place(self.state.network)
        if options.model_ema:
            self.state.averaged = AveragedWeights(self.state.network, options.model_ema_decay)
            self.placed_average = devices.place(self.state.averaged.network)
        self.model = distributed.synchronized(devices.compiled(self.placed), devices.first)
        if (path := self.load_newest()) is not None:
            journal.say(f"going on from {path}")

    def load_newest(self, interval: int | None = None) -> str | None:
        """Loads the newest good checkpoint; only one of every so many iterations, where that is given.

        Returns:
            Its name, or None where there is none; then nothing has changed.
        """
        found = None
        if distributed.rank() == 0 and (newest := checkpoint.read_newest(self.folder, interval)):
            path, content = newest
            require_same_run(self.options, self.train_set, content, path)
            if content["samples"] != self.samples:
                checkpoint.logger.warning(
                    "the training images are others than when this run began, and its result will be another too"
                )
            found = [str(path), content]
        found = distributed.from_first(found)
        if found is None:
            return None
        self.state.load_state_dict(found[1])
        return str(found[0])

    def record(self, network: ShuffleNetV2) -> dict[str, Any]:
        """What a file says of a network beside its weights."""
        described = model_record(
            network,
            class_names=self.train_set.class_names,
            preprocessing=self.preprocessing,
            iteration=self.state.iteration,
        )
        return described | {"options": recipe_of(self.options), "samples": self.samples, "version": __version__}

    def write(self, name: str, content: dict[str, Any]) -> None:
        if distributed.rank() == 0:
            self.writer.write(self.folder / name, content)

    def save(self, tag: str = "") -> None:
        """Has a checkpoint written; what is saved is good.

        Raises:
            NonFiniteLossError: where it would not be.
        """
        self.state.require_finite()
        content = self.record(self.state.network) | self.state.state_dict()
        self.write(checkpoint.name_of(self.state.iteration, tag), content)

    def test(self, model: nn.Module, prefix: str = "") -> Evaluation | None:
        """Evaluates on the validation set, if there is one."""
        if self.val_set is None:
            return None
        return report_evaluation(
            self.journal, model, self.val_set, self.preprocessing, self.options, self.devices, self.state.iteration,
            self.preemption, prefix,
        )  # fmt: skip

    def validate(self) -> None:
        if self.state.validated != self.state.iteration:
            self.test(self.placed)
            if self.state.averaged:
                self.test(self.placed_average, "EMA ")
            self.state.validated = self.state.iteration

    def check(self) -> None:
        self.preemption.check()
        self.writer.check()

    def batches(self) -> "closing[DataIterator]":
        """From the next iteration on; to be closed."""
        options = self.options
        return closing(
            DataIterator(
                self.train_set,
                TrainTransform(options.input_size, options.scale, options.ratio, options.color_jitter, options.hflip),
                options.batch_size,
                seed=options.seed,
                start_iteration=self.state.iteration,
                workers=workers(options),
                pin_memory=self.devices.pin_memory,
                rank=distributed.rank(),
                world_size=distributed.size(),
            )
        )

    def train(self) -> None:
        """The iterations.

        Raises:
            Preempted: with everything saved that is needed to go on.
            NonFiniteLossError: where that is to be the end.
        """
        self.journal.start(self.state.iteration, self.options.total_iters)
        while True:
            try:
                if self.state.iteration % self.options.val_interval == 0 and self.state.iteration:
                    self.validate()  # the one that the last attempt did not get to, or not through
                while self.state.iteration < self.options.total_iters:
                    self.train_up_to_a_gap()
                self.save()
                break
            except NonFiniteLossError as error:
                self.go_around(error)
            except Preempted:
                try:
                    self.save()
                except NonFiniteLossError as error:
                    if self.options.on_nonfinite == "stop":
                        raise
                    self.journal.say(f"not saved, as {error}")  # the next attempt comes by there again
                self.writer.wait()
                raise
        self.writer.wait()  # the weights are final, and all that follows can be repeated from this checkpoint

    def train_up_to_a_gap(self) -> None:
        """Trains until the next iterations that are to be left out, and passes over those."""
        options, state = self.options, self.state
        gaps = [(first, last) for first, last in state.skipped if last > state.iteration]
        first, last = min(gaps, default=(options.total_iters + 1, options.total_iters))
        with self.batches() as batches:
            try:
                train(
                    self.model,
                    state,
                    batches,
                    nn.CrossEntropyLoss(label_smoothing=options.label_smooth),
                    total_iters=first - 1,
                    seed=options.seed,
                    journal=self.journal,
                    display_interval=options.display_interval,
                    dist_bn=options.dist_bn,
                    events=[(every(options.val_interval), self.validate), (every(options.save_interval), self.save)],
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
        state, rollback = self.state, self.options.on_nonfinite == "rollback"
        if self.options.on_nonfinite == "stop" or len(state.skipped) == MOST_SKIPPED:
            tried = f", {MOST_SKIPPED} times by now" if state.skipped else ""
            error.args = (f"{error}{tried}. What was saved before is good; a lower --learning-rate helps",)
            raise error
        self.writer.wait()
        skipped, interval = state.skipped, self.options.save_interval
        came_from = self.load_newest(interval if rollback and isinstance(interval, int) else None)
        if came_from is None:
            state.load_state_dict(build_state(self.options, len(self.train_set.class_names)).state_dict())
        first = state.iteration + 1 if rollback else error.iteration
        state.skipped = [*skipped, (first, error.iteration)]
        self.journal.say(
            f"{error}; going on from {came_from or 'the beginning'} without iterations {first} to {error.iteration}"
        )

    def finish(self) -> None:
        """After the last iteration: recalibration, the last validation, and the result.

        Raises:
            Preempted: nothing is lost; all of it is repeated.
        """
        results = {"model.pkl": self.recalibrated(self.placed, self.state.network)}
        if self.state.averaged:
            results["model-ema.pkl"] = self.recalibrated(self.placed_average, self.state.averaged.network, "EMA ")
        self.save("bnps-")
        for name, content in reversed(results.items()):  # model.pkl last: it says that the run is finished
            self.write(name, content)
        self.writer.wait()
        for name, content in results.items():
            accuracy = content["accuracy"]
            told = f", top-1 {accuracy['top1']:.2%} on validation" if accuracy else ""
            self.journal.say(f"finished: {self.folder / name}{told}")

    def recalibrated(self, model: nn.Module, bare: ShuffleNetV2, prefix: str = "") -> dict[str, Any]:
        """Recalibrates and tests a network; gives what is to be its file."""
        count = max(1, min(len(self.train_set), RECALIBRATION_IMAGES) // self.options.batch_size)
        self.journal.say(f"{prefix}recalibrating batch norm over {count} batches")
        with self.batches() as batches:
            recalibrate_batch_norm(model, self.preemption.checked(next(batches)[0] for _ in range(count)))
        tested = self.test(model, prefix)
        accuracy = tested and {"top1": 1 - tested.top1_error, "top5": 1 - tested.top5_error, "loss": tested.loss}
        return self.record(bare) | {"accuracy": accuracy}


def run_evaluation(options: Options) -> int:
    """Evaluates a weight file, and prints the TEST line. Returns the exit status."""
    devices = choose_devices(options.device, execution_of(options))
    weights = read_weights(options.eval_resume or Path(options.save) / "model.pkl")
    if "model_size" in options.given and options.model_size != weights.model_size:
        raise WeightsError(f"{weights.path} holds a {weights.model_size} model, and --model-size says {options.model_size}")
    preprocessing = evaluation_preprocessing(options, weights)
    val_set = open_val_set(options, weights.class_names)
    if len(val_set.class_names) != weights.n_class:
        where = options.val_dir or options.dataset
        raise WeightsError(f"{weights.path} knows {weights.n_class} classes, and {where} has {len(val_set.class_names)}")
    model = devices.place(weights.network(preprocessing)).eval()
    with distributed.joined(devices.first), Journal(silent=distributed.rank() > 0) as journal:
        report_evaluation(journal, model, val_set, preprocessing, options, devices, weights.iteration)
    return 0


def evaluation_preprocessing(options: Options, weights: Weights) -> Preprocessing:
    """The file's own, unless the command line says otherwise; the options where the file says nothing."""
    said = Preprocessing(options.input_size, options.resize_size, options.mean, options.std)
    own = weights.preprocessing or said
    use = Preprocessing(
        said.input_size if "input_size" in options.given else own.input_size,
        said.resize_size if options.given & {"input_size", "resize_size"} else own.resize_size,
        said.mean if "mean" in options.given else own.mean,
        said.std if "std" in options.given else own.std,
    )
    if use.resize_size < use.input_size:
        raise OptionsError(f"--resize-size {use.resize_size} is smaller than the {use.input_size} pixels of the model's input")
    return use


def open_training_sets(options: Options) -> tuple[Dataset, Dataset | None]:
    """The data to train on, and that to validate on if there is any."""
    if options.dataset == "digits":
        return Digits("train"), Digits("val")
    train_set = FolderDataset(options.train_dir)
    return train_set, open_val_set(options, train_set.class_names) if options.val_dir else None


def open_val_set(options: Options, class_names: list[str] | None) -> Dataset:
    """The data to evaluate on, labelled by the classes of the model where those are known."""
    if options.dataset == "digits":
        return Digits("val")
    return FolderDataset(options.val_dir, class_names)


def build_state(options: Options, n_class: int) -> TrainingState:
    """The network, the optimizer and the schedule, as they are before the first iteration."""
    network = ShuffleNetV2(
        options.input_size, n_class, options.model_size, dropout=options.drop, mean=options.mean, std=options.std
    )
    network.initialize_weights(torch.Generator().manual_seed(options.seed))
    optimizer = torch.optim.SGD(
        parameter_groups(network, options.weight_decay), lr=options.learning_rate, momentum=options.momentum
    )
    return TrainingState(network, optimizer, linear_decay(optimizer, options.total_iters))


def describe(
    journal: Journal, options: Options, devices: Devices, network: ShuffleNetV2, train_set: Dataset, val_set: Dataset | None
) -> None:
    """Says at the start what is about to be trained."""
    side = options.input_size
    summary = torchinfo.summary(
        network, (1, 3, side, side), depth=2, mode="eval", device="cpu", verbose=0,
        col_names=("output_size", "num_params", "mult_adds"),
    )  # fmt: skip
    table = str(summary).replace("(Units.MEGABYTES)", "(M)")  # what torchinfo prints since Python 3.11
    journal.say(f"ShuffleNetV2 {options.model_size} at {side} x {side} pixels\n{table}")
    validation = f"validated on {len(val_set):,}" if val_set else "without validation (no --val-dir)"
    journal.say(f"{len(train_set):,} images in {len(train_set.class_names)} classes, {validation}; training on {devices}")
    if options.learning_rate == default_learning_rate(options.batch_size) and options.batch_size != REFERENCE_BATCH_SIZE:
        journal.say(f"learning rate {options.learning_rate:g}: 0.5 x batch size {options.batch_size} / {REFERENCE_BATCH_SIZE}")


def report_evaluation(
    journal: Journal, model: nn.Module, val_set: Dataset, preprocessing: Preprocessing, options: Options,
    devices: Devices, iteration: int, preemption: Preemption | None = None, prefix: str = "",
) -> Evaluation:  # fmt: skip
    """Evaluates, and prints the TEST line."""
    started = time.perf_counter()
    batches = evaluation_batches(
        val_set,
        EvaluationTransform(preprocessing.input_size, preprocessing.resize_size),
        options.val_batch_size * distributed.size(),
        workers=workers(options),
        pin_memory=devices.pin_memory,
        rank=distributed.rank(),
        world_size=distributed.size(),
    )
    with closing(batches):
        result = evaluate(model, preemption.checked(batches) if preemption else batches)
    journal.test(
        iteration,
        loss=result.loss,
        top1_error=result.top1_error,
        top5_error=result.top5_error,
        val_time=time.perf_counter() - started,
        prefix=prefix,
    )
    return result


def execution_of(options: Options) -> Execution:
    return Execution(
        options.channels_last, getattr(torch, options.amp_dtype) if options.amp else None, backend=options.torchcompile
    )


def workers(options: Options) -> int:
    """Threads that load images in this process."""
    return options.workers or max(1, usable_cores() // distributed.processes_here())
