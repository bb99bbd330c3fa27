"""Damaged files of runs and data sets: records that `report` and a resumed run read, lists, checkpoints."""

import functools
import gzip
import hashlib
import io
import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shufflenetv2 import files
from shufflenetv2.cli.parser import OptionParser
from shufflenetv2.cli.report import open_datasets
from shufflenetv2.config import Config, ReportConfig
from shufflenetv2.data.formats import has_image_suffix
from shufflenetv2.data.index import CACHE_FORMAT, cache_file, images_by_class
from shufflenetv2.data.named import open_named
from shufflenetv2.data.splits import read_class_map
from shufflenetv2.engine import choose_devices
from shufflenetv2.engine.checkpoint import Checkpointer, RunIdentity, checkpoint_name
from shufflenetv2.engine.state import TrainingState, build_training_state
from shufflenetv2.export import export, load
from shufflenetv2.recipe.class_weights import build_class_weights
from shufflenetv2.report import Records, ReportPage, append_bad_images, find_log_folder, read_bad_images, write_page
from shufflenetv2.weights import read_weights
from tests.models import SIZE, write_model
from tests.mutation import Mutator, end, pickle_parts, repair_zip, workplace
from tests.named_files import WRITE_FILES
from tests.runs import write_run

Kinds = dict[str, tuple[Callable[[random.Random], Any], Callable[[Any], int]]]
CLASSES = ["cat", "dog", "Käfer 3"]


def _parser() -> OptionParser:
    return OptionParser("shufflenetv2 report", ReportConfig)


# ---- the log folder of a run


@functools.cache
def run_folder() -> Path:
    """Write the log folder of a short run, with every file that is read back."""
    folder = write_run(workplace() / "logs")
    for name in ("predictions.csv", "metrics.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:12]))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"confusion": summary["confusion"][:4]}))
    append_bad_images(folder, [("training", f"a/{number}.jpg", "it is damaged") for number in range(3)])
    page = ReportPage(folder).write()
    data = re.search(r'<script type="application/json" id="data">.*?</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert data
    page.write_text(data[0], encoding="utf-8")  # nothing else is read again
    options = (folder / "options.yaml").read_text().splitlines(keepends=True)
    kept = (
        "dataset:",
        "total-iters:",
        "save:",
        "mixup:",
        "freeze:",
        "seed:",
        "val-fraction:",
        "mean:",
        "epochs:",
        "batch-size:",
    )
    (folder / "options.yaml").write_text("".join(line for line in options if line.startswith(kept)))
    return folder


@functools.cache
def _original(name: str) -> bytes:
    return (run_folder() / name).read_bytes()


def _originals(name: str) -> list[bytes]:
    return [_original(name)]


def end_record(name: str, content: bytes) -> int:
    """Write the report of a run with a damaged file, and continue writing its records."""
    path = run_folder() / name
    original = _original(name)
    path.write_bytes(content)

    def run() -> None:
        folder = find_log_folder(run_folder())
        write_page(workplace() / "page.html", [ReportPage(folder).collect()])
        if name == "options.yaml":
            open_datasets(folder)
        if name == "metrics.jsonl":
            again = workplace() / "again"
            again.mkdir(exist_ok=True)
            (again / name).write_bytes(content)
            records = Records(again, 100)
            records.write(101, "train", {"loss": 1.0})
            records.close()
        read_bad_images(folder)

    try:
        return end(_parser(), run)
    finally:
        path.write_bytes(original)


RECORD_FILES = (
    *("metrics.jsonl", "sessions.jsonl", "summary.json", "predictions.csv", "bad_images.csv", "options.yaml", "train.log"),
    "report.html",
)


# ---- lists


def end_class_map(content: bytes) -> int:
    """Read a file of class names."""
    path = workplace() / "classes.txt"
    path.write_bytes(content)
    return end(_parser(), lambda: read_class_map(path))


def end_class_weights(suffix: str, content: bytes) -> int:
    """Read a file of class weights."""
    path = workplace() / f"weights{suffix}"
    path.write_bytes(content)

    def run() -> None:
        weights = build_class_weights(str(path), CLASSES, np.array([0, 0, 1, 2]))
        assert weights is not None
        assert bool((weights.isfinite() & (weights > 0)).all())

    return end(_parser(), run)


@functools.cache
def _image_folder() -> Path:
    folder = workplace() / "images"
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        (folder / name / "1.jpg").touch()
    return folder


def _cached_listings() -> list[bytes]:
    stamp = f"{1} {2} {3}"
    listings = {"": [stamp, "/".join(CLASSES), ""], **{name: [stamp, "", "1.jpg/2.jpg"] for name in CLASSES}}
    return [json.dumps([CACHE_FORMAT, listings]).encode()]


def end_index(content: bytes) -> int:
    """List images with a damaged cache: the listing is right all the same."""
    cache = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(workplace())
    file = cache_file(_image_folder())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(content, 1) if len(content) % 4 else content)

    def run() -> None:
        assert images_by_class(_image_folder()) == {name: [f"{name}/1.jpg"] for name in CLASSES}

    try:
        return end(_parser(), run)
    finally:
        file.unlink()
        os.environ.pop("XDG_CACHE_HOME")
        if cache is not None:
            os.environ["XDG_CACHE_HOME"] = cache


# ---- named data sets

NAMED = ("mnist", "food101", "oxford_pet", "dtd", "fgvc_aircraft", "gtsrb")  # torchvision verifies no checksum of these


@functools.cache
def _named_files() -> dict[tuple[str, Path], bytes]:
    """Write small data sets in torchvision's layout, and return the content of their lists, labels and arrays by path."""
    files_of: dict[tuple[str, Path], bytes] = {}
    for name in NAMED:
        folder = workplace() / "data" / name
        WRITE_FILES[name](folder, pytest.MonkeyPatch())
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not has_image_suffix(path.name)]
        files_of |= {(name, path): path.read_bytes() for path in paths}
    return files_of


def _damage_named(rng: random.Random) -> tuple[str, Path, bytes]:
    (name, path), content = rng.choice(list(_named_files().items()))
    return name, path, Mutator(lambda: [content], is_text=name != "mnist")(rng)


def end_named(example: tuple[str, Path, bytes]) -> int:
    """Open a named data set with a damaged file, and its first and last image."""
    name, path, content = example
    path.write_bytes(content)

    def run() -> None:
        for split in ("train", "val"):
            dataset = open_named(name, split, str(workplace() / "data" / name))
            for index in (0, len(dataset) - 1):
                dataset.image(index)
                assert 0 <= dataset.targets[index] < len(dataset.class_names)

    try:
        return end(_parser(), run)
    finally:
        path.write_bytes(_named_files()[name, path])


# ---- checkpoints


@functools.cache
def _run() -> tuple[Config, TrainingState, RunIdentity]:
    """Return the options, the state and the identity of a run that has made an iteration."""
    values = {"dataset": "digits", "model_size": "0.5x", "input_size": 32, "total_iters": 10, "device": "cpu", "batch_size": 16}
    config = Config.from_values(values).with_length(1438)
    state = build_training_state(config, choose_devices("cpu"), CLASSES)
    network = state.network
    network(torch.zeros(2, 3, 32, 32)).sum().backward()
    state.optimizer.step()
    state.iteration = 1
    return config, state, RunIdentity(config.recipe(), CLASSES, "0" * 64)


@functools.cache
def checkpoint_content() -> bytes:
    """Return the content of a checkpoint, without its checksum."""
    _, state, identity = _run()
    content = state.state_dict() | {"options": identity.recipe, "samples": identity.samples, "class_names": CLASSES}
    content |= {"version": "0", "host": "h", "time": "t", "model_size": "0.5x"}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def end_checkpoint(content: bytes) -> int:
    """Continue a run from a checkpoint with a right checksum."""
    config, state, identity = _run()
    folder = workplace() / "models"
    folder.mkdir(exist_ok=True)
    path = workplace() / checkpoint_name(1)
    files.write_bytes(path, content, files.MARKER, hashlib.sha256(content).digest(), durable=False)
    checkpointer = Checkpointer(folder, identity, replace(config.run, resume=str(path)))

    def run() -> None:
        assert checkpointer.restore(state)
        state.optimizer.step()
        state.fast_forward(state.iteration + 1)

    return end(_parser(), run)


# ---- exported files


@functools.cache
def _exported(format: str) -> list[bytes]:
    return [export(read_weights(write_model(workplace() / "exported.pkl", n_class=3)), format)]


def _ends_of_file(content: bytes) -> list[range]:
    """Return the places of the graph in an exported file; weights are in between."""
    return [range(4_000), range(len(content) - 30_000, len(content))]


def end_exported(suffix: str, content: bytes) -> int:
    """Open an exported file, and classify an image."""
    path = workplace() / f"model{suffix}"
    path.write_bytes(content)
    return end(_parser(), lambda: load(path, "cpu").logits(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)))


EXPORTED: Kinds = {
    f"{name} files": (Mutator(partial(_exported, format), parts=_ends_of_file), partial(end_exported, suffix))
    for name, format, suffix in (("ONNX", "onnx", ".onnx"), ("ExecuTorch", "executorch", ".pte"))
}


def _lines(text: str) -> Mutator:
    return Mutator(lambda: [text.encode()], is_text=True)


RUNS: Kinds = {
    **{
        f"records of runs: {name}": (
            Mutator(partial(_originals, name), is_text=True),
            partial(end_record, name),
        )
        for name in RECORD_FILES
    },
    "files of class names": (_lines("\ufeffcat\ndog\r\n\nKäfer 3\n"), end_class_map),
    "class weights: .txt": (_lines("cat 1.5\ndog 2\nKäfer 3 0.25\n"), partial(end_class_weights, ".txt")),
    "class weights: .csv": (_lines('class,weight\ncat,1.5\n"dog",2\nKäfer 3,0.25\n'), partial(end_class_weights, ".csv")),
    "class weights: .json": (_lines('{"cat": 1.5, "dog": 2,\n "Käfer 3": 0.25}'), partial(end_class_weights, ".json")),
    "caches of image lists": (Mutator(_cached_listings, is_text=True), end_index),
    "files of named data sets": (_damage_named, end_named),
    "checkpoints": (Mutator(lambda: [checkpoint_content()], parts=pickle_parts, repair=repair_zip), end_checkpoint),
}  # fmt: skip
