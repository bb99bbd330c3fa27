"""The commands that make sense after a run, or while it goes on, for its report."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def next_commands(options: Mapping[str, Any], command: Sequence[str], state: str, is_final: bool) -> list[tuple[str, str]]:
    """Return (purpose, command) pairs; none for an evaluation, which has no options of a run.

    Args:
        options: options.yaml, by name with dashes.
        command: the words that started the run.
        state: see `describe_state`.
        is_final: the results of the run are written.
    """
    if "save" not in options:
        return []
    folder = str(options["save"])
    commands = []
    if command and state in ("stopped", "failed") and not is_final:
        commands.append(("Continue the run", shlex.join(command)))
    if not options.get("val-dir") and not options.get("val-fraction") and options.get("dataset", "folder") == "folder":
        best = f"{folder}/model.pkl"
    else:
        best = f"{folder}/best.pkl"
    model = shlex.quote(best)
    if is_final or state in ("running", "stopped"):
        commands.append(("Classify images", f"python -m shufflenetv2 predict {model} IMAGE_OR_FOLDER"))
        commands.append(
            ("Evaluate the best weights again", f"python -m shufflenetv2 train --eval --eval-resume {model} {_data(options)}")
        )
        commands.append(("Describe the weights", f"python -m shufflenetv2 info {model}"))
        commands.append(("Export them for other programs", f"python -m shufflenetv2 export {model}"))
    return commands


def _data(options: Mapping[str, Any]) -> str:
    """Return the options that name the validation set of a run."""
    names: tuple[str, ...] = ("dataset", "data-dir", "val-dir", "val-split", "class-map")
    if options.get("val-fraction"):
        names = ("train-dir", "val-fraction", "seed")
    defaults = {"dataset": "folder", "val-split": "val"}
    return " ".join(
        f"--{name} {shlex.quote(str(options[name]))}"
        for name in names
        if options.get(name) not in (None, "", defaults.get(name))
    )
