"""Hostile input of every kind that the program reads, in one table: INPUTS.

Command lines, YAML files and metadata come from strategies of hypothesis, damaged files from the mutator in tests/mutation.py.
"""

import contextlib
import functools
import hashlib
import io
import json
import random
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import save

from shufflenetv2 import files
from shufflenetv2.cli.command import TrainingParser, parse, training_parser
from shufflenetv2.cli.info import format_info
from shufflenetv2.cli.parser import OptionParser
from shufflenetv2.config import COMMAND_GROUPS, OPTIONS, Config, InfoConfig, PredictConfig
from shufflenetv2.data.policies import parse_policy
from shufflenetv2.export import load
from shufflenetv2.export.metadata import KEYS, ExportMetadata
from shufflenetv2.weights import Preprocessing, describe
from tests.hostile_images import IMAGES
from tests.hostile_runs import RUNS
from tests.models import MMClassifier, torchvision_network, write_model, write_original
from tests.mutation import Mutator, end, pickle_parts, repair_zip, workplace
from tests.support import ROOT

# ---- values

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**53, 2**63, 10**18, 10**400, -1, 0, 1e-300, 1e308, 1e6, 8192, 0.5]),
)
TEXT_VALUES = ["", "true", "False", "nan", "inf", "-inf", "auto", "\0", "a\nb", "\x1b[2J", "\udcff", "9" * 5000, "a=b"]
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text("0123456789.eE-+_xj, ", max_size=12),
    st.text(string.ascii_lowercase + "-=:.0123456789", max_size=20),
    st.sampled_from(TEXT_VALUES),
)
PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXTS, values, max_size=4),
    max_leaves=8,
)


# ---- command lines and YAML


def random_value(rng: random.Random) -> str:
    """Return a number or a text that is hardly ever a good value."""
    kind = rng.randrange(4)
    if kind == 0:
        return str(rng.randrange(-3, 300)) if rng.random() < 0.7 else str(rng.getrandbits(rng.choice((16, 64, 200))))
    if kind == 1:
        return str(rng.choice((rng.random(), 10 ** rng.uniform(-320, 308), float("nan"), float("inf"))))
    if kind == 2:
        return rng.choice(TEXT_VALUES)
    letters = rng.choice(
        ("0123456789.eE-+_xj, ", string.ascii_lowercase + "-=:.0123456789", string.printable, "aé猫\u202e\udcff\0")
    )
    return "".join(rng.choices(letters, k=rng.randrange(20)))


@functools.cache
def _names_and_choices(group: type | None) -> tuple[list[str], list[str]]:
    """Return the names of the options of a command, and the values that they can be chosen from; None: of `train`."""
    options = OPTIONS if group is None else OptionParser("x", group).options
    names = [name for option in options for name in ("--" + option.key, *option.aliases, *filter(None, [option.short]))]
    names += ["--no-" + option.key for option in options if option.is_switch]
    return names, [str(choice) for option in options for choice in option.choices] or ["1"]


def random_words(group: type | None, rng: random.Random) -> list[str]:
    """Return the words of a command line."""
    names, choices = _names_and_choices(group)
    words: list[str] = []
    for _ in range(rng.randrange(1, 6)):
        name = rng.choice(names)
        value = rng.choice(choices) if rng.random() < 0.4 else random_value(rng)
        words += rng.choice(([name, value], [f"{name}={value}"], [name], [value]))
    return [word for word in words if not word.startswith(("--config", "-c"))]


def _random_command(rng: random.Random) -> tuple[type, list[str]]:
    group = rng.choice(COMMAND_GROUPS)
    return group, random_words(group, rng)


@functools.cache
def _training_parser() -> TrainingParser:
    return training_parser()


def fresh_parser() -> TrainingParser:
    """Return a parser of `train` that has not parsed anything; it is always the same, because making it takes 10 ms."""
    parser = _training_parser()
    parser.spellings.clear()
    parser.folder = ""
    return parser


def end_training_line(words: list[str]) -> int:
    """Parse a command line of `train`; the options that it gives are themselves a file of options."""
    parser = fresh_parser()

    def run() -> None:
        config = parse(["--dataset", "digits", *words], parser)
        path = workplace() / "options.yaml"
        path.write_text(config.to_yaml(), encoding="utf-8")
        again = parse(["--config", str(path)], fresh_parser())
        assert again.recipe() == config.recipe()
        assert (again.common.save, again.common.workers) == (config.common.save, config.common.workers)

    return end(parser, run)


def end_command_line(line: tuple[type, list[str]]) -> int:
    """Parse the command line of another command than `train`."""
    group, words = line
    parser = OptionParser("shufflenetv2 command", group)
    return end(parser, lambda: parser.parse_group(group, words))


def _yaml(values: Any) -> str:
    try:
        return yaml.safe_dump(values)
    except (ValueError, yaml.YAMLError):  # a number of more than 4,300 digits
        return "a: " + "9" * 5000


_KEYS = st.sampled_from([option.key for option in OPTIONS if option.name != "config"]) | TEXTS
YAML_TEXTS = st.one_of(
    st.text(max_size=200),
    st.text("abc:-[]{}&*!|>'\"#%@`,? \n0123456789<", max_size=100),
    st.dictionaries(_KEYS, PLAIN_VALUES, max_size=5).map(_yaml),
    PLAIN_VALUES.map(_yaml),
    st.lists(
        st.sampled_from(["a: &a [1]\n", "b: *a\n", "[", "{", "- ", "? ", "!!int x", "<<: ", "\t", "0x", "1:2:3", "\n"])
    ).map("".join),
)


def end_yaml(text: str | bytes) -> int:
    """Read options from a file."""
    parser = fresh_parser()
    path = workplace() / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="replace"))
    return end(parser, lambda: parse(["--dataset", "digits", "--config", str(path)], parser))


@functools.cache
def option_files() -> list[bytes]:
    """Return the content of configs/*.yaml without comments, and of a file with every option."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("configs/*.yaml"))]
    texts = ["".join(line for line in text.splitlines(keepends=True) if not line.startswith("#")) for text in texts]
    return [text.encode() for text in (*texts, Config.from_values({"dataset": "digits"}).with_length(1438).to_yaml())]


POLICIES = st.text(max_size=20) | st.lists(
    st.sampled_from(
        ["rand", "augmix", "v0", "original", "ta_wide", "3a", "m9", "n2", "n" + "9" * 400, "p0.5", "mstd0.5", "mmax10"]
    )
    | st.sampled_from(["inc1", "t0", "tx", "w3", "d1", "a1", "b1", "m-1", "m1e9", "", "a:b", "os:system"]),
    max_size=5,
).map("-".join)


def end_policy(text: str) -> int:
    """Build a policy from a text, unless it names code."""
    parser = fresh_parser()
    return end(parser, lambda: ":" in text or parse_policy(text))


# ---- weight files


@functools.cache
def model_content() -> dict[str, Any]:
    """Return the content of a small model file."""
    with tempfile.TemporaryDirectory() as folder:
        content: dict[str, Any] = files.read(write_model(Path(folder, "model.pkl"), n_class=3))
    return content


@functools.cache
def weight_files() -> list[bytes]:
    """Return the content of small valid weight files: of this program, of torch.save, and of other projects."""
    content = model_content()
    path = workplace() / "model.pkl"
    files.write(path, content)
    metadata = {name: json.dumps(value) for name, value in content.items() if name != "state_dict"}
    saved = [path.read_bytes(), save(content["state_dict"], metadata), write_original(path, "0.5x").read_bytes()]
    torchvision, mmpretrain = torchvision_network("0.5x"), MMClassifier("0.5x")
    plain: list[tuple[Any, bool]] = [
        (content, True), (content, False), (torchvision.state_dict(), True), ({"model_ema": torchvision.state_dict()}, True),
        ({"state_dict": mmpretrain.state_dict(), "meta": {"dataset_meta": {"classes": list("abcdefg")}}}, True),
        ({"module." + name: tensor for name, tensor in content["state_dict"].items()}, False),
    ]  # fmt: skip
    for value, is_zip in plain:
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=is_zip)
        saved.append(buffer.getvalue())
    return saved


def repair_file(content: bytes) -> bytes:
    """Give a damaged weight file right checksums: those of the archive, and that of this program."""
    body, trailer = content[: -files.TRAILER_BYTES], content[-files.TRAILER_BYTES :]
    if not trailer.startswith(files.MARKER):
        return repair_zip(content)
    body = repair_zip(body)
    return body + files.MARKER + hashlib.sha256(body).digest()


_TENSORS = st.sampled_from(
    [
        torch.zeros(2),
        torch.tensor(float("nan")),
        torch.zeros(1, 1).expand(10**6, 1024),
        torch.zeros(2).to_sparse(),
        torch.zeros(0, 3),
    ]
)
_FIELDS = [
    "class_names",
    "preprocessing",
    "iteration",
    "architecture",
    "origin",
    "accuracy",
    "averaged",
    "recalibrated",
    "history",
    "stop_reason",
    "options",
    "samples",
    "version",
    "host",
    "time",
    "model_size",
    "state_dict",
    "meta",
    "shufflenetv2",
    "model",
]
_PARTS = [
    "input_size",
    "resize_size",
    "mean",
    "std",
    "interpolation",
    "crop_mode",
    "in_chans",
    "pooling",
    "layout",
    "head_bias",
    "bn_eps",
    "top1",
    "top5",
    "loss",
    "iteration",
    "options",
    "dataset_meta",
    "classes",
    "CLASSES",
    "classifier.0.weight",
]
_VALUES = st.one_of(
    PLAIN_VALUES,
    _TENSORS,
    st.binary(max_size=5),
    st.tuples(NUMBERS, NUMBERS, NUMBERS),
    st.lists(TEXTS, min_size=3, max_size=3),
    st.dictionaries(st.sampled_from(_PARTS), PLAIN_VALUES | st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=4),
    st.sampled_from(["0.5x", "2.0x", 3, 224, 1.0, True, "bicubic", "shufflenetv2", {"top1": 0.5, "top5": 1.0, "loss": 2.0}]),
)
UNTRUE_FILES = st.tuples(
    st.sampled_from(["torch", "safetensors"]),
    st.dictionaries(st.sampled_from(_FIELDS), _VALUES, min_size=1, max_size=4),
    st.dictionaries(
        st.sampled_from(["preprocessing", "architecture"]), st.dictionaries(st.sampled_from(_PARTS), _VALUES, max_size=3)
    ),
)


def end_untrue_file(example: tuple[str, dict[str, Any], dict[str, dict[str, Any]]]) -> int:
    """Describe and load a well-formed weight file with other metadata, or other parts of its metadata."""
    form, values, parts = example
    original = model_content()
    content = original | {name: original[name] | part for name, part in parts.items()} | values
    if form == "torch":
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return _end_file(buffer.getvalue())
    texts = {}
    for name, value in content.items():
        with contextlib.suppress(TypeError, ValueError):
            texts[name] = json.dumps(value).encode(errors="replace").decode()
    return _end_file(save(original["state_dict"], {name: text for name, text in texts.items() if name != "state_dict"}))


def _end_file(content: bytes) -> int:
    parser = OptionParser("shufflenetv2 info", InfoConfig)
    path = workplace() / "model.pkl"
    path.write_bytes(content)

    def run() -> None:
        info = describe(path)
        assert "\n".join(line for line in format_info(info).splitlines())
        json.dumps(info)
        classifier = load(path, "cpu")
        [classifier.class_name(label) for label in range(info["n_class"])]

    return end(parser, run)


_STEPS = st.dictionaries(
    st.sampled_from(["crop_mode", "resize_short_side", "resize_to", "border_color", "interpolation", "center_crop"]),
    PLAIN_VALUES,
)
_INPUT = st.dictionaries(st.sampled_from(["channels", "layout", "dtype", "shape"]), PLAIN_VALUES)
EXPORT_METADATA = st.tuples(
    st.dictionaries(st.sampled_from(KEYS), PLAIN_VALUES, max_size=2),
    _STEPS,
    _INPUT,
    st.dictionaries(st.sampled_from(KEYS), TEXTS, max_size=1),
)


def end_export_metadata(example: tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, str]]) -> int:
    """Read the metadata of an exported file."""
    values, steps, images, texts = example
    strings = ExportMetadata("0.5x", ["a", "b"], Preprocessing(32, 40)).to_strings()
    for name, part in (("preprocessing", steps), ("input", images)):
        values = {name: json.loads(strings[name]) | part, **values}
    with contextlib.suppress(ValueError):
        strings |= {name: json.dumps(value) for name, value in values.items()}
    parser = OptionParser("shufflenetv2 predict", PredictConfig)
    return end(parser, lambda: str(ExportMetadata.from_strings(strings | texts)))


# name: (strategy of hypothesis or a function of a random generator, function that returns the exit status for an example)
Source = st.SearchStrategy[Any] | Callable[[random.Random], Any]
INPUTS: dict[str, tuple[Source, Callable[[Any], int]]] = {
    "command lines of train": (functools.partial(random_words, None), end_training_line),
    "command lines of the other commands": (_random_command, end_command_line),
    "files of options": (Mutator(option_files, is_text=True), end_yaml),
    "YAML files": (YAML_TEXTS, end_yaml),
    "augmentation policies": (POLICIES, end_policy),
    "damaged weight files": (Mutator(weight_files, parts=pickle_parts, repair=repair_file), _end_file),
    "weight files with other metadata": (UNTRUE_FILES, end_untrue_file),
    "metadata of exported files": (EXPORT_METADATA, end_export_metadata),
    **RUNS,
    **IMAGES,
}


def strategy_of(source: Source) -> st.SearchStrategy[Any]:
    """Return the strategy of a kind of input."""
    if isinstance(source, st.SearchStrategy):
        return source
    return st.integers(0, 2**64 - 1).map(lambda seed: source(random.Random(seed)))
