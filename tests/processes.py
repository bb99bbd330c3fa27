"""Processes that run train.py, forked from one that has loaded torch: a new interpreter needs four seconds to load it.

Each has arguments, folder, environment, standard output and standard error of its own, and takes signals. What the interpreter
or the libraries read from the environment when they start is that of the process they are forked from.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

from tests.support import ONE_THREAD, ROOT

# What a training loads, part of it late.
PRELOADED = ["shufflenetv2.cli.train", "torch._dynamo", "torch.onnx", "torch.utils.tensorboard", "torchinfo", "timm.optim"]


class Process:
    """A running `python train.py ARGUMENTS`, with the methods of subprocess.Popen that tests use.

    Attributes:
        stdout: what it prints.
        stderr: what it prints on standard error.
        pid: its number.
    """

    def __init__(self, folder: Path, *arguments: str | Path, **environment: str) -> None:
        context = multiprocessing.get_context("forkserver")
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        writers = [writer for _, writer in pipes]
        values = {**os.environ, **ONE_THREAD, **environment}
        self._process = context.Process(target=_run, args=(folder, list(map(str, arguments)), values, *writers), daemon=True)
        _start_server()
        self._process.start()
        for writer in writers:
            writer.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(reader.fileno()), encoding="utf-8") for reader, _ in pipes)
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None as long as the process runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 300) -> int:
        """Wait for the end of the process, and return its exit status."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("train.py", timeout)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end of the process, and return what it printed since; a pipe holds 64 KiB of it."""
        self.wait(timeout)
        with self.stdout, self.stderr:
            return self.stdout.read(), self.stderr.read()


def _start_server() -> None:
    """Start the process that others are forked from, unless it runs: in this repository, with one thread."""
    environment, folder = dict(os.environ), Path.cwd()
    forkserver.set_forkserver_preload(PRELOADED)
    try:
        os.environ.update(ONE_THREAD)
        os.chdir(ROOT)
        forkserver.ensure_running()
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)


def _run(folder: Path, arguments: list[str], environment: Mapping[str, str], stdout: Connection, stderr: Connection) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name, pipe in ((1, "stdout", stdout), (2, "stderr", stderr)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
        setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 (open as long as the process)
    sys.argv = [str(ROOT / "train.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
