"""The results of a run: validated weights, the files that hold them, and the lines about them in the log."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..weights import BEST, RESULT
from .evaluation import EvaluationResult

FILES_OF_A_RUN = ("*checkpoint-*.pth.tar", "model*.pkl", "best*.pkl", "best.pth.tar")  # version 0.1 wrote best.pth.tar


@dataclass(frozen=True)
class ValidatedWeights:
    """Weights of a run and their validation.

    Attributes:
        iteration: number of iterations after which the run had these weights.
        averaged: these are the averaged weights (EMA).
        state_dict: of the bare network.
        result: of the validation; None if the run has no validation set.
        recalibrated: the statistics of batch norm were recomputed after the last iteration.
    """

    iteration: int
    averaged: bool
    state_dict: Mapping[str, Tensor]
    result: EvaluationResult | None
    recalibrated: bool = False

    def score(self, metric: str) -> float:
        """Return the score by a metric, see `EvaluationResult.score`.

        Raises:
            ValueError: there is no result.
        """
        if self.result is None:
            raise ValueError("weights that were not validated have no score")
        return self.result.score(metric)

    def record(self) -> dict[str, Any]:
        """Return what a result file contains about these weights, in addition to `model_record`."""
        # `split_bn` keeps additional statistics for augmented images, which inference does not use.
        state_dict = {name: tensor for name, tensor in self.state_dict.items() if ".aux_bn." not in name}
        return {
            "state_dict": state_dict,
            "iteration": self.iteration,
            "accuracy": self.result and self.result.accuracy(),
            "averaged": self.averaged,
            "recalibrated": self.recalibrated,
        }

    def to_checkpoint(self) -> dict[str, Any]:
        """Return the weights as a checkpoint keeps them: tensors and plain values."""
        assert self.result
        names = ("loss", "top1_error", "top5_error", "images", "balanced_accuracy", "macro_f1")
        result = {name: getattr(self.result, name) for name in names}
        return {"iteration": self.iteration, "averaged": self.averaged, "state_dict": self.state_dict, "result": result}

    @classmethod
    def from_checkpoint(cls, content: Mapping[str, Any]) -> "ValidatedWeights":
        """Restore what `to_checkpoint` returned."""
        result = EvaluationResult(**content["result"])
        return cls(content["iteration"], content["averaged"], content["state_dict"], result)

    @property
    def name(self) -> str:
        """See `name_weights`."""
        return name_weights(self.iteration, self.averaged)

    def figures(self, metric: str) -> str:
        """Return the top-1 accuracy, and the result by `metric` if that is another one, for the log; '' without a result."""
        if self.result is None:
            return ""
        accuracy = self.result.accuracy()
        forms = {
            "top5": ", top-5 {:.2%}",
            "loss": ", loss {:.4f}",
            "balanced_accuracy": ", balanced accuracy {:.2%}",
            "macro_f1": ", macro F1 {:.4f}",
        }
        other = forms[metric].format(accuracy[metric]) if metric in accuracy.keys() & forms.keys() else ""
        return f", top-1 {accuracy['top1']:.2%}{other} on validation"


def name_weights(iteration: int, averaged: bool) -> str:
    """Return a phrase that says which weights of a run are meant."""
    return f"the {'averaged ' * averaged}weights of iteration {iteration:,}"


def finished_lines(folder: Path, results: Mapping[str, ValidatedWeights], metric: str) -> list[str]:
    """Return a line for each result file of a finished run; that of best.pkl says which weights it holds.

    Args:
        results: by file name.
        metric: by which the best weights were chosen.
    """
    lines = {name: f"finished: {folder / name}{weights.figures(metric)}" for name, weights in results.items()}
    if best := results.get(BEST):
        is_last = best is results[RESULT]
        lines[BEST] += f": {best.name}, {'the same as in' if is_last else 'better than'} {RESULT}"
    return list(lines.values())


def set_aside(folder: Path) -> Path | None:
    """Move the files of an earlier run to a subfolder 'previous-1', or the next free number.

    Returns:
        The subfolder; None if there is nothing to move.
    """
    results = [path for pattern in FILES_OF_A_RUN for path in folder.glob(pattern)]
    if not results:
        return None
    number = 1
    while (subfolder := folder / f"previous-{number}").exists():
        number += 1
    subfolder.mkdir()
    for path in results:
        path.rename(subfolder / path.name)
    return subfolder
