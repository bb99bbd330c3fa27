"""Checkpoints of a run: names, writing in the background, the newest valid one, and whether it belongs to this run."""

import contextlib
import hashlib
import logging
import math
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import __version__, files
from ..config import DEFAULTS, RunConfig, shorten, split_interval
from ..data import Dataset
from ..errors import UserError, one_line
from ..network import published_name
from ..weights import BEST, RESULT, RESULT_EMA, Iteration, Metadata, check_metadata
from . import distributed
from .background import BackgroundWriter
from .changes import RecipeChange, continue_changed
from .intervals import every
from .state import TrainingState

_NAME = re.compile(r"checkpoint-(\d+)\.pth\.tar")
logger = logging.getLogger(__name__)


class RunRecord(Metadata, total=False):
    """What a checkpoint or result of a run contains besides the metadata of weights; all but checkpoints lack some of it."""

    state_dict: dict[str, Any]
    state_dict_ema: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any]
    progress: dict[str, Any]
    best_weights: dict[str, Any] | None
    validated: Iteration
    validations: dict[Iteration, float]
    skipped: list[tuple[Iteration, Iteration]]
    order_offset: int


def checkpoint_name(iteration: int, tag: str = "") -> str:
    """Return the file name of a checkpoint; `tag` is 'bnps-' after batch-norm recalibration."""
    return f"{tag}checkpoint-{iteration:06}.pth.tar"


# ---- the files in a folder


def list_checkpoints(folder: Path, interval: int | None = None) -> list[Path]:
    """Return the checkpoints in a folder, newest first; with `interval` only those of its multiples."""
    iterations = {path: int(match[1]) for path in folder.glob("*.pth.tar") if (match := _NAME.fullmatch(path.name))}
    newest_first = sorted(iterations, key=lambda path: iterations[path], reverse=True)
    return [path for path in newest_first if iterations[path] % (interval or 1) == 0]


def prune(
    folder: Path, *, hist: int | None = None, interval: int | None = None, scores: Mapping[int, float] | None = None
) -> None:
    """Delete old checkpoints, but never the newest two, unless only one is wanted: one of them may be damaged.

    Args:
        hist: number of checkpoints to keep; None keeps all.
        interval: keep only those whose iteration is a multiple of it, the newest of which is always kept; None keeps all.
        scores: {iteration: score} of validations: keep the `hist` checkpoints with the highest score of the last validation
            up to them. None: keep the newest `hist` checkpoints.
    """
    newest, regular = list_checkpoints(folder)[: min(hist or 2, 2)], list_checkpoints(folder, interval)
    newest += regular[:1]
    if scores is not None:
        regular.sort(key=lambda path: _last_score(scores, path), reverse=True)  # stable: of equals the newest
    for path in {*list_checkpoints(folder)} - {*newest, *regular[:hist]}:
        path.unlink(missing_ok=True)


def _last_score(scores: Mapping[int, float], checkpoint: Path) -> float:
    """Return the score of the last validation up to a checkpoint."""
    match = _NAME.fullmatch(checkpoint.name)
    earlier = [iteration for iteration in scores if match and iteration <= int(match[1])]
    return scores[max(earlier)] if earlier else -math.inf


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        DamagedFileError: the file is damaged, or is not a checkpoint of this program.
        OSError: the file cannot be read.
    """
    content = read_record(path)
    if "optimizer" not in content:
        raise files.DamagedFileError(f"{path} holds no optimizer state; `initial_checkpoint` starts from weights alone")
    return content


def read_record(path: Path) -> dict[str, Any]:
    """Read a file that a run has written.

    Raises:
        DamagedFileError: the file is damaged, or a run would not have written its content.
        OSError: the file cannot be read.
    """
    content = files.read(path, require_checksum=True)
    if not isinstance(content, dict):
        raise files.DamagedFileError(f"{path} holds a {type(content).__name__}, and no record of a run")
    try:
        check_metadata(path, RunRecord, content)
    except UserError as error:
        raise files.DamagedFileError(str(error)) from error
    return content


def read_newest(folder: Path, interval: int | None = None) -> tuple[Path, dict[str, Any]] | None:
    """Read the newest valid checkpoint in a folder; with `interval` only those of its multiples count.

    A damaged checkpoint is named in a warning and renamed to '*.damaged', so that it is not overwritten.
    """
    for path in list_checkpoints(folder, interval):
        try:
            return path, read_checkpoint(path)
        except files.DamagedFileError as error:
            logger.warning("%s; renamed to *.damaged, and the previous checkpoint is used, if there is one", error)
            path.rename(path.with_name(path.name + ".damaged"))
        except OSError as error:
            logger.warning("%s cannot be read: %s; the previous checkpoint is used, if there is one", path, error.strerror)
    return None


def recorded_options(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Return the options of the run that a folder holds, or else of the checkpoint that would be continued from.

    Returns:
        The options of the recipe by name; empty if there is no such file. Damaged files are left as they are.
    """
    paths = [*list_checkpoints(folder), folder / RESULT] if config.auto_continue else []
    paths += [Path(config.resume)] if config.resume and config.resume_opt else []
    for path in paths:
        with contextlib.suppress(files.DamagedFileError, OSError):
            options: dict[str, Any] = read_record(path)["options"]
            return options
    return {}


# ---- the checkpoints of a run


@dataclass(frozen=True)
class RunIdentity:
    """What decides the result of a run. A checkpoint belongs to a run if these are equal.

    Attributes:
        recipe: options of the recipe by name; see `Config.recipe`.
        class_names: class names in the order of their labels.
        samples: digest of the names and labels of the training images, which decide their order.
    """

    recipe: dict[str, Any]
    class_names: list[str]
    samples: str

    @classmethod
    def of(cls, recipe: dict[str, Any], train_set: Dataset) -> "RunIdentity":
        """Compute the digest of a training set, which takes a second for a million images; in all processes.

        Raises:
            UserError: the processes do not have the same images.
        """
        digest = hashlib.sha256(train_set.targets.tobytes())
        names = "".join([train_set.name(index) + "\0" for index in range(len(train_set))])
        digest.update(names.encode(errors="surrogateescape"))
        samples = digest.hexdigest()
        if distributed.broadcast_from_rank0(samples) != samples:
            # Status 1: unlike wrong usage, which one process of a machine reports, this is reported by the process it concerns.
            raise UserError(f"process {distributed.rank()} has different training images than process 0", status=1)
        return cls(recipe, train_set.class_names, samples)

    def change_since(self, content: Mapping[str, Any]) -> RecipeChange | None:
        """Return how the recipe differs from that under which a file was written; None if it does not."""
        # A file of an older version lacks newer options, which had the effect of their defaults, and the `val_interval`.
        now = dict(self.recipe)
        before = DEFAULTS | {"val_interval": now.get("val_interval")} | content.get("options", {})
        for options in (before, now):
            options["freeze"] = tuple(map(published_name, options["freeze"]))
        options = {name: (before[name], value) for name, value in now.items() if before[name] != value}
        return RecipeChange(content.get("iteration", 0), options) if options else None


class Origin(NamedTuple):
    """The checkpoint from which a run continues.

    Attributes:
        name: its file.
        change: a line for the log, if the recipe has changed since.
    """

    name: str
    change: str = ""


class Checkpointer:
    """Reads and writes the checkpoints and results of a run, in its folder. Only process 0 of a run touches files.

    Args:
        folder: folder of the run.
        identity: identity of the run.
        config: which checkpoints to keep, and where to resume from.

    Attributes:
        interval: checkpoints whose iteration is a multiple of it do not depend on times; None if there are none.
    """

    REMEDY = "Use `experiment=NAME` for a new run, {}or start over with `auto_continue=False`"
    REMEDY_RESUME = "`resume_opt=False` takes only its weights and its iteration, `initial_checkpoint` only its weights"

    def __init__(self, folder: Path, identity: RunIdentity, config: RunConfig) -> None:
        self.folder, self.identity, self._config = folder, identity, config
        self._writer = BackgroundWriter()
        self.interval, seconds = split_interval(config.save_interval)
        self._has_additional = bool(seconds or config.recovery_interval)  # besides those at multiples of the interval
        self._is_save_due = every(config.save_interval)
        self._is_recovery_due = every(config.recovery_interval) if config.recovery_interval else lambda iteration: False

    def is_due(self, iteration: int) -> bool:
        """Return whether a checkpoint is due after an iteration; call this after every iteration, in all processes."""
        return self._is_save_due(iteration) or self._is_recovery_due(iteration)

    def is_multiple(self, iteration: int) -> bool:
        """Return whether an iteration is a multiple of the save interval; of an interval that is only a time, all are."""
        return self.interval is None or iteration % self.interval == 0

    def is_finished(self) -> bool:
        """Return whether the folder holds the result of this run.

        Raises:
            UserError: the folder holds the result of a different run.
        """
        path = self.folder / RESULT
        if not path.exists():
            return False
        try:
            content = read_record(path)
        except files.DamagedFileError as error:
            logger.warning("%s; it will be written again", error)
            return False
        if self._accept(content, path, self.REMEDY):
            if not list_checkpoints(self.folder):
                raise UserError(
                    f"{path} is a result whose run has no checkpoint to continue from; "
                    f"`initial_checkpoint={path}` starts a new run from its weights"
                )
            return False
        if content.get("samples") != self.identity.samples:
            raise UserError(f"{path} was trained on a different set of images than the present one. {self.REMEDY.format('')}")
        return True

    def _accept(self, content: Mapping[str, Any], path: Path, remedy: str) -> RecipeChange | None:
        """Return how the recipe has changed since a file was written; None if it has not.

        Args:
            remedy: for the refusal; '{}' in it is replaced by the option that would permit the change.

        Raises:
            UserError: the file belongs to a different run, and the user has not asked for a change of the recipe.
        """
        change, differs = self.identity.change_since(content), content.get("class_names") != self.identity.class_names
        if differs or (change and not change.is_permitted(self._config)):
            differences = "; ".join([str(change)] * bool(change) + ["the class names differ"] * differs)
            way_out = "`prolong` to train longer, " if change and change.is_longer else "`change_recipe` to go on with it, "
            raise UserError(f"{path} belongs to a different run: {differences}. {remedy.format('' if differs else way_out)}")
        return change

    def _keep_results(self) -> None:
        """Rename the results of a run that is continued, so that their presence does not mean that it is finished."""
        result = self.folder / RESULT
        if not result.exists():
            return
        iteration = read_record(result)["iteration"]
        for path in (self.folder / BEST, self.folder / RESULT_EMA, result):
            if path.exists():
                path.rename(path.with_name(f"{path.stem}-{iteration:06}{path.suffix}"))

    def restore(self, state: TrainingState, interval: int | None = None) -> Origin | None:
        """Load the newest valid checkpoint in the folder, or else the one that `resume` names, in all processes.

        Args:
            state: receives the content of the checkpoint; only weights and iteration with `resume_opt=False`.
            interval: consider only checkpoints whose iteration is a multiple of it.

        Returns:
            The checkpoint; None if there is none.

        Raises:
            UserError: the checkpoint belongs to a different run.
        """
        checkpoint: tuple[str, dict[str, Any]] | None = self._read(interval) if distributed.rank() == 0 else None
        checkpoint = distributed.broadcast_from_rank0(checkpoint)
        if checkpoint is None:
            return None
        name, content = checkpoint
        try:
            return self._load(state, name, content)
        except (UserError, torch.OutOfMemoryError):
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            # Its checksum is right: another program wrote it, or a version that this one does not know.
            raise UserError(f"{name} does not hold the state of a run: {shorten(one_line(error))}", status=1) from error

    def _load(self, state: TrainingState, name: str, content: dict[str, Any]) -> Origin:
        if name == self._config.resume and not self._config.resume_opt:
            state.load_weights(content)
        elif change := self.identity.change_since(content):
            line = continue_changed(state, content, change)
            if distributed.rank() == 0:
                self._keep_results()  # not before it is certain that the run goes on
            return Origin(name, line)
        else:
            state.load_state_dict(content)
        return Origin(name)

    def _read(self, interval: int | None) -> tuple[str, dict[str, Any]] | None:
        resume = self._config.resume
        if newest := read_newest(self.folder, interval):
            path, content = newest
            self._accept(content, path, self.REMEDY)
        elif resume:
            path = Path(resume)
            if path.is_dir():
                proposals = list_checkpoints(path)
                remedy = f"did you mean {proposals[0]}?" if proposals else "give the file of a checkpoint"
                raise UserError(f"`resume` {path} is a folder; {remedy}")
            content = read_checkpoint(path)
            if self._config.resume_opt:
                self._accept(content, path, self.REMEDY_RESUME)
        else:
            return None
        if content["samples"] != self.identity.samples:
            logger.warning("the training images have changed since this run began, which changes its result")
        return str(path) if newest else resume, content

    def save(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a file in the background, with the identity and origin of the run, and prune old checkpoints."""
        path = self.folder / name
        if distributed.rank() == 0:
            origin = {
                "options": self.identity.recipe,
                "samples": self.identity.samples,
                "version": __version__,
                "host": socket.gethostname(),
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
            self._writer.write(path, {**content, **origin}, lambda: self._prune(content.get("validations")))
        return path

    def _prune(self, validations: Mapping[int, float] | None) -> None:
        """Delete old checkpoints after a file was written; `validations` are those of the file, if it is a checkpoint."""
        hist, interval = self._config.checkpoint_hist, self.interval if self._has_additional else None
        by_metric = self._config.checkpoint_by == "metric"
        if (hist or interval) and (validations is not None or not by_metric):
            prune(self.folder, hist=hist, interval=interval, scores=validations if by_metric else None)

    def while_waiting(self, callback: Callable[[], object]) -> None:
        """Set what is called while `save` and `wait` wait for a file; an exception that it raises ends the wait."""
        self._writer.while_waiting = callback

    def check(self) -> None:
        """Raise the error of a write that failed."""
        self._writer.check()

    def wait(self) -> None:
        """Wait until all files are complete, and raise the error of a write that failed."""
        self._writer.wait()
