"""On a machine that is poor or broken a command goes on, or ends with one line that says why; no saved file is lost."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ONE_THREAD, ROOT

FIFO = "stalled"  # reading this file blocks, as on a file system that does not answer

# The file system answers the main thread, which lists folders, and none of the threads that read images.
ON_A_STALLED_DISK = f"""
import os, sys, threading
from shufflenetv2.__main__ import main

read = os.read

def wait_for_the_disk(descriptor, size):
    if threading.current_thread() is threading.main_thread():
        return read(descriptor, size)
    return open({FIFO!r}, "rb").read()

os.read = wait_for_the_disk
sys.exit(main(sys.argv[1:]))
"""


def start(folder: Path, *command: str | Path, **options: object) -> "subprocess.Popen[str]":
    """Start a Python process in a folder."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore SIGINT
    )


@contextlib.contextmanager
def stalling(process: "subprocess.Popen[str]", fifo: Path) -> Iterator[None]:
    """Wait until a process reads a FIFO, and let it wait for content during the block."""
    while True:
        try:
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:  # nobody reads it yet
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
    try:
        yield
    finally:
        os.close(descriptor)


# ---- signals


@pytest.mark.parametrize("command", ["check", "prepare --short-side 64 --workers 2 small"])
def test_ctrl_c_ends_a_command_whose_files_do_not_answer(command: str, photographs: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FIFO)
    name, *arguments = command.split()
    process = start(tmp_path, "-c", ON_A_STALLED_DISK, name, photographs, *arguments)
    with stalling(process, tmp_path / FIFO):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (130, f"shufflenetv2 {name}: interrupted\n")
