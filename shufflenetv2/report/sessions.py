"""When a run was started, on what machine and with what software, and how it ended: sessions.jsonl."""

import json
import os
import platform
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import open_regular
from .records import user_error

# Name in the file -> package whose version is recorded. Some of the packages take seconds to import.
PACKAGES = {"torch": "torch", "numpy": "numpy", "opencv": "opencv-python-headless", "timm": "timm"}


class Session:
    """One start or resume of a run, which appends two lines to sessions.jsonl. A killed process leaves only the first.

    Args:
        folder: folder of the log; None: write nothing, as in processes other than the first.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder and folder / "sessions.jsonl"

    def start(self, iteration: int, command: Sequence[str], device: str, cores: int) -> None:
        """Record that the run goes on after an iteration; 0 for a new run.

        Args:
            command: the command line.
            device: on which the network runs.
            cores: number of CPU cores that the process may use.

        Raises:
            UserError: the file cannot be written.
        """
        environment = describe_environment() | {"device": device, "cores": cores}
        self._append({"event": "start", "iteration": iteration, "command": list(command), "environment": environment})

    def end(self, iteration: int, reason: str) -> None:
        """Record how the session ended: 'finished', 'stopped by SIGTERM', 'error: ...'.

        Raises:
            UserError: the file cannot be written.
        """
        self._append({"event": "end", "iteration": iteration, "reason": " ".join(reason.split())})

    def _append(self, entry: dict[str, Any]) -> None:
        if self._path is None:
            return
        entry = {"event": entry["event"], "time": datetime.now().astimezone().isoformat(timespec="seconds")} | entry
        with user_error(self._path), open(self._path, "ab+", opener=open_regular) as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a kill or a full disk has cut the last line
                    file.write(b"\n")
            file.write(json.dumps(entry, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def describe_environment() -> dict[str, Any]:
    """Return the names of the machine and its processor, and the versions of the software."""
    environment = {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "processor": _processor(),
        "python": platform.python_version(),
    }
    for name, package in PACKAGES.items():
        with suppress(PackageNotFoundError):
            environment[name] = version(package)
    return environment | {"shufflenetv2": __version__}


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # Linux
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
