"""Every command in the README and in docs/ runs, in the order of its document; so does the code in Python.

Training commands of minutes or days become ones of a second: with fewer iterations and smaller images.
"""

import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import shufflenetv2
from shufflenetv2.cli.command import main as train_main
from shufflenetv2.cli.command import parse
from tests.documents import DOCUMENTS, PARSED_ONLY, blocks, commands, reason_not_to_run
from tests.models import random_images
from tests.support import ROOT, Run, Train

SMALL = ["--model-size", "0.5x", "--input-size", "32", "--resize-size", "32", "--device", "cpu"]
SHORT = ["--batch-size", "8", "--total-iters", "2"]
FEW_RECORDS = ["--val-interval", "8", "--no-figures", "--no-memory-check"]
FEW_IMAGES = ["--val-batch-size", "180", "--recalibration-images", "64"]
RUN_IN_OTHER_TESTS = ("docs/extending.md",)


@pytest.fixture(scope="module")
def trained(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with what the commands read: images D, V, DATA, ILSVRC2012, weights W, the models of earlier commands."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("D", "V"):
        (folder / name).symlink_to(photographs)
    for name in ("DATA", "ILSVRC2012"):
        (folder / name).mkdir()
        for split in ("train", "val"):
            (folder / name / split).symlink_to(photographs)
    (folder / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train_main(["--train-dir", "D", "--val-dir", "V", *SMALL, *SHORT, *FEW_RECORDS]) == 0
        assert train_main(["--config", "configs/digits.yaml", *SMALL, *SHORT, *FEW_RECORDS, *FEW_IMAGES]) == 0
    shutil.copy(folder / "models/model.pkl", folder / "W")
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a copy of the folder `trained`."""
    shutil.copytree(trained, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shortened(words: list[str]) -> list[str]:
    """Return the options of a training command with few iterations and small images, without its options --epochs."""
    if "--eval" in words or "--test-only" in words:
        return words
    options = list(words)
    if "--epochs" in options:
        position = options.index("--epochs")
        del options[position : position + 2]
    is_short = "--total-iters" in options and int(options[options.index("--total-iters") + 1]) <= 20
    warmup = ["--warmup-iters", "1"] if "warmup" in str(words) or "600" in str(words) else []
    return [*options, *SMALL, *FEW_RECORDS, *FEW_IMAGES, *warmup, *([] if is_short else SHORT)]


def forget_unnamed_run(words: list[str]) -> None:
    """Remove the results in models/ before another run that would use this folder."""
    named = {"--experiment", "--save", "--config", "--eval", "--test-only", "--throughput"}
    if not named & set(words):
        for path in Path("models").glob("*.*"):
            path.unlink()
        shutil.rmtree("logs/models", ignore_errors=True)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name not in RUN_IN_OTHER_TESTS and commands(name)])
def test_the_commands_of_a_document_run_one_after_the_other(here: Path, train_here: Train, command: Run, document: str) -> None:
    for words in map(list, dict.fromkeys(map(tuple, commands(document)))):  # each once
        line = shlex.join(words)
        if reason_not_to_run(words):
            check_options(words)
        elif words[:2] == ["python", "train.py"]:
            forget_unnamed_run(words)
            done = train_here(*shortened(words[2:]))
            assert done.returncode == 0, f"{line}: {done.stderr}"
        elif words[:3] == ["python", "-m", "shufflenetv2"]:
            status, _, error = command(*words[3:])
            assert status == 0, f"{line}: {error}"
        else:
            pytest.fail(f"{line}: no test runs this program")


def check_options(words: list[str]) -> None:
    """Check what a command that is not run names: targets of make, options of the program, files."""
    if words[0] == "make":
        dry = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert dry.returncode == 0, dry.stderr
    scripts = [number for number, word in enumerate(words) if word in ("train.py", "scripts/slurm.sh")]
    for number in scripts:
        assert (ROOT / words[number]).is_file()
        parse(words[number + 1 :])
    for name in (name for option, name in itertools.pairwise(words) if option == "-r"):
        assert (ROOT / name).is_file()


def test_the_python_code_of_the_documents_runs(here: Path) -> None:
    shufflenetv2.convert("models/model.pkl", "original.pth", "original")
    names = {"images": random_images(2)}
    (code,) = blocks("docs/python.md", "python")
    exec(code, names)
    assert names["logits"].shape == (2, 3)
    # That in docs/deployment.md runs in test_export.py.
    assert [document for document in DOCUMENTS for _ in blocks(document, "python")] == ["docs/deployment.md", "docs/python.md"]


def test_the_commands_that_are_not_run_are_listed() -> None:
    text = (ROOT / "docs/exactness.md").read_text()
    table = re.findall(r"^\| `([^`]+)` \| (.+) \|$", text, re.MULTILINE)
    assert dict(table) == PARSED_ONLY
    shown = [words for document in DOCUMENTS for words in commands(document)]
    assert all(any(text in shlex.join(words) for words in shown) for text in PARSED_ONLY)
