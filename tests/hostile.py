"""Strategies of hypothesis for hostile input: command lines, YAML files, weight files, metadata of exported files."""

import contextlib
import functools
import io
import json
import string
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import save

from shufflenetv2 import files
from shufflenetv2.cli.command import parse, run_command, training_parser
from shufflenetv2.cli.info import format_info
from shufflenetv2.cli.parser import OptionParser
from shufflenetv2.config import COMMAND_GROUPS, OPTIONS, InfoConfig, PredictConfig
from shufflenetv2.data.policies import parse_policy
from shufflenetv2.export import load
from shufflenetv2.export.metadata import KEYS, ExportMetadata
from shufflenetv2.weights import Preprocessing, describe
from tests.models import write_model


def end(parser: OptionParser, run: Callable[[], object]) -> int:
    """Run a command in this process, check that it ends well or with one line on standard error, and return its status.

    Raises:
        Exception: the command would show a traceback.
    """
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            status = run_command(parser, lambda: (run(), 0)[1])
        except SystemExit as exit_:  # after the help
            status = int(exit_.code or 0)
    text = errors.getvalue()
    assert status in (0, 1, 2)
    assert text.count("\n") == (status != 0), text
    assert text.rstrip("\n").isprintable(), text
    return status


# ---- values

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**53, 2**63, 10**18, 10**400, -1, 0, 1e-300, 1e308, 1e6, 8192, 0.5]),
)
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text("0123456789.eE-+_xj, ", max_size=12),
    st.text(string.ascii_lowercase + "-=:.0123456789", max_size=20),
    st.sampled_from(["", "true", "False", "nan", "inf", "-inf", "auto", "\0", "a\nb", "\x1b[2J", "\udcff", "9" * 5000, "a=b"]),
)
PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXTS, values, max_size=4),
    max_leaves=8,
)


# ---- command lines and YAML


def _words(options: Sequence[Any]) -> st.SearchStrategy[list[str]]:
    names = [name for option in options for name in ("--" + option.key, *option.aliases, *filter(None, [option.short]))]
    names += ["--no-" + option.key for option in options if option.is_switch]
    valid = st.sampled_from([str(choice) for option in options for choice in option.choices] or ["1"])
    value = valid | NUMBERS.map(lambda number: _text(number)) | TEXTS
    name = st.sampled_from([name for name in names if name not in ("--config", "-c")])
    pair = st.tuples(name, value).map(list) | st.tuples(name, value).map(lambda pair: ["=".join(pair)])
    return st.lists(pair | name.map(lambda word: [word]) | value.map(lambda word: [word]), max_size=6).map(
        lambda groups: [word for group in groups for word in group if not word.startswith(("--config", "-c"))]
    )


def _text(number: float) -> str:
    try:
        return str(number)
    except ValueError:
        return "9" * 5000


TRAINING_LINES = _words(OPTIONS)
COMMAND_LINES = st.sampled_from(COMMAND_GROUPS).flatmap(
    lambda group: st.tuples(st.just(group), _words(OptionParser("x", group).options))
)


def end_training_line(words: list[str]) -> int:
    """Parse a command line of `train`; the options that it gives are themselves a file of options."""
    parser = training_parser()

    def run() -> None:
        config = parse(["--dataset", "digits", *words], parser)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "options.yaml")
            path.write_text(config.to_yaml(), encoding="utf-8")
            again = parse(["--config", str(path)])
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


def end_yaml(text: str) -> int:
    """Read options from a file with a text."""
    parser = training_parser()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.yaml")
        path.write_bytes(text.encode(errors="surrogateescape" if text.isascii() else "replace"))
        return end(parser, lambda: parse(["--dataset", "digits", "--config", str(path)], parser))


POLICIES = st.text(max_size=20) | st.lists(
    st.sampled_from(
        ["rand", "augmix", "v0", "original", "ta_wide", "3a", "m9", "n2", "n" + "9" * 400, "p0.5", "mstd0.5", "mmax10"]
    )
    | st.sampled_from(["inc1", "t0", "tx", "w3", "d1", "a1", "b1", "m-1", "m1e9", "", "a:b", "os:system"]),
    max_size=5,
).map("-".join)


def end_policy(text: str) -> int:
    """Build a policy from a text, unless it names code."""
    parser = training_parser()
    return end(parser, lambda: ":" in text or parse_policy(text))


# ---- weight files


@functools.cache
def model_content() -> dict[str, Any]:
    """Return the content of a small model file."""
    with tempfile.TemporaryDirectory() as folder:
        content: dict[str, Any] = files.read(write_model(Path(folder, "model.pkl"), n_class=3))
    return content


@functools.cache
def weight_files() -> dict[str, tuple[bytes, tuple[range, ...]]]:
    """Return the content of small valid weight files by form, and the places of what is not a value of a tensor."""
    content = model_content()
    with tempfile.TemporaryDirectory() as folder:
        files.write(Path(folder, "model.pkl"), content)
        checksummed = Path(folder, "model.pkl").read_bytes()
    plain, legacy = io.BytesIO(), io.BytesIO()
    torch.save(content, plain)
    torch.save(content, legacy, _use_new_zipfile_serialization=False)
    metadata = {name: json.dumps(value) for name, value in content.items() if name != "state_dict"}
    tensors = save(content["state_dict"], metadata)
    header = int.from_bytes(tensors[:8], "little")
    return {
        "checksummed": (checksummed, _structure(checksummed)),
        "plain": (plain.getvalue(), _structure(plain.getvalue())),
        "legacy": (legacy.getvalue(), (range(legacy.getvalue().rindex(b"num_batches_tracked")),)),
        "safetensors": (tensors, (range(8 + header),)),
    }


def _structure(content: bytes) -> tuple[range, ...]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        data = next(member for member in members if member.filename.endswith("data.pkl"))
        start = content.index(archive.read(data))
    headers = [range(member.header_offset, member.header_offset + 64) for member in members]
    return (range(start, start + data.file_size), range(archive.start_dir, len(content)), *headers)


_BYTES = st.sampled_from(
    [b"\0", b"\xff", b"\x7f", b"(", b".", b"R", b"]", b"}", b"PK\3\4", b"\xff" * 8, b"[" * 3000]
) | st.binary(max_size=8)
_CHANGES = st.lists(
    st.tuples(st.sampled_from(["replace", "insert", "delete", "cut"]), st.integers(0, 2**20), st.floats(0, 1), _BYTES),
    min_size=1,
    max_size=4,
)
DAMAGED_FILES = st.tuples(st.sampled_from(["checksummed", "plain", "legacy", "safetensors"]), _CHANGES, st.booleans())


def damaged(form: str, changes: Sequence[tuple[str, int, float, bytes]], anywhere: bool) -> bytes:
    """Return the content of a weight file after some changes of its bytes."""
    original, places = weight_files()[form]
    content = bytearray(original)
    for kind, choice, fraction, replacement in changes:
        place = range(len(content)) if anywhere else places[choice % len(places)]
        position = min(place.start + int(fraction * len(place)), len(content))
        if kind == "insert":
            content[position:position] = replacement
        elif kind == "cut":
            del content[position:]
        else:
            content[position : position + len(replacement)] = b"" if kind == "delete" else replacement
    return bytes(content)


def end_damaged_file(example: tuple[str, list[tuple[str, int, float, bytes]], bool]) -> int:
    """Describe and load a damaged weight file."""
    return _end_file(damaged(*example))


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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pkl")
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


# name: (strategy, function that returns the exit status for an example)
INPUTS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], int]]] = {
    "command lines of train": (TRAINING_LINES, end_training_line),
    "command lines of the other commands": (COMMAND_LINES, end_command_line),
    "YAML files": (YAML_TEXTS, end_yaml),
    "augmentation policies": (POLICIES, end_policy),
    "damaged weight files": (DAMAGED_FILES, end_damaged_file),
    "weight files with other metadata": (UNTRUE_FILES, end_untrue_file),
    "metadata of exported files": (EXPORT_METADATA, end_export_metadata),
}
