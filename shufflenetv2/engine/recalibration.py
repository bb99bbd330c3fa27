"""The command `shufflenetv2 recalibrate`: batch-norm statistics as plain averages, for weights of any origin."""

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import OPTIONS, Config
from ..config.declaration import COUNT, NATURAL, OptionsError, Parser, flag, parse_value
from ..errors import UserError
from .command import exit_status, parse

if TYPE_CHECKING:
    from ..data import Dataset
    from ..weights import Weights

DESCRIPTION = """\
Does what training does after its last iteration, for weights of any origin: recomputes the statistics of batch norm as
plain averages over training images, with the weights as they are. A file of ours is recalibrated with the augmentation
of its own recipe, any other with the published one. OUT is a file of ours, with everything else that MODEL tells.
"""
# The training's options that it takes
TAKEN = {
    "train_dir": "folder of one folder of images per class; default: the named data set that MODEL was trained on, if any",
    "val_dir": "the same for validation: tells the accuracy before and after",
    "dataset": "instead: digits (built in), or torchvision's: mnist, cifar10, ...; these are validated on as well",
    "data_dir": "for --train-dir DIR/train --val-dir DIR/val; or where a named data set lies",
    "class_map": "the class names, one per line, in the order of their labels",
    "batch_size": "images in a batch; default: the recipe's",
    "workers": "threads that load images; default: the usable cores",
    "device": "auto, cpu, cuda, cuda:N or mps; default: auto",
}


def main(argv: Sequence[str], prog: str = "shufflenetv2 recalibrate") -> int:
    """Recalibrates the weights that the arguments name.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong use, 130 stopped by Ctrl-C; OUT is complete, or as it was before.
    """
    try:
        given = vars(parser(prog).parse_args(argv))
        for name, kind in (("images", COUNT), ("seed", NATURAL)):
            if name in given:
                given[name] = parse_value(kind, flag(name), given[name])
        recalibrate(given.pop("source"), given.pop("destination"), say=print, **given)
    except (Exception, KeyboardInterrupt) as error:
        return exit_status(error, prog)
    return 0


def parser(prog: str) -> argparse.ArgumentParser:
    """The arguments and their help."""
    found = Parser(
        prog=prog,
        allow_abbrev=False,
        description=DESCRIPTION,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110),
        argument_default=argparse.SUPPRESS,
    )
    found.add_argument("source", metavar="MODEL", type=Path, help="weight file of any origin")
    found.add_argument("destination", metavar="OUT", type=Path, help="file to write; MODEL itself will do")
    found.add_argument("--images", metavar="N", help="how many to average over; default: all, at most 1,280,000")
    found.add_argument("--seed", metavar="N", help="of the order and the augmentation; default: the recipe's")
    known = {option.name: option for option in OPTIONS}
    for name, text in TAKEN.items():
        letter = [known[name].short] if known[name].short else []
        found.add_argument(*letter, flag(name), metavar=known[name].accepts.metavar, help=text)
    return found


def recalibrate(
    source: str | Path,
    destination: str | Path,
    *,
    images: int | None = None,
    seed: int | None = None,
    say: Callable[[str], object] = lambda line: None,
    **options: Any,
) -> "Weights":
    """Recalibrates weights of any origin, and writes them as a file of ours that is complete, or as it was before.

    Args:
        images: how many to average over; None for all, at most 1,280,000.
        seed: of their order and augmentation; None for that of the recipe.
        say: told what is done, and the accuracy.
        options: `train_dir`, `val_dir` and the others in TAKEN, as the training's options.

    Returns:
        The weights in that file. Their accuracy is what was found now; None without a validation.

    Raises:
        UserError: for a file, a folder or an option that cannot be used; the text names it.
    """
    # Here, since torch takes seconds to load: not for help, nor for a mistyped option.
    from tqdm import tqdm

    from .. import files
    from ..data import (
        DataIterator,
        build_evaluation_transform,
        build_preprocessing,
        build_train_transform,
        evaluation_batches,
        worker_count,
    )
    from ..engine import choose_devices, distributed, evaluate, recalibrate_batch_norm
    from ..engine.trainer import RECALIBRATION_IMAGES
    from ..recipe import freeze
    from ..weights import read_weights
    from . import build

    destination = Path(destination)
    if not os.access(destination.parent, os.W_OK):  # before the work, not after it
        raise UserError(f"{destination} cannot be written: {destination.parent} is no folder that can be written to")
    weights = read_weights(source)
    recipe = _recipe(weights, options)
    train_set = build.open_datasets(recipe.replace(validate=False))[0]
    val_set = _validation_set(recipe, weights)
    use = build_preprocessing(recipe.data)
    devices = choose_devices(recipe.device)
    network = weights.network(use)
    if recipe.freeze:
        freeze(network, recipe.freeze)  # what its training left as it was
    model = devices.place(network)

    def accuracy(when: str) -> dict[str, float] | None:
        if val_set is None:
            return None
        batches = evaluation_batches(
            val_set,
            build_evaluation_transform(use),
            recipe.val_batch_size,
            workers=worker_count(recipe.common.workers, distributed.local_world_size()),
            pin_memory=devices.pin_memory,
        )
        with closing(batches):
            found = evaluate(model, batches)
        say(f"{when}: top-1 {1 - found.top1_error:.2%}, top-5 {1 - found.top5_error:.2%}, loss {found.loss:.4f}")
        return {"top1": 1 - found.top1_error, "top5": 1 - found.top5_error, "loss": found.loss}

    available = min(len(train_set), images or RECALIBRATION_IMAGES)
    batch_size = min(recipe.batch_size, available)
    if batch_size == 1:
        raise OptionsError("--batch-size 1: statistics need two images at least")
    accuracy("before")
    say(f"recalibrating batch norm over {available // batch_size:,} batches of {batch_size:,} images on {devices}")
    iterator = DataIterator(
        train_set,
        build_train_transform(recipe.data, recipe.augmentation),
        batch_size,
        seed=recipe.seed if seed is None else seed,
        start_iteration=weights.iteration,  # where its training would have gone on
        workers=worker_count(recipe.common.workers, distributed.local_world_size()),
        pin_memory=devices.pin_memory,
        repeats=recipe.aug_repeats,
    )
    with closing(iterator):
        pairs = (next(iterator) for _ in tqdm(range(available // batch_size), unit="batch", leave=False, disable=None))
        # Split batch norm's own statistics, which are the only ones in the file, are those of the first views.
        recalibrate_batch_norm(model, (batch[: len(targets)] if recipe.split_bn else batch for batch, targets in pairs))
    details = weights.details | {"accuracy": accuracy("after")}
    state_dict = network.cpu().state_dict()
    result = replace(weights, path=destination, state_dict=state_dict, architecture=network.architecture, details=details)
    files.write(destination, result.record())
    say(f"written: {destination}")
    return result


def _recipe(weights: "Weights", given: dict[str, Any]) -> Config:
    """The options that the weights were trained with, or the published ones, but for those that are given."""
    if unknown := given.keys() - TAKEN:
        raise TypeError(f"recalibrate takes {', '.join(TAKEN)}, not {unknown.pop()!r}")
    known = {option.name for option in OPTIONS if option.recipe}
    own = {name: value for name, value in weights.details.get("options", {}).items() if name in known}
    named = own.pop("dataset", "folder")
    if "dataset" in given:
        own = {name: value for name, value in own.items() if name not in ("train_split", "val_fraction")}
    elif named != "folder" and "train_dir" not in given:
        given = given | {"dataset": named}
    if not given.keys() & {"train_dir", "data_dir", "dataset"}:
        raise OptionsError("--train-dir is missing: a folder of one folder of images per class")
    options = parse([f"{flag(name)}={value}" for name, value in given.items()])
    if options.val_dir:
        own.pop("val_fraction", None)
    if use := weights.preprocessing:
        own |= {name: getattr(use, name) for name in ("input_size", "resize_size", "mean", "std", "interpolation")}
    return options.replace(**{name: value for name, value in own.items() if name not in options.explicit})


def _validation_set(recipe: Config, weights: "Weights") -> "Dataset | None":
    from . import build

    if recipe.dataset == "folder" and not (recipe.val_dir or recipe.val_fraction):
        return None
    val_set = build.open_validation_set(recipe, weights.class_names)
    if len(val_set.class_names) != weights.n_class:
        where = recipe.val_dir or recipe.train_dir or recipe.dataset
        raise UserError(f"{weights.path} knows {weights.n_class} classes, and {where} has {len(val_set.class_names)}")
    return val_set
