"""The commands that make sense after a run, or while it goes on: on the terminal at its end, and in its report."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def next_commands(
    options: Mapping[str, Any], command: Sequence[str], state: str = "finished", *, is_final: bool = True
) -> list[tuple[str, str]]:
    """Return (purpose, command) pairs; the commands can be pasted into a shell where the run was started.

    There are none for an evaluation, which has no options of a run.

    Args:
        options: options.yaml, by name with dashes.
        command: the words that started the run.
        state: see `describe_state`.
        is_final: the results of the run are written.
    """
    if "save" not in options:
        return []
    commands = []
    if command and state in ("stopped", "failed") and not is_final:
        commands.append(("Continue the run", command))
    is_folder = options.get("dataset", "folder") == "folder"
    is_validated = bool(options.get("val-dir") or options.get("val-fraction") or not is_folder)
    model = str(Path(str(options["save"]), "best.pkl" if is_validated else "model.pkl"))
    images = str(options.get("val-dir") or ("digits" if options.get("dataset") == "digits" else "IMAGE_OR_FOLDER"))
    if is_final or state in ("running", "stopped"):
        if is_validated:
            evaluate = [*_program(command, "train"), "--eval", "--eval-resume", model, *_validation_set(options)]
            commands.append(("Evaluate the best weights again", evaluate))
        commands += [
            ("Classify images", [*_program(command, "predict"), model, images]),
            ("Describe the weights", [*_program(command, "info"), model]),
            ("Export them for other programs", [*_program(command, "export"), model]),
        ]
    return [(purpose, shlex.join(words)) for purpose, words in commands]


def _program(command: Sequence[str], name: str) -> list[str]:
    """Return the words that start the command `name` as a run was started: by train.py, the installed program, or Python."""
    script = next((word for word in command[1:2] if not word.startswith("-")), "")
    if name == "train" and Path(script).name == "train.py":
        return [*command[:2]]
    if "shufflenetv2" in (Path(script).name, *(Path(word).name for word in command[:1])):
        return ["shufflenetv2", name]
    return [*(command[:1] or ["python"]), "-m", "shufflenetv2", name]


def _validation_set(options: Mapping[str, Any]) -> list[str]:
    """Return the options that name the validation set of a run."""
    names: tuple[str, ...] = ("dataset", "data-dir", "val-dir", "val-split", "class-map")
    if options.get("val-fraction"):
        names = ("train-dir", "val-fraction", "seed")
    defaults = {"dataset": "folder", "val-split": "val"}
    given = [name for name in names if options.get(name) not in (None, "", defaults.get(name))]
    return [word for name in given for word in (f"--{name}", str(options[name]))]
