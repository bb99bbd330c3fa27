"""The errors that a user can cause: the table in docs/troubleshooting.md, and what causes each of them in a test.

python -m tests.failures     causes every error, and writes the lines that are printed into docs/troubleshooting.md
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
import yaml
from torch import nn

from shufflenetv2 import ShuffleNetV2, __main__
from shufflenetv2.cli.command import main as train_main
from shufflenetv2.files import lock_folder
from shufflenetv2.weights import Preprocessing, model_record
from tests.support import ROOT, photograph

TABLE = Path(__file__).with_suffix(".yaml")
DOCUMENT = ROOT / "docs/troubleshooting.md"
SMALL = "--model-size 0.5x --input-size 32 --resize-size 32 --batch-size 8 --total-iters 2 --device cpu"


@dataclass(frozen=True)
class Failure:
    """An error, and how to cause it.

    Attributes:
        happened: what the user did, for the first column of the table.
        command: the command, in a folder of `make_folder`; SMALL stands for options of a short run.
        remedy: what to do, for the last column.
        files: further files, {path: text}; a path that ends in / is an empty folder. A text may be `copy of PATH`,
            `half of PATH`, `bytes: HEX` or `weights: KIND` (see `write_weights`).
        locked: folder that another run uses.
        varies: regular expression of what differs between machines; the table shows ... instead.
    """

    happened: str
    command: str
    remedy: str
    files: dict[str, str] = field(default_factory=dict)
    locked: str = ""
    varies: str = ""


def read_failures() -> dict[str, list[Failure]]:
    """Return the failures of each section of the document."""
    sections = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {title: [Failure(**row) for row in rows] for title, rows in sections.items()}


@contextlib.contextmanager
def working_directory(folder: str | Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def make_folder(folder: Path) -> None:
    """Make what the commands name: images D, V and F, a run of two iterations, weights W of 3 and W4 of 4 classes."""
    for name in ("D", "V"):
        for label, class_name in enumerate(("cat", "dog", "owl")):
            (folder / name / class_name).mkdir(parents=True)
            for number in range(4):
                image = photograph(60 + 5 * number, 50 + 4 * label, seed=20 * (name == "V") + 10 * label + number)
                image.save(folder / name / class_name / f"{number}.jpg")
    shutil.copytree(folder / "D", folder / "F")
    shutil.copytree(folder / "F/owl", folder / "F/fox")
    with working_directory(folder), contextlib.redirect_stdout(io.StringIO()):
        assert train_main(shlex.split(f"--train-dir D --val-dir V --save run {SMALL}")) == 0
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), str(folder / "exported.onnx"))
    shutil.copy(folder / "run/model.pkl", folder / "W")
    torch.save(ShuffleNetV2(n_class=4, model_size="0.5x").state_dict(), folder / "W4")
    (folder / "configs").symlink_to(ROOT / "configs")


# Networks with a peculiarity, by the name that stands for them after `weights: ` in failures.yaml.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "grey": {"in_chans": 1},
    "max": {"pooling": "max"},
    "1.0x": {"model_size": "1.0x"},
    "torchvision": {"model_size": "1.0x", "layout": "torchvision"},
}


def write_weights(path: Path, kind: str) -> None:
    """Write weights with a peculiarity to a file."""
    network = ShuffleNetV2(n_class=3, **{"model_size": "0.5x", **ARCHITECTURES.get(kind, {})})
    weights: dict[str, Any] = network.state_dict()
    content: Any = weights
    if kind in ARCHITECTURES:
        channels = 1 if kind == "grey" else 3
        preprocessing = Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels)
        content = model_record(network, class_names=["cat", "dog", "owl"], preprocessing=preprocessing, iteration=1)
    elif kind == "nan":
        weights["classifier.0.weight"][0, 0] = torch.nan
    elif kind == "negative":
        weights["conv_last.1.running_var"][0] = -1
    elif kind == "integers":
        weights["classifier.0.weight"] = weights["classifier.0.weight"].int()
    elif kind == "missing":
        del weights["conv_last.1.running_var"]
    elif kind == "objects":
        content = {"network": network}
    elif kind == "tensor":
        content = torch.zeros(3)
    elif kind == "other":
        content = nn.Linear(2, 2).state_dict()
    torch.save(content, path)
    if kind == "altered":
        altered = bytearray(Path("W").read_bytes())
        altered[len(altered) // 2] ^= 1
        path.write_bytes(altered)


def cause(failure: Failure, folder: Path) -> tuple[int, str]:
    """Run the command of a failure in a folder with links to the content of `folder`.

    Returns:
        (exit status, what the command printed on standard error, with ... for what differs between machines).
    """
    with tempfile.TemporaryDirectory() as here, working_directory(here):
        for path in folder.iterdir():
            Path(path.name).symlink_to(path)
        for name, text in failure.files.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                Path(name).mkdir()
            elif text.startswith("copy of "):
                shutil.copy(text.removeprefix("copy of "), name)
            elif text.startswith("half of "):
                content = Path(text.removeprefix("half of ")).read_bytes()
                Path(name).write_bytes(content[: len(content) // 2])
            elif text.startswith("bytes: "):
                Path(name).write_bytes(bytes.fromhex(text.removeprefix("bytes: ")))
            elif text.startswith("weights: "):
                write_weights(Path(name), text.removeprefix("weights: "))
            else:
                Path(name).write_text(text)
        program, *arguments = shlex.split(failure.command.replace("SMALL", SMALL))
        main = train_main if program == "train.py" else __main__.main
        error = io.StringIO()
        lock = lock_folder(Path(failure.locked)) if failure.locked else contextlib.nullcontext()
        with lock, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            status = main(arguments)
        sys.path[:] = [path for path in sys.path if not path.startswith(here)]
    line = error.getvalue().rstrip("\n").split("\n")[-1]
    return status, re.sub(failure.varies, "...", line) if failure.varies else line


def to_markdown(sections: dict[str, list[tuple[Failure, str]]]) -> str:
    """Return the tables of the document, one per section, from the failures and the lines that they print."""
    lines = []
    for title, rows in sections.items():
        lines += [f"### {title}", "", "| what happened | line printed | remedy |", "|---|---|---|"]
        lines += [f"| {failure.happened} | `{escaped(line)}` | {failure.remedy} |" for failure, line in rows]
        lines.append("")
    return "\n".join(lines)


def escaped(line: str) -> str:
    return line.replace("|", "\\|")


def document_rows() -> list[tuple[str, str, str]]:
    """Return the rows of the tables in the document: what happened, the line printed, the remedy."""
    rows = re.findall(r"^\| (.+?) \| `(.+)` \| (.+?) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return [(happened, line.replace("\\|", "|"), remedy) for happened, line, remedy in rows]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder))
        sections = {
            title: [(failure, cause(failure, Path(folder))[1]) for failure in failures]
            for title, failures in read_failures().items()
        }
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition("<!-- failures -->\n")
    after = rest.partition("<!-- /failures -->")[2]
    table = f"<!-- failures -->\n{to_markdown(sections)}<!-- /failures -->"
    DOCUMENT.write_text(before + table + after, encoding="utf-8")


if __name__ == "__main__":
    main()
