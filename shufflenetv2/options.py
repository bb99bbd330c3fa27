"""Every option of the command, its default and its meaning, and how options are given.

The groups below are the whole list. An option can be given on the command line (`--batch-size 64`)
or in a YAML file (`batch-size: 64`) named by `--config`; the command line wins. Imports nothing
heavy, so that help and complaints come at once.
"""

import argparse
import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from . import UserError

REFERENCE_BATCH_SIZE = 1024
REFERENCE_LEARNING_RATE = 0.5
TRY_DIGITS = "to try the trainer on built-in images: --config configs/digits.yaml"


class OptionsError(UserError):
    """Wrong use; the text is one line that names the option and the remedy."""


@dataclass(frozen=True)
class Kind:
    """What values an option takes: `accepts` says it in words, `parse` turns text into a value or raises ValueError."""

    accepts: str
    parse: Callable[[str], Any]
    metavar: str
    counts: tuple[int, ...] = ()  # how many values make a list; empty for a single value
    alone: str = ""  # the value of an option that is given without one, where it may be


def _number(convert: Callable[[str], Any], accepts: str, valid: Callable[[Any], bool], metavar: str) -> Kind:
    def parse(text: str) -> Any:
        value = convert(text)
        if not (math.isfinite(value) and valid(value)):
            raise ValueError
        return value

    return Kind(accepts, parse, metavar)


def _switch(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise ValueError
    return values[text.lower()]


def _name(text: str) -> str:
    if not text:  # an unset variable of the shell, as a rule
        raise ValueError
    return text


def _interval(text: str) -> int | str:
    if text[-1:] in ("s", "m", "h"):
        if not 0 < float(text[:-1]) < math.inf:
            raise ValueError
        return text
    return int(COUNT.parse(text))


def _choice(*names: str) -> Kind:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return Kind("one of " + ", ".join(names), parse, "{" + ",".join(names) + "}")


def _several(kind: Kind, accepts: str, metavar: str, *counts: int) -> Kind:
    return Kind(accepts, kind.parse, metavar, counts)


SWITCH = Kind("true or false", _switch, "")
TEXT = Kind("text", str, "NAME")
FILE = Kind("a file name", _name, "FILE")
BACKEND = Kind("the name of a backend of torch.compile", _name, "BACKEND", alone="inductor")
FOLDER = Kind("a folder name", _name, "DIR")
COUNT = _number(int, "a whole number of at least 1", lambda value: value >= 1, "N")
NATURAL = _number(int, "a whole number from 0 to below 2**63", lambda value: 0 <= value < 2**63, "N")
QUALITY = _number(int, "a whole number from 1 to 100", lambda value: 1 <= value <= 100, "Q")
PIXELS = _number(int, "a whole number of pixels, at least 32", lambda value: value >= 32, "PIXELS")
POSITIVE = _number(float, "a number above 0", lambda value: value > 0, "X")
NON_NEGATIVE = _number(float, "a number of at least 0", lambda value: value >= 0, "X")
SHARE = _number(float, "a number from 0 to 1", lambda value: 0 <= value <= 1, "P")
SHARE_BELOW_1 = _number(float, "a number from 0 to below 1", lambda value: 0 <= value < 1, "X")
RANGE = _several(POSITIVE, "two numbers above 0, the smaller first", "X", 2)
SHARES = _several(POSITIVE, "two numbers above 0 and at most 1, the smaller first", "X", 2)
JITTER = _several(NON_NEGATIVE, "one number of at least 0, or three", "X", 1, 3)
INTERVAL = Kind("a whole number of at least 1, or a time like 90s, 10m or 2h", _interval, "N|TIME")
BGR = _several(_number(float, "", lambda value: True, "X"), "three numbers", "X", 3)
BGR_POSITIVE = _several(POSITIVE, "three numbers above 0", "X", 3)


def option(default: Any, kind: Kind, text: str, *, short: str = "", recipe: bool = False) -> Any:
    """An option. `recipe`: it decides the result, so a run can only be continued with the same value."""
    return dataclasses.field(default=default, metadata={"kind": kind, "text": text, "short": short, "recipe": recipe})


@dataclass(frozen=True)
class Common:
    config: str = option("", FILE, "YAML file of options; the command line overrides it", short="-c")
    save: str = option("./models", FOLDER, "where checkpoints and the finished model.pkl go")
    log_dir: str = option("./logs", FOLDER, "where logs go, in a folder named like the last part of --save")
    device: str = option("auto", TEXT, "auto, cpu, cuda, cuda:N or mps; auto takes every GPU there is")
    workers: int | None = option(
        None, COUNT, "threads that load images, per process; default: the usable cores, shared", short="-j"
    )
    debug: bool = option(False, SWITCH, "show the traceback of an error")


@dataclass(frozen=True)
class Data:
    dataset: str = option("folder", _choice("folder", "digits"), "folders of images, or the built-in digits", recipe=True)
    train_dir: str = option("", FOLDER, "folder of one folder of images per class")
    val_dir: str = option("", FOLDER, "the same for validation; without it nothing is validated")
    val_batch_size: int = option(None, COUNT, "images in a validation batch, per process; default: --batch-size, at most 256")
    input_size: int = option(224, PIXELS, "side of the images the network sees", recipe=True)
    resize_size: int = option(
        None, PIXELS, "short side before the central crop in validation; default: --input-size / 0.875", recipe=True
    )
    mean: tuple[float, float, float] = option((0.0, 0.0, 0.0), BGR, "subtracted from the pixels, BGR, 0..255", recipe=True)
    std: tuple[float, float, float] = option((1.0, 1.0, 1.0), BGR_POSITIVE, "then divides them, BGR", recipe=True)


@dataclass(frozen=True)
class Augmentation:
    scale: tuple[float, float] = option((0.08, 1.0), SHARES, "share of the area a random crop covers", recipe=True)
    ratio: tuple[float, float] = option((3 / 4, 4 / 3), RANGE, "width / height of a random crop", recipe=True)
    color_jitter: tuple[float, float, float] = option(
        (0.4,), JITTER, "strength of brightness, contrast and saturation jitter", recipe=True
    )
    hflip: float = option(0.5, SHARE, "probability of a horizontal flip", recipe=True)


@dataclass(frozen=True)
class Model:
    model_size: str = option("1.5x", _choice("0.5x", "1.0x", "1.5x", "2.0x"), "width of the network", recipe=True)
    dist_bn: str = option(
        "broadcast",
        _choice("broadcast", "reduce"),
        "batch-norm statistics of several processes: the first one's, or their average",
        recipe=True,
    )
    drop: float | None = option(None, SHARE_BELOW_1, "dropout of the features; default: 0.2 for 2.0x, else 0", recipe=True)


@dataclass(frozen=True)
class Training:
    total_iters: int = option(300_000, COUNT, "iterations", recipe=True)
    batch_size: int = option(REFERENCE_BATCH_SIZE, COUNT, "images in an iteration, over all GPUs and processes", recipe=True)
    learning_rate: float = option(
        None, POSITIVE, "at the start, falling linearly to 0; default: 0.5 x batch size / 1024", recipe=True
    )
    momentum: float = option(0.9, SHARE_BELOW_1, "of SGD", recipe=True)
    weight_decay: float = option(4e-5, NON_NEGATIVE, "on weights; biases and batch norm have none", recipe=True)
    label_smooth: float = option(0.1, SHARE_BELOW_1, "share of the target spread over all classes", recipe=True)
    model_ema: bool = option(False, SWITCH, "average the weights over the iterations as well, into model-ema.pkl", recipe=True)
    model_ema_decay: float = option(0.9998, SHARE_BELOW_1, "share of the average kept in an iteration", recipe=True)
    seed: int = option(0, NATURAL, "of the initial weights, the order of samples and the augmentation", recipe=True)


@dataclass(frozen=True)
class Execution:
    channels_last: bool = option(
        False, SWITCH, "interleave the channels in memory (NHWC): faster on a CPU; rounds a little differently", recipe=True
    )
    amp: bool = option(False, SWITCH, "compute in --amp-dtype where that is safe", recipe=True)
    amp_dtype: str = option("bfloat16", _choice("bfloat16", "float16"), "for --amp; float16 scales the loss", recipe=True)
    torchcompile: str = option("", BACKEND, "compile the network for training; inductor if no backend is named", recipe=True)


@dataclass(frozen=True)
class Running:
    auto_continue: bool = option(True, SWITCH, "start over instead of going on from the newest checkpoint in --save")
    on_nonfinite: str = option(
        "stop",
        _choice("stop", "skip", "rollback"),
        "a loss that is not finite ends the run, or from the newest checkpoint on its iteration is left out, "
        "or all up to it are",
    )
    display_interval: int = option(20, COUNT, "iterations between two TRAIN lines")
    val_interval: int = option(10_000, COUNT, "iterations between two validations")
    save_interval: int | str = option(10_000, INTERVAL, "iterations, or time (90s, 10m, 2h), between two checkpoints")


@dataclass(frozen=True)
class Evaluation:
    eval: bool = option(False, SWITCH, "evaluate --eval-resume on --val-dir instead of training")
    eval_resume: str = option("", FILE, "weights to evaluate; default: model.pkl in --save")


GROUPS = (Common, Data, Augmentation, Model, Training, Execution, Running, Evaluation)


@dataclass(frozen=True)
class Options(Evaluation, Running, Execution, Training, Model, Augmentation, Data, Common):
    """All options. From `parse` they come resolved: a default of None that depends on another option has its value.

    Attributes:
        given: the names of those on the command line. In an evaluation these outweigh what the
            weight file says of itself, which in turn outweighs a YAML file.
    """

    given: frozenset[str] = frozenset()


def fields() -> Iterable[dataclasses.Field[Any]]:
    """The options in the order of their groups."""
    return (field for group in GROUPS for field in dataclasses.fields(group))


def recipe_of(options: Options) -> dict[str, Any]:
    """The options that decide the result, by name."""
    return {field.name: getattr(options, field.name) for field in fields() if field.metadata["recipe"]}


def default_learning_rate(batch_size: int) -> float:
    """The reference's 0.5 at its batch size, in proportion elsewhere."""
    return REFERENCE_LEARNING_RATE * batch_size / REFERENCE_BATCH_SIZE


def to_yaml(options: Options) -> str:
    """The options as a file for `--config`, in their groups."""
    lines = []
    for group in GROUPS:
        lines.append(f"# {group.__name__.lower()}")
        for field in dataclasses.fields(group):
            value = getattr(options, field.name)
            if value not in (None, "") and field.name != "config":
                plain = list(value) if isinstance(value, tuple) else value
                shown = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, allow_unicode=True)
                lines.append(f"{flag(field.name)[2:]}: {shown.splitlines()[0]}")
    return "\n".join(lines) + "\n"


def flag(name: str) -> str:
    """The name of an option as it is given."""
    return "--" + name.replace("_", "-")


def parse(argv: Sequence[str], prog: str = "train.py") -> Options:
    """Options from a command line, and from the YAML file it names.

    Raises:
        OptionsError: for a name that is unknown, a value that is not accepted, a file that cannot
            be read, or options that contradict each other.
        SystemExit: after printing the help.
    """
    found, unknown = _parser(prog).parse_known_args(argv)
    if unknown:
        raise OptionsError(_unknown(unknown[0].split("=")[0], "on the command line"))
    given = {name: parse_value(_BY_NAME[name].metadata["kind"], flag(name), text) for name, text in vars(found).items()}
    from_file = _read_yaml(given["config"]) if "config" in given else {}
    return _resolve(Options(**(from_file | given), given=frozenset(given)))


def _resolve(options: Options) -> Options:
    """Fills in what depends on other options, and refuses what contradicts itself."""
    for name in ("scale", "ratio"):
        low, high = getattr(options, name)
        if low > high or (name == "scale" and high > 1):
            raise OptionsError(f"{flag(name)} {low} {high}: must be {_BY_NAME[name].metadata['kind'].accepts}")
    resize_size = options.resize_size or int(options.input_size / 0.875 + 0.5)
    if resize_size < options.input_size and not options.eval:  # there the weight file may say otherwise
        raise OptionsError(f"--resize-size {resize_size} is smaller than --input-size {options.input_size}")
    if options.eval_resume and not options.eval:
        raise OptionsError("--eval-resume is for --eval; without it nothing is evaluated")
    learning_rate = options.learning_rate or default_learning_rate(options.batch_size)
    if options.dataset != "folder":
        for name in ("train_dir", "val_dir"):
            if getattr(options, name):
                raise OptionsError(f"{flag(name)} needs --dataset folder; {options.dataset} brings its own images")
    elif options.eval and not options.val_dir:
        raise OptionsError("--val-dir is missing: the folder of one folder of images per class to evaluate on")
    elif not options.eval and not options.train_dir:
        raise OptionsError(f"--train-dir is missing: a folder of one folder of images per class; {TRY_DIGITS}")
    return dataclasses.replace(
        options,
        resize_size=resize_size,
        learning_rate=learning_rate,
        val_batch_size=options.val_batch_size or min(options.batch_size, 256),
        color_jitter=options.color_jitter if len(options.color_jitter) == 3 else options.color_jitter * 3,
    )


def parse_value(kind: Kind, where: str, given: Any) -> Any:
    """What the text (or the list of texts) given for an option means.

    Raises:
        OptionsError: where the kind does not accept it; `where` says which option it is.
    """
    texts = [str(item) for item in given] if isinstance(given, list) else [str(given)]
    try:
        if len(texts) not in (kind.counts or (1,)):
            raise ValueError
        values = tuple(kind.parse(text) for text in texts)
    except ValueError:
        raise OptionsError(f"{where} {' '.join(texts)}: must be {kind.accepts}") from None
    return values if kind.counts else values[0]


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionsError(f"--config {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an impossible date
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise OptionsError(f"--config {path} is not YAML{place}") from None
    if not isinstance(content or {}, dict):
        raise OptionsError(f"--config {path} is not a list of 'option: value' lines")
    given = {}
    for key, value in (content or {}).items():
        name = str(key).replace("-", "_")
        if name == "config":
            raise OptionsError(f"'config' in {path}: a file of options cannot name another")
        if name not in _BY_NAME:
            raise OptionsError(_unknown(str(key), f"in {path}"))
        if value is not None:
            given[name] = parse_value(_BY_NAME[name].metadata["kind"], f"{key} in {path}:", value)
    return given


def _unknown(name: str, where: str) -> str:
    bare = name.lstrip("-").replace("_", "-")
    near = difflib.get_close_matches(bare, [flag(known)[2:] for known in _BY_NAME], 1, 0.5)
    prefix = "--" if name.startswith("-") else ""
    return f"unknown option {name!r} {where}" + (f"; did you mean {prefix}{near[0]}?" if near else "; --help lists them all")


class Parser(argparse.ArgumentParser):
    """Raises an OptionsError for wrong use, where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        raise OptionsError(message.removeprefix("argument "))


EXAMPLES = """examples:
  train on the built-in digits:     {prog} --config configs/digits.yaml
  train on your own images:         {prog} --model-size 1.0x --train-dir DIR --val-dir DIR
  evaluate what came out of it:     {prog} --eval --eval-resume models/model.pkl --val-dir DIR
"""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        allow_abbrev=False,
        description="Trains and evaluates ShuffleNetV2. Run the same command again after an interruption, and it goes on.",
        epilog=EXAMPLES.format(prog=prog),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110),
    )
    for group in GROUPS:
        section = parser.add_argument_group(group.__name__.lower())
        for field in dataclasses.fields(group):
            kind: Kind = field.metadata["kind"]
            names = [field.metadata["short"]] * bool(field.metadata["short"]) + [flag(field.name)]
            text = field.metadata["text"]
            common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
            if kind is SWITCH:
                # Both forms exist; the help shows the one that changes something.
                on, off = (argparse.SUPPRESS, text) if field.default else (text, argparse.SUPPRESS)
                section.add_argument(*names, nargs="?", const="true", metavar="true|false", help=on, **common)
                section.add_argument("--no-" + names[-1][2:], action="store_const", const="false", help=off, **common)
                continue
            default: Any = field.default
            if default not in (None, ""):
                shown = " ".join(f"{value:.4g}" for value in default) if kind.counts else default
                text += f" (default: {shown})"
            nargs: Any = None if not kind.counts else "+" if len(kind.counts) > 1 else kind.counts[0]
            if kind.alone:
                nargs, common = "?", common | {"const": kind.alone}
            section.add_argument(*names, metavar=kind.metavar, nargs=nargs, help=text.replace("%", "%%"), **common)
    return parser


_BY_NAME = {field.name: field for field in fields()}
DEFAULTS = {name: field.default for name, field in _BY_NAME.items()}
