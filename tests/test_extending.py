"""The notebook runs, and so do the examples of docs/extending.md: a user's data set, augmentation, loss and hook."""

import json
import re
import shlex
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support import ROOT, Train

QUICK = ["--save-interval", "10", "--no-figures", "--no-memory-check", "--recalibration-images", "64"]
BLOCK = re.compile(r"<!-- (?:file: (?P<file>\S+)|(?P<command>command)) -->\n(?P<text>(?:(?:    .*)?\n)+)")


def examples() -> list[tuple[str, str, list[str]]]:
    """Return the examples of docs/extending.md as (name of the file, its text, the words of the command)."""
    blocks = list(BLOCK.finditer((ROOT / "docs/extending.md").read_text()))
    pairs = zip(blocks[::2], blocks[1::2], strict=True)
    return [
        (file["file"], textwrap.dedent(file["text"]), shlex.split(textwrap.dedent(command["text"]))) for file, command in pairs
    ]


@pytest.mark.parametrize(("file", "text", "words"), examples(), ids=[example[0] for example in examples()])
def test_the_examples_of_the_documentation_run(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, words: list[str]
) -> None:
    (tmp_path / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert words[:2] == ["python", "train.py"]
    done = train_here(*words[2:], "--device", "cpu", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "finished: models/model.pkl" in done.stdout
    sys.modules.pop(file.removesuffix(".py"))


def test_a_users_loss_takes_the_place_of_cross_entropy(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "constant_loss.py").write_text("def loss(logits, targets):\n    return (0 * logits).mean() + 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    done = train_here(
        "--dataset", "digits", "--loss", "constant_loss:loss", "--model-size", "0.5x", "--input-size", "32",
        "--total-iters", "2", "--batch-size", "64", "--display-interval", "1", "--device", "cpu", "--no-figures",
    )  # fmt: skip
    assert done.stdout.count("loss 42.0000") == 2, done.stderr


WRONG = """
class Empty:
    def __init__(self, split, folder): pass

class TooFewNames:
    class_names, targets = ["a"], [0, 1]
    def __init__(self, split, folder): pass
    def image(self, index): return b""

class Unreadable(TooFewNames):
    class_names = ["a", "b"]

class NoArguments:
    pass

def halve(image, rng):
    return image[::2]
"""


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--dataset", "wrong:Absent"], 2, "--dataset wrong:Absent: wrong has no Absent"),
        (["--dataset", "absent_module:Absent"], 2, "--dataset absent_module:Absent: No module named 'absent_module'"),
        (["--dataset", "wrong:NoArguments"], 2, "--dataset wrong:NoArguments: too many positional arguments"),
        (["--dataset", "wrong:Empty"], 2, "has no 'class_names'; a data set has class_names, targets and image(index)"),
        (["--dataset", "wrong:TooFewNames"], 2, "'targets' of split 'train' are 0 to 1, but there are 1 class names"),
        (["--dataset", "wrong:Unreadable", "--on-bad-image", "stop"], 1, "is not a readable image"),
        (["--dataset", "digits", "--aa", "wrong:halve"], 2, "--aa wrong:halve must return a uint8 array of shape (32, 32, 3)"),
        (["--dataset", "digits", "--loss", "wrong:WRONG"], 2, "--loss wrong:WRONG: wrong has no WRONG"),
        (["--dataset", "digits", "--loss", "wrong:halve", "--bce-loss"], 2, "--loss replaces cross-entropy; leave --bce-loss"),
    ],
)
def test_mistakes_in_a_users_code_get_one_line(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], status: int, message: str
) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong", raising=False)
    refused = train_here(
        *options, "--model-size", "0.5x", "--input-size", "32", "--total-iters", "2", "--batch-size", "8", "--device", "cpu"
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (status, 1), refused.stderr
    assert message in refused.stderr


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs/quickstart.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    accuracy = names["result"].accuracy["top1"]  # type: ignore[attr-defined]
    assert accuracy > 0.5
