"""What commands print: bars on a terminal, plain lines elsewhere, and little with --quiet."""

import contextlib
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from shufflenetv2 import terminal
from tests.support import ONE_THREAD, ROOT, SHORT, Run, Train

# Lines above a bar, a task within a task, and lines under which the bar is drawn again.
PROGRAM = """
from shufflenetv2 import terminal
with terminal.Progress("", 300_000, "it", initial=120_000) as bar:
    bar.notes = ("loss 1.234", "val 61.2%, best 63.0%")
    for iteration in range(120_000, 120_005):
        bar.update(iteration)
        terminal.show(f"line {iteration}")
    for batch in terminal.progress(range(3), "validation", 3, "images"):
        terminal.show(f"batch {batch}")
terminal.show("end")
"""
PRINTED = [*(f"line {120_000 + k}" for k in range(5)), "batch 0", "batch 1", "batch 2", "end"]
LINE_BREAKS = re.compile(r"[\r\n]+")


def open_terminal(columns: int) -> tuple[int, int]:
    """Open a pseudo-terminal; return the descriptors of the reader and of the programs. 0 columns: of unknown size."""
    reader, programs = pty.openpty()
    fcntl.ioctl(programs, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    return reader, programs


def read_terminal(reader: int) -> str:
    """Read all that programs write to a pseudo-terminal, until they have ended."""
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while chunk := os.read(reader, 4096):
            written += chunk
    os.close(reader)
    return written.decode().replace("\r\n", "\n")


def run_program(program: str, columns: int, **environment: str) -> str:
    """Run a Python program on a pseudo-terminal and return what it wrote."""
    reader, programs = open_terminal(columns)
    command, environment = [sys.executable, "-c", program], {"TERM": "xterm"} | environment
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=programs, stderr=programs)
    os.close(programs)
    written = read_terminal(reader)
    assert process.wait(timeout=100) == 0, written
    return written


def final_screen(written: str) -> list[str]:
    """Return the lines that stand on a wide terminal at the end: a carriage return goes back, and text overwrites text."""
    lines, column = [""], 0
    for character in written:
        if character == "\n":
            lines.append("")
        if character in "\r\n":
            column = 0
        else:
            lines[-1] = lines[-1][:column].ljust(column) + character + lines[-1][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize(("columns", "width"), [(80, 80), (0, 80), (30, 30), (200, 200)])
def test_a_bar_never_fills_the_width_of_the_terminal_and_leaves_only_the_lines(columns: int, width: int) -> None:
    written = run_program(PROGRAM, columns, PYTHONIOENCODING="utf-8")
    assert final_screen(written) == [*PRINTED, ""]
    drawn = LINE_BREAKS.split(written)
    assert max(map(len, drawn)) < width
    assert any(text.startswith("120,004/300,000") for text in drawn)
    assert any(text.startswith("validation 1/3") for text in drawn)
    if width >= 80:
        assert any("loss 1.234  val 61.2%, best 63.0%" in text for text in drawn)
    if width == 200:
        assert any(re.search(r"^120,004/300,000 ━+─+  .* left  .*it/s  loss", text) for text in drawn)


def test_a_terminal_without_unicode_gets_a_bar_of_ascii_characters() -> None:
    written = run_program(PROGRAM, 200, PYTHONIOENCODING="ascii")
    assert "#" in written
    assert written.isascii()
    assert final_screen(written) == [*PRINTED, ""]


def test_a_terminal_that_cannot_move_the_cursor_gets_plain_lines() -> None:
    assert run_program(PROGRAM, 80, TERM="dumb") == "\n".join([*PRINTED, ""])


def test_standard_output_decides_about_the_bar() -> None:
    command, environment = [sys.executable, "-c", PROGRAM], os.environ | {"TERM": "xterm"}
    reader, programs = open_terminal(80)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=programs, stderr=subprocess.PIPE)
    os.close(programs)
    assert process.communicate(timeout=100)[1] == b""
    shown = read_terminal(reader)
    assert "\r" in shown
    assert final_screen(shown) == [*PRINTED, ""]

    reader, programs = open_terminal(80)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=programs)
    os.close(programs)
    assert process.communicate(timeout=100)[0].decode() == "\n".join([*PRINTED, ""])
    assert read_terminal(reader) == ""


def test_a_long_task_prints_plain_lines_into_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(terminal.progress(range(10), "short", 10, "images"))
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(terminal, "PLAIN_INTERVAL", 0.0)
    with terminal.Progress("shrinking", 4_000, "images", initial=1_000) as bar:
        bar.update(2_000)
        bar.update(3_000)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "shrinking 2,000/4,000 images"
    assert re.fullmatch(r"shrinking 3,000/4,000 images  [\d,]+ images/s  0 s left", second)


def test_the_time_left_follows_the_latest_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    with terminal.Progress("", 2_000, "it", initial=1_000) as bar:  # a run that goes on after 1,000 iterations
        assert bar.time_left() == ""
        clock += 500  # the first iteration is slow: it does not count
        bar.update(1_001)
        assert bar.time_left() == ""
        for iteration in range(1_002, 1_102):
            clock += 1
            bar.update(iteration)
        assert bar.time_left() == "15 min left"  # 899 iterations of a second
        with terminal.Progress("validation", 10, "images"):
            clock += 10_000
        assert bar.time_left() == "15 min left"
        bar.seconds_after = 600.0
        assert bar.time_left() == "25 min left"
        bar.seconds_after = 0.0
        for iteration in range(1_102, 1_132):
            clock += 10
            bar.update(iteration)
        assert bar.time_left() == "2 h 25 min left"  # 869 iterations of ten seconds: the fast ones are forgotten


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3_569, "59 min"), (3_571, "1 h 0 min"), (35_000, "9 h 43 min"),
     (36_000, "10 h"), (86_000, "1 d 0 h"), (270_000, "3 d 3 h")],
)  # fmt: skip
def test_durations_are_written_in_one_or_two_units(seconds: float, text: str) -> None:
    assert terminal.in_time(seconds) == text


def test_a_program_goes_on_when_its_reader_ends(tmp_path: Path) -> None:
    program = PROGRAM + f"open({str(tmp_path / 'reached')!r}, 'w').close()"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=100)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "reached").exists()


def test_a_training_goes_on_without_a_disk_for_its_output_and_continues_on_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *SHORT]
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    with open("/dev/full", "w") as full:
        stopped = subprocess.run(
            [*command, "--hook", "tests.support:Stop"], cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE,
            timeout=300,
        )  # fmt: skip
    assert (stopped.returncode, stopped.stderr) == (143, b"")
    log = (tmp_path / "logs/models/train.log").read_text()
    assert "TRAIN Iter 6: " in log
    assert "stopped by SIGTERM after iteration 7; run the same command to continue" in log

    reader, programs = open_terminal(80)
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=programs, stderr=programs)
    os.close(programs)
    written = read_terminal(reader)
    assert process.wait(timeout=100) == 0, written
    counts = [int(done) for done in re.findall(r"\r *(\d+)/12 ", written)]
    assert counts[0] == 7
    assert counts[-1] == 12
    assert counts == sorted(counts)
    bars = [text for text in LINE_BREAKS.split(written) if "━" in text or "─" in text]
    assert max(map(len, bars)) < 80
    assert any(text.startswith("validation ") for text in bars)
    assert any(text.startswith("recalibrating ") for text in bars)
    screen = final_screen(written)
    assert not any("━" in line or "─" in line for line in screen)
    assert sum(line.startswith("iter ") for line in screen) == 2  # 9 and 12
    assert sum(line.startswith("validation at 12 ") for line in screen) == 1
    assert not any("TRAIN Iter" in line or "Total params" in line for line in screen)
    assert screen.index("continuing from models/checkpoint-000007.pth.tar") < 3


def test_with_quiet_only_the_last_lines_are_printed_and_the_commands_in_them_work(
    train_here: Train, command: Run, tmp_path: Path
) -> None:
    done = train_here(*SHORT, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if "needs a C compiler" not in line]  # without one there is this warning
    assert [line.split(",")[0] for line in lines[:3]] == [
        "finished: models/model.pkl", "finished: models/best.pkl", "log",
    ]  # fmt: skip
    assert "TRAIN Iter 12: " in (tmp_path / "logs/models/train.log").read_text()
    evaluate, predict, info, export = (shlex.split(line) for line in lines[3:])
    assert export[-2:] == ["export", "models/best.pkl"]
    for words in (evaluate, predict, info):
        status, output, errors = command(*words[words.index("shufflenetv2") + 1 :])
        assert (status, errors) == (0, "")
        assert output
    assert (
        command(*evaluate[evaluate.index("shufflenetv2") + 1 :], "--quiet")[1]
        .splitlines()[-1]
        .endswith(" are in logs/eval/best-digits")
    )


def test_every_command_that_writes_ends_with_where(command: Run, photographs: Path, tmp_path: Path) -> None:
    status, output, _ = command("prepare", photographs, "small", "--short-side", "32", "--quiet")
    assert (status, output) == (0, "21 images in small: 21 encoded, 0 copied unchanged, 0 already there, 0 unreadable\n")
