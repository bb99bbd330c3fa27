"""Names of files and classes that a terminal, a spreadsheet or a file of lines would act upon."""

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shufflenetv2 import files
from shufflenetv2.errors import printable
from shufflenetv2.report import RunLog, write_confusion
from shufflenetv2.report.tables import unprotect
from tests.models import write_model
from tests.support import ONE_THREAD, ROOT, Run, photograph

NAMES = [
    "cat\nb.png: dog 100.00%",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egpj.exe",
    "K\udcc3\udca4fer",
    "Käfer 日本 🐞",
    "a\rb\tc",
    "\u2028x",
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = write_model(tmp_path / "model.pkl", n_class=len(NAMES))
    details = {
        "stop_reason": "done\n  accuracy       top-1 100.00%",
        "host": "\x1b[31mhost",
        "version": "1\x07",
        "time": "\x9b2J",
    }
    files.write(path, files.read(path) | {"class_names": NAMES, **details, "origin": "original"})
    return path


def write_image(path: Path, seed: int) -> None:
    with open(path, "wb") as file:  # Pillow takes no names that are not UTF-8
        photograph(40, 40, seed).save(file, "PNG")


def assert_harmless(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), repr(text)


def test_printable_text_stays_and_everything_else_is_escaped_as_in_python() -> None:
    assert printable("Käfer 日本 🐞, a: b") == "Käfer 日本 🐞, a: b"
    assert printable("a\nb\x1b\u202e\udc80\u2028\x7f") == r"a\nb\x1b\u202e\udc80\u2028\x7f"
    assert printable("a\tb\n", keep="\t") == "a\tb\\n"


def test_predict_prints_one_line_for_each_image_with_any_names(command: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, name in enumerate(["a\nb.png: cat 100.00%", "\x1b[2J", "\u202etxt", "\udcff", "ä"]):
        write_image(tmp_path / "images" / f"{name}.png", number)
    (tmp_path / "images" / "unreadable\nx.png").write_bytes(b"")
    status, output, errors = command("predict", "model.pkl", "images", "--top", "7")
    assert status == 0
    assert_harmless(output + errors)
    assert [line.count("%") >= 7 for line in output.splitlines()] == [True] * 5
    assert errors.count("\n") == 1
    assert r"unreadable\nx.png" in errors
    assert r"cat\nb.png: dog 100.00% " in output
    assert "Käfer 日本 🐞" in output
    status, output, _ = command("predict", "model.pkl", "images", "--top", "7", "--json")
    lines = [json.loads(line) for line in output.splitlines()]
    assert {entry["class"] for entry in lines[0]["predictions"]} == set(NAMES)
    assert os.path.join("images", "a\nb.png: cat 100.00%.png") in [line["path"] for line in lines]


def test_info_and_error_lines_escape_names_and_metadata(command: Run, model: Path) -> None:
    status, output, _ = command("info", "model.pkl")
    assert status == 0
    assert_harmless(output)
    assert r"ended early    done\n  accuracy" in output
    assert not any(line.startswith("  accuracy") for line in output.splitlines())
    for arguments in (["info", "a\nshufflenetv2 info: done\x1b[2J"], ["info", "\udcff"], ["predict", "model.pkl", "x\ny"]):
        status, _, errors = command(*arguments)
        assert status in (1, 2)
        assert_harmless(errors)
    status, _, errors = command("info", "a\nb", "c\x1b")
    assert (status, errors.count("\n")) == (2, 1)


def test_a_name_cannot_forge_a_line_of_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "cat\n[2026-01-01 00:00:00] TRAIN Iter 9: lr = 0\x1b[2J\u202e\udcff"
    with RunLog(tmp_path) as log:
        log.info(f"classes: {name}")
        log.warning(f"no images of {name}")
        logging.getLogger("shufflenetv2.data").warning("%s cannot be read", name)
        log.detail("a table", f"  of lines with {name}")
        log.result(f"finished: {name}", "  next:")
    written = (tmp_path / "train.log").read_text(encoding="utf-8")
    shown = capsys.readouterr().out
    assert_harmless(written + shown)
    assert (written.count("\n"), shown.count("\n")) == (7, 5)
    assert not any(line.startswith(name[4:30]) for line in (written + shown).splitlines())
    assert r"classes: cat\n[2026-01-01 00:00:00] TRAIN Iter 9: lr = 0\x1b[2J\u202e\udcff" in written


def test_class_names_are_no_formulas_in_tables(tmp_path: Path) -> None:
    names = ["=1+1", "+a", "-b", "@c", "'=d", "plain"]
    write_confusion(tmp_path, np.roll(np.eye(6, dtype=np.int64), 1, axis=1), names)
    with open(tmp_path / "per_class.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with open(tmp_path / "confusion.csv", newline="", encoding="utf-8") as file:
        matrix = list(csv.reader(file))
    for fields in (
        [row["class"] for row in rows],
        [rows[-1]["most_confused_with"], *(row["most_confused_with"] for row in rows[:-1])],
        [row[0] for row in matrix[1:]],
        matrix[0][1:],
    ):
        assert not any(field[0] in "=+-@" for field in fields)
        assert list(map(unprotect, fields)) == names


def test_a_run_in_the_c_locale_takes_folders_and_images_with_any_name(tmp_path: Path) -> None:
    for name in ("Käfer", "Ü\n", "\udcff"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            write_image(tmp_path / "data" / name / f"é{number}.png", number)
    arguments = [
        "--train-dir", "data", "--val-dir", "data", "--model-size", "0.5x", "--input-size", "32", "--resize-size", "32",
        "--batch-size", "3", "--total-iters", "2", "--display-interval", "1", "--workers", "1", "--device", "cpu",
        "--learning-rate", "0.01",
        "--save", "Käse", "--experiment", "\udcff",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {**ONE_THREAD, "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run(
        [sys.executable, ROOT / "train.py", *arguments], cwd=tmp_path, env=environment, capture_output=True, timeout=300
    )
    errors = ended.stderr.decode()
    assert ended.returncode == 0, errors
    assert "Traceback" not in errors
    folder = tmp_path / "Käse" / "\udcff"
    assert (folder / "model.pkl").exists()
    log = (folder / "logs" / "train.log").read_text(encoding="utf-8")
    assert "Error" not in log + errors
    assert "TRAIN Iter 2:" in log
    assert (folder / "logs" / "options.yaml").read_text(encoding="utf-8")
