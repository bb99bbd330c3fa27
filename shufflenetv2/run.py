"""A run from its options: what `train.py` does, once it knows what is wanted."""

import hashlib
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchinfo
from torch import nn

from . import UserError, __version__, storage
from .data import DataIterator, Dataset, Digits, EvaluationTransform, FolderDataset, TrainTransform, evaluation_batches
from .engine import (
    Evaluation,
    NonFiniteLossError,
    Preempted,
    Preemption,
    TrainingState,
    checkpoint,
    evaluate,
    every,
    recalibrate_batch_norm,
    train,
)  # fmt: skip
from .network import ShuffleNetV2
from .options import REFERENCE_BATCH_SIZE, Options, OptionsError, default_learning_rate, flag, recipe_of, to_yaml
from .recipe import AveragedWeights, linear_decay, parameter_groups
from .report import Journal
from .weights import Preprocessing, Weights, WeightsError, model_record, read_weights

# The original recalibrates over 1,250 batches of 1,024 images: about one epoch of ImageNet.
RECALIBRATION_IMAGES = 1_280_000

SAMPLES_SHOWN = 8


@dataclass(frozen=True)
class Devices:
    """Where the network runs: `first`, and with several GPUs all of them through nn.DataParallel."""

    first: torch.device
    count: int = 1

    @property
    def pin_memory(self) -> bool:
        return self.first.type == "cuda"

    def wrap(self, network: ShuffleNetV2) -> nn.Module:
        """The network on its device, or spread over several; its own names stay without 'module.'."""
        network.to(self.first)
        return nn.DataParallel(network) if self.count > 1 else network

    def __str__(self) -> str:
        return f"{self.count} GPUs" if self.count > 1 else str(self.first)


def choose_devices(name: str) -> Devices:
    """'auto' and 'cuda' take all GPUs, 'cuda:N' takes one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        raise OptionsError(f"--device {name}: there is no such device here; auto finds one") from error
    if device.type == "cuda" and device.index is None:
        return Devices(torch.device("cuda:0"), torch.cuda.device_count())
    return Devices(device)


def run_training(options: Options) -> int:
    """Trains to the end, from the newest checkpoint if there is one, and writes `model.pkl`.

    Returns:
        The exit status: 0, or that of the signal which ended the run early, with a checkpoint saved.
    """
    devices = choose_devices(options.device)
    train_set, val_set = open_training_sets(options)
    folder = Path(options.save)
    log_folder = Path(options.log_dir) / folder.resolve().name
    folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.locked(folder), Journal(log_folder) as journal:
        if not options.auto_continue and (aside := checkpoint.set_aside(folder)):
            journal.say(f"starting over; the earlier results are in {aside}")
        if is_finished(options, train_set, folder / "model.pkl"):
            journal.say(f"this run is finished: {folder / 'model.pkl'} is its result; --no-auto-continue trains anew")
            return 0
        (log_folder / "options.yaml").write_text(to_yaml(options), encoding="utf-8")
        state = build_state(options, len(train_set.class_names))
        describe(journal, options, devices, state.network, train_set, val_set)
        model = devices.wrap(state.network)  # before loading, so that the optimizer's state lands beside the weights
        if options.model_ema:
            state.averaged = AveragedWeights(state.network, options.model_ema_decay)
        resume(journal, state, options, train_set, folder)
        with Preemption() as preemption:
            try:
                train_and_finish(options, devices, train_set, val_set, folder, journal, state, model, preemption)
            except Preempted as signal:
                journal.say(
                    f"stopped by {signal} after iteration {state.iteration}; the command goes on from there"
                    + ("" if options.auto_continue else " if --no-auto-continue is left out")
                )
                return signal.status
    return 0


def train_and_finish(
    options: Options, devices: Devices, train_set: Dataset, val_set: Dataset | None, folder: Path, journal: Journal,
    state: TrainingState, model: nn.Module, preemption: Preemption,
) -> None:  # fmt: skip
    """From where `state` is to the end: iterations, recalibration, the last validation, the result.

    Raises:
        Preempted: with everything saved that is needed to go on.
    """
    preprocessing = Preprocessing(options.input_size, options.resize_size, options.mean, options.std)
    samples = fingerprint(train_set)  # once: a million names take a second
    writer = checkpoint.Writer()

    def record(network: ShuffleNetV2) -> dict[str, Any]:
        described = model_record(
            network, class_names=train_set.class_names, preprocessing=preprocessing, iteration=state.iteration
        )
        return described | {"options": recipe_of(options), "samples": samples, "version": __version__}

    def save(tag: str = "") -> None:
        state.require_finite()  # what is saved is good
        writer.write(checkpoint.path_of(folder, state.iteration, tag), record(state.network) | state.state_dict())

    def test(tested: nn.Module, prefix: str = "") -> Evaluation | None:
        if val_set is None:
            return None
        return report_evaluation(journal, tested, val_set, preprocessing, options, devices, state.iteration, preemption, prefix)

    def validate() -> None:
        if state.validated != state.iteration:
            test(model)
            if state.averaged:
                test(state.averaged.network, "EMA ")
            state.validated = state.iteration

    def check() -> None:
        preemption.check()
        writer.check()

    def training_batches() -> closing[DataIterator]:
        """From the next iteration on; to be closed."""
        return closing(
            DataIterator(
                train_set,
                TrainTransform(options.input_size, options.scale, options.ratio, options.color_jitter, options.hflip),
                options.batch_size,
                seed=options.seed,
                start_iteration=state.iteration,
                workers=options.workers,
                pin_memory=devices.pin_memory,
            )
        )

    def finish(network: nn.Module, bare: ShuffleNetV2, prefix: str = "") -> dict[str, Any]:
        """Recalibrates and tests a network; gives what is to be its file."""
        count = max(1, min(len(train_set), RECALIBRATION_IMAGES) // options.batch_size)
        journal.say(f"{prefix}recalibrating batch norm over {count} batches")
        with training_batches() as batches:
            recalibrate_batch_norm(network, preemption.checked(next(batches)[0] for _ in range(count)))
        tested = test(network, prefix)
        accuracy = tested and {"top1": 1 - tested.top1_error, "top5": 1 - tested.top5_error, "loss": tested.loss}
        return record(bare) | {"accuracy": accuracy}

    with training_batches() as batches:
        journal.start(state.iteration, options.total_iters)
        try:
            if state.iteration % options.val_interval == 0 and state.iteration:
                validate()  # the one that the last attempt did not get to, or not through
            train(
                model,
                state,
                batches,
                nn.CrossEntropyLoss(label_smoothing=options.label_smooth),
                total_iters=options.total_iters,
                seed=options.seed,
                journal=journal,
                display_interval=options.display_interval,
                events=[(every(options.val_interval), validate), (every(options.save_interval), save)],
                check=check,
            )
            save()
        except NonFiniteLossError as error:
            names = batches.sample_names(error.iteration)
            shown = ", ".join(names[:SAMPLES_SHOWN]) + (", ..." if len(names) > SAMPLES_SHOWN else "")
            error.args = (
                f"{error}; its {len(names)} samples were {shown}. What was saved before is good; a lower --learning-rate helps",
            )
            raise
        except Preempted:
            save()
            writer.wait()
            raise
    writer.wait()  # from here on the weights are final, and all that follows can be repeated from this checkpoint

    results = {"model.pkl": finish(model, state.network)}
    if state.averaged:
        results["model-ema.pkl"] = finish(state.averaged.network, state.averaged.network, "EMA ")
    save("bnps-")
    for name, content in reversed(results.items()):  # model.pkl last: it says that the run is finished
        writer.write(folder / name, content)
    writer.wait()
    for name, content in results.items():
        accuracy = content["accuracy"]
        journal.say(f"finished: {folder / name}" + (f", top-1 {accuracy['top1']:.2%} on validation" if accuracy else ""))


def run_evaluation(options: Options) -> int:
    """Evaluates a weight file, and prints the TEST line. Returns the exit status."""
    devices = choose_devices(options.device)
    weights = read_weights(options.eval_resume or Path(options.save) / "model.pkl")
    if "model_size" in options.given and options.model_size != weights.model_size:
        raise WeightsError(f"{weights.path} holds a {weights.model_size} model, and --model-size says {options.model_size}")
    preprocessing = evaluation_preprocessing(options, weights)
    val_set = open_val_set(options, weights.class_names)
    if len(val_set.class_names) != weights.n_class:
        where = options.val_dir or options.dataset
        raise WeightsError(f"{weights.path} knows {weights.n_class} classes, and {where} has {len(val_set.class_names)}")
    model = devices.wrap(weights.network(preprocessing)).eval()
    with Journal() as journal:
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
        options.val_batch_size,
        workers=options.workers,
        pin_memory=devices.pin_memory,
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


def is_finished(options: Options, train_set: Dataset, result: Path) -> bool:
    """Whether the result of this very run is there already."""
    if not result.exists():
        return False
    try:
        content = storage.read(result, must_be_ours=True)
    except storage.DamagedFileError as error:
        checkpoint.logger.warning("%s; it will be made anew", error)
        return False
    require_same_run(options, train_set, content, result)
    if content.get("samples") != fingerprint(train_set):
        raise UserError(
            f"{result} was trained on other images than there are now; give this run a --save folder of its own, "
            "or start over with --no-auto-continue"
        )
    return True


def resume(journal: Journal, state: TrainingState, options: Options, train_set: Dataset, folder: Path) -> None:
    """Goes on from the newest good checkpoint in the folder, if there is one."""
    found = checkpoint.read_newest(folder)
    if found is None:
        return
    path, content = found
    require_same_run(options, train_set, content, path)
    state.load_state_dict(content)
    journal.say(f"going on from {path}")
    if content["samples"] != fingerprint(train_set):
        checkpoint.logger.warning(
            "the training images are others than when this run began: from here on it is another than it would have been"
        )


def fingerprint(dataset: Dataset) -> str:
    """A digest of the names of the samples and of their classes, which decide the order of training."""
    digest = hashlib.sha256(dataset.targets.tobytes())
    for index in range(len(dataset)):
        digest.update(dataset.name(index).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def require_same_run(options: Options, train_set: Dataset, content: dict[str, Any], path: Path) -> None:
    """Refuses to continue a run that was started with another recipe or other classes."""
    then, now = content.get("options", {}), recipe_of(options)
    differing = [
        f"{flag(name)} was {_shown(then.get(name))} and is {_shown(value)}"
        for name, value in now.items()
        if then.get(name) != value
    ]
    if content.get("class_names") != train_set.class_names:
        differing.append("the classes are others")
    if differing:
        raise UserError(
            f"{path} is of another run: {'; '.join(differing)}. Give this one a --save folder of its own, "
            "or start over with --no-auto-continue"
        )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
