"""Training from Python: `train`, the training command as a function."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli.command import resolve, training_parser
from .config import Config
from .errors import UserError

if TYPE_CHECKING:
    from .export import Classifier


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run has left.

    Attributes:
        folder: folder of the run, with its checkpoints.
        model: weight file of the last iteration, `model.pkl`.
        best: weight file of the best validated weights, `best.pkl`; None without validation.
        iteration: number of iterations of `model`.
        accuracy: 'top1', 'top5', 'balanced_accuracy', 'macro_f1' (fractions) and 'loss' of `model` on validation; None without
            validation.
        log: folder of the log, metrics and figures.
    """

    folder: Path
    model: Path
    best: Path | None
    iteration: int
    accuracy: dict[str, float] | None
    log: Path

    def load(self, device: str = "auto") -> "Classifier":
        """Load the best weights, or those of the last iteration if there was no validation; see `shufflenetv2.load`."""
        from .export import load

        return load(self.best or self.model, device)


def train(**options: Any) -> TrainingResult:
    """Train a network, as the command `python train.py` does; call it again after an interruption, and it continues.

    Args:
        options: every option of the command as a keyword, with underscores: `train_dir="D", total_iters=5000, hflip=0`. The
            values are those of a YAML file. `config` names YAML files, whose options the keywords override.

    Returns:
        The results of the run. If it was finished before, nothing is trained.

    Raises:
        UserError: an option is unknown or not accepted, the images cannot be read, ...; the message names the remedy.
        KeyboardInterrupt: the run was interrupted (Ctrl-C, the stop button of a notebook); a checkpoint is saved.
        SystemExit: SIGTERM or SIGUSR1 ended the run; a checkpoint is saved.

    Example:
        >>> result = shufflenetv2.train(train_dir="flowers", val_fraction=0.2, total_iters=2000, batch_size=64)
        >>> result.accuracy["top1"]
        0.934
        >>> result.load()("flowers/rose/1.jpg").class_name
        'rose'
    """
    from .cli.train import run_training  # imports torch, which takes seconds

    config = _config(options)
    status = run_training(config)
    if status == 130:
        raise KeyboardInterrupt("the run was interrupted and has saved a checkpoint; the same call continues it")
    if status:
        raise SystemExit(status)
    return _read_result(config)


def _config(options: dict[str, Any]) -> Config:
    for name in ("eval", "throughput"):
        if options.get(name):
            raise UserError(f"`{name}` is for the command line; `train` only trains")
    explicit = {name: value for name, value in options.items() if value is not None}
    if isinstance(explicit.get("config"), str | Path):
        explicit["config"] = [explicit["config"]]
    return resolve(explicit, training_parser("train"))


def _read_result(config: Config) -> TrainingResult:
    from . import files
    from .cli.train import log_folder
    from .weights import BEST, RESULT

    folder = Path(config.common.save)
    model, best = folder / RESULT, folder / BEST
    content = files.read(model, require_checksum=True)
    return TrainingResult(
        folder=folder,
        model=model,
        best=best if best.exists() else None,
        iteration=content["iteration"],
        accuracy=content["accuracy"],
        log=log_folder(config.common),
    )
