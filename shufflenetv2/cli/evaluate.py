"""Evaluation of a weight file or an exported file: `train.py --eval`."""

import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import files, terminal
from ..config import VALIDATION_FOLDERS, Config, DataConfig, contains, describe_size, height_width, in_words
from ..data import BadImages, build_evaluation_transform, build_preprocessing, worker_count
from ..engine import BadImageReport, Devices, EvaluationResult, Evaluator, choose_devices, distributed, try_figures
from ..errors import UserError
from ..export import load
from ..export.runtimes import identify_format
from ..report import ReportPage, RunLog
from ..weights import RESULT, Preprocessing, read_weights, weight_files
from . import build

IDENTITY_FILE = "evaluation.json"
FIXED_IN_EXPORTED_FILES = ("input_size", "mean", "std")


@dataclass(frozen=True)
class Model:
    """A model to evaluate.

    Attributes:
        path: its file.
        module: takes images as they are loaded, gives logits.
        preprocessing: how images are resized and cropped.
        class_names: in the order of the logits; None if the file does not contain them.
        size: '0.5x', ...; '' if the file is an exported one.
        iteration: number of the training iteration after which the weights were saved; 0 if unknown.
    """

    path: Path
    module: nn.Module
    preprocessing: Preprocessing
    n_class: int
    class_names: list[str] | None
    size: str = ""
    iteration: int = 0


def run_evaluation(config: Config) -> int:
    """Evaluate a file, print the result, and write predictions.csv, summary.json and more to a folder of its own.

    Returns:
        The exit status.
    """
    devices = choose_devices(config.common.device, config.execution)
    model = open_model(config, devices)
    val_set = build.open_validation_set(config, model.class_names)
    images = describe_images(config.data)
    if "model_size" in config.explicit and model.size and config.model.model_size != model.size:
        wanted = config.model.model_size
        raise UserError(f"{model.path} holds a {model.size} model, not `model_size` {wanted}; leave `model_size` out")
    if len(val_set.class_names) != model.n_class:
        raise UserError(f"{model.path} has {model.n_class} classes, but {images} has {len(val_set.class_names)}")
    with distributed.init_process_group(devices.first):
        is_first = distributed.rank() == 0
        terminal.configure(quiet=config.common.quiet, silent=not is_first)
        with RunLog(evaluation_folder(config, model.path)) if is_first else RunLog(silent=True) as log:
            bad_images = BadImages.from_config(config.data, val_set, "validation")
            report_bad_images = BadImageReport(log, {"validation": bad_images}, is_new=True)
            evaluator = Evaluator(
                val_set,
                build_evaluation_transform(model.preprocessing, config.evaluation.tta),
                log,
                batch_size=config.val_batch_size,
                workers=worker_count(config.common.workers, distributed.local_world_size()),
                pin_memory=devices.pin_memory,
                bad_images=bad_images,
            )
            result = evaluator(model.module, model.iteration, final=True)
            report_bad_images()
            evaluator.write_files(result, model.iteration, str(model.path), final=True)
            if log.folder and config.run.figures:
                try_figures(log.folder, val_set, model.module, build_evaluation_transform(model.preprocessing))
            if log.folder:
                ReportPage(log.folder, None, val_set).update()
            log.result(f"{model.path} on {images}: {describe_result(result)}")
            log.result(f"predictions.csv, summary.json, report.html, tables and figures are in {log.folder}")
    return 0


def open_model(config: Config, devices: Devices) -> Model:
    """Open the file to evaluate: weights, or a file that `shufflenetv2 export` wrote, which runs on the CPU.

    Raises:
        UserError: it cannot be read, or an option contradicts it.
    """
    path = Path(config.evaluation.eval_resume) if config.evaluation.eval_resume else result_of_run(Path(config.common.save))
    if identify_format(path) is None:
        weights = read_weights(path, use_ema=config.evaluation.use_ema)
        preprocessing = evaluation_preprocessing(config, path, weights.preprocessing, weights.channels)
        module = devices.place(weights.network(preprocessing)).eval()
        return Model(path, module, preprocessing, weights.n_class, weights.class_names, weights.model_size, weights.iteration)
    classifier = load(path, config.common.device, use_ema=config.evaluation.use_ema)
    for name in FIXED_IN_EXPORTED_FILES:
        if name in config.explicit:
            raise UserError(f"{path} is an exported file, which fixes `{name}`; leave it out")
    recorded = classifier.preprocessing
    preprocessing = evaluation_preprocessing(config, path, recorded, recorded.channels)
    blank = torch.zeros(1, recorded.channels, *height_width(recorded.input_size), dtype=torch.uint8)
    n_class = len(classifier.class_names or classifier.logits(blank)[0])
    return Model(path, _Exported(classifier.logits), preprocessing, n_class, classifier.class_names)


def result_of_run(folder: Path) -> Path:
    """Return the result of the run in a folder, model.pkl.

    Raises:
        UserError: there is none; the message names the weights that may be meant.
    """
    path = folder / RESULT
    if path.exists():
        return path
    proposals = weight_files(folder)
    near = str(proposals[0]) if proposals else files.nearest_path(path)
    remedy = f"did you mean `eval_resume={near}`?" if near else "name the weights to evaluate"
    raise UserError(f"`eval_resume` is missing, and {path} does not exist; {remedy}")


class _Exported(nn.Module):
    """An exported file as a module without parameters."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self._logits(images)


def describe_images(data: DataConfig) -> str:
    """Return where the images come from: a folder, or the name of a data set."""
    return (data.val_dir or data.train_dir) if data.dataset == "folder" else data.dataset


def evaluation_folder(config: Config, path: Path) -> Path:
    """Return the folder for the results of an evaluation: its own for each file and source of images.

    It is logs/eval/RUN-FILE-IMAGES, without RUN for files in `models` itself, and with a number if that folder belongs to the
    evaluation of a file or of images of the same name.
    """
    images = describe_images(config.data)
    is_folder = config.data.dataset == "folder"
    source = Path(os.path.abspath(images)) if is_folder else Path(images)
    # The name of a folder such as flowers/val says little without that of the folder around it.
    name = "-".join(source.parts[-2:] if is_folder and source.name in VALIDATION_FOLDERS else source.parts[-1:])
    if config.data.val_fraction:
        name += "-held-out"
    run = Path(os.path.abspath(path)).parent.name
    stem = ("" if run == "models" else f"{run}-") + Path(path.name.removesuffix(".tar")).stem
    identity = {
        "file": os.path.abspath(path),
        "images": str(source),
        "val_fraction": config.data.val_fraction,
        "averaged": config.evaluation.use_ema,
    }
    parent = Path(config.common.log_dir or "logs") / "eval"
    for number in itertools.count(1):
        folder = parent / (re.sub(r"[^\w.-]+", "_", f"{stem}-{name}") + (f"-{number}" if number > 1 else ""))
        if not (folder / IDENTITY_FILE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            content = json.dumps(identity, indent=1).encode(errors="backslashreplace")
            files.write_bytes(folder / IDENTITY_FILE, content, durable=False)
            break
        with suppress(ValueError):  # damaged, or of another program
            if files.parse_json(files.read_text_file(folder / IDENTITY_FILE)) == identity:
                break
    return folder


def describe_result(result: EvaluationResult) -> str:
    """Return a line about the accuracy in percent."""
    calibration = f", calibration error {result.predictions.calibration_error():.2%}" if result.predictions else ""
    return (
        f"{result.images:,} images, top-1 {1 - result.top1_error:.2%}, top-5 {1 - result.top5_error:.2%}, "
        f"loss {result.loss:.4f}{calibration}"
    )


def evaluation_preprocessing(config: Config, path: Path, recorded: Preprocessing | None, channels: int) -> Preprocessing:
    """Return the preprocessing that the file records, modified by the options that the user gave.

    If the file records no preprocessing, all values come from the options, with their defaults.
    """
    in_chans = config.model.in_chans
    if "in_chans" in config.explicit and in_chans != channels:
        raise UserError(f"{path} takes images with `in_chans` {channels}, not {in_chans}; leave it out")
    names = {field.name for field in fields(Preprocessing)}
    if recorded is not None:
        names &= config.explicit
        if config.explicit & {"input_size", "crop_pct"}:
            names.add("resize_size")  # its default follows from these options
    values = {name: getattr(build_preprocessing(config.data), name) for name in names}
    for name in names & {"mean", "std"}:
        values[name] = _for_each_channel(name, values[name], channels)
    preprocessing = replace(recorded or Preprocessing.default(channels), **values)
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
