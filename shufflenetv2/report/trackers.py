"""Weights & Biases and MLflow: recorders that send the metrics of a run to services for comparing runs (optional packages)."""

import hashlib
import importlib.util
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..errors import UserError
from ..files import parse_json, read_text_file
from .records import write_file

PROJECT = "shufflenetv2"  # unless the environment names another
MAX_KINDS = 16  # of rows of an iteration
MAX_PARAMETERS, MAX_LENGTH = 100, 500  # of a message to MLflow
UNACCEPTED = re.compile(r"[^/\w.\- :]")  # characters that MLflow does not accept in a name
logger = logging.getLogger("shufflenetv2")


@dataclass(frozen=True)
class RunDescription:
    """What a tracker shows about a run.

    Attributes:
        name: of the run.
        options: all options by name.
        starts_over: an earlier run in the same folder is another one, even if its options are the same.
    """

    name: str
    options: Mapping[str, Any]
    starts_over: bool = False


def require_package(option: str, package: str) -> None:
    """Check that the package of a tracker is installed.

    Raises:
        UserError: it is not.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # a folder of this name, such as that of wandb's own files, is no package
        raise UserError(f"`{option}` needs the package {package}: pip install 'shufflenetv2[{package}]', or leave it out")


class Tracker:
    """Base class: remembers the run of the service in a file of the log folder, and never ends a training.

    Args:
        folder: folder of the log.
        iteration: the iteration after which the run continues.
        run: describes the run.
    """

    name = ""

    def __init__(self, folder: Path, iteration: int, run: RunDescription) -> None:
        self._path, self._failed = folder / f"{self.name}.json", False
        options = json.dumps(run.options, sort_keys=True, default=str).encode()
        self._state: dict[str, Any] = {"options": hashlib.sha256(options).hexdigest()}
        try:
            state = parse_json(read_text_file(self._path))
        except (OSError, ValueError):
            return
        if not isinstance(state, dict):
            return
        # A run that was killed before its first checkpoint begins at 0 again, and is still the same.
        if iteration or (state.get("options") == self._state["options"] and not run.starts_over):
            self._state = state

    def graph(self, network: nn.Module) -> None:
        """Send nothing: these services do not show graphs of operations."""

    def _save(self, **values: Any) -> None:
        self._state |= values
        write_file(self._path, json.dumps(self._state).encode())

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """Turn an error of the service into a warning, after which nothing more is sent."""
        try:
            yield
        except Exception as error:  # of many types: the network, the service, the package
            self._failed = True
            logger.warning("nothing more is sent to %s until the run is continued: %s", self.name, _reason(error))


def _reason(error: Exception) -> str:
    """Return the first sentence of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]


class Wandb(Tracker):
    """Send rows to Weights & Biases; a recorder, see `Recorder`. WANDB_PROJECT, WANDB_MODE etc. configure it.

    Every row has a step of its own, which follows from the iteration, so that the service knows which rows it has. Without a
    connection nothing is known: all rows are written anew when a run continues, and replace the former files, of which a kill
    loses the end.
    """

    name = "wandb"

    def __init__(self, folder: Path, iteration: int, run: RunDescription) -> None:
        super().__init__(folder, iteration, run)
        import wandb

        self._image = wandb.Image
        self._pictures: dict[str, Any] = {}  # go with the next row
        self._iteration, self._kinds = 0, dict[str, int]()  # kinds of this iteration -> number
        self._save(id=self._state.get("id") or secrets.token_hex(6))
        former = list(folder.glob(f"wandb/offline-run-*-{self._state['id']}"))
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), id=self._state["id"], resume="allow", name=run.name,
                dir=str(folder), config=dict(run.options), settings=wandb.Settings(console="off", silent=True),
            )  # fmt: skip
        except Exception as error:
            raise UserError(f"`log_wandb`: {_reason(error)}; WANDB_MODE=offline needs no connection", status=1) from error
        self._next_step: int = self._run.step
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        if self._run.offline:
            for path in former:
                shutil.rmtree(path, ignore_errors=True)
        logger.info("Weights & Biases: %s", self._run.dir if self._run.offline else self._run.url)

    def write(self, iteration: int, kind: str, values: Mapping[str, float]) -> None:
        if iteration != self._iteration:
            self._iteration, self._kinds = iteration, {}
        step = iteration * MAX_KINDS + self._kinds.setdefault(kind, len(self._kinds))
        pictures, self._pictures = self._pictures, {}
        if step >= self._next_step and not self._failed:
            with self._sending():
                named = {f"{kind}/{name}": value for name, value in values.items()}
                self._run.log({"iteration": iteration, **named, **pictures}, step=step, commit=True)
                self._next_step = step + 1

    def picture(self, iteration: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._pictures[name] = self._image(pixels)

    def close(self) -> None:
        with self._sending():
            if self._pictures:
                self._run.log({"iteration": self._iteration, **self._pictures}, step=self._next_step, commit=True)
            self._run.finish()


class MLflow(Tracker):
    """Send rows to MLflow; a recorder, see `Recorder`. MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME etc. configure it."""

    name = "mlflow"

    def __init__(self, folder: Path, iteration: int, run: RunDescription) -> None:
        super().__init__(folder, iteration, run)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._param = Metric, Param
        self._sent: dict[str, int] = {}  # name of a metric -> last iteration
        try:
            self._client = MlflowClient()
            self._run_id = self._continue_run() or self._create_run(run)
        except Exception as error:
            raise UserError(f"`log_mlflow`: {_reason(error)}; check MLFLOW_TRACKING_URI", status=1) from error
        logger.info("MLflow: run %s", self._run_id)

    def _continue_run(self) -> str | None:
        """Find the run of the state and what it has received, or return None."""
        if (run_id := self._state.get("run_id")) is None:
            return None
        for name in self._client.get_run(run_id).data.metrics:
            self._sent[name] = max(point.step for point in self._client.get_metric_history(run_id, name))
        self._client.update_run(run_id, status="RUNNING")
        return str(run_id)

    def _create_run(self, run: RunDescription) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id: str = self._client.create_run(experiment_id, run_name=run.name).info.run_id
        self._save(run_id=run_id)
        parameters = [self._param(option, str(value)[:MAX_LENGTH]) for option, value in run.options.items()]
        for start in range(0, len(parameters), MAX_PARAMETERS):
            self._client.log_batch(run_id, params=parameters[start : start + MAX_PARAMETERS])
        return run_id

    def write(self, iteration: int, kind: str, values: Mapping[str, float]) -> None:
        named = {UNACCEPTED.sub("_", f"{kind}/{name}"): value for name, value in values.items()}
        now = int(time.time() * 1000)
        metrics = [
            self._metric(name, value, now, iteration) for name, value in named.items() if iteration > self._sent.get(name, 0)
        ]
        if self._failed or not metrics:
            return
        with self._sending():
            self._client.log_batch(self._run_id, metrics=metrics)
            self._sent |= dict.fromkeys(named, iteration)

    def picture(self, iteration: int, name: str, pixels: NDArray[np.uint8]) -> None:
        if not self._failed:
            with self._sending():
                self._client.log_image(self._run_id, pixels, f"{name}/{iteration:06}.png")

    def close(self) -> None:
        with self._sending():
            self._client.set_terminated(self._run_id)
