"""Devices, and how the network runs on them: memory layout, precision, compiler."""

import ctypes
import os
import sys
import warnings
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from ..config import ExecutionConfig
from ..errors import UserError
from . import distributed

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt, from malloc.h


@dataclass(frozen=True)
class Devices:
    """The devices of this process, and how the network runs on them.

    Attributes:
        first: the device of the parameters.
        count: number of GPUs; several are used through nn.DataParallel.
        execution: memory layout, precision and compiler.
    """

    first: torch.device
    count: int = 1
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    @property
    def pin_memory(self) -> bool:
        """Whether batches are to be loaded into pinned memory."""
        return self.first.type == "cuda"

    def place(self, network: nn.Module, *, training: bool = False) -> nn.Module:
        """Move the network to the device, in place, and wrap it as the execution options require.

        On a CPU the process also stops returning freed memory to the operating system.

        Args:
            network: its own parameter names do not change.
            training: also apply `torchcompile` and `torchscript`. Evaluation and batch-norm recalibration use the model
                without them, because every batch would be compiled anew there.

        Returns:
            The network, or a wrapper around it.
        """
        if self.first.type == "cpu":
            _keep_freed_memory()
        layout = torch.channels_last if self.execution.channels_last else torch.contiguous_format
        model = network.to(self.first).to(memory_format=layout)
        if training and not (self.execution.torchscript or self.execution.torchcompile):
            _accelerate(model)
        if training and self.execution.torchscript:
            model = _to_torchscript(model)
        if self.execution.amp:
            model = _Autocast(model, self.first.type, getattr(torch, self.execution.amp_dtype))
        if training and self.execution.torchcompile:
            model = cast(nn.Module, torch.compile(model, backend=self.execution.torchcompile))
        return nn.DataParallel(model) if self.count > 1 else model

    def scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler, which is disabled unless gradients are float16."""
        is_float16 = self.execution.amp and self.execution.amp_dtype == "float16"
        return torch.amp.GradScaler(self.first.type, enabled=is_float16)

    def __str__(self) -> str:
        if distributed.world_size() > 1:
            return f"{distributed.world_size()} processes ({self.first.type})"
        return f"{self.count} GPUs" if self.count > 1 else str(self.first)


class _Autocast(nn.Module):
    """Run a model under autocast, and return float32 logits."""

    def __init__(self, model: nn.Module, device_type: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.device_type, self.dtype = model, device_type, dtype

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device_type, self.dtype):
            logits: Tensor = self.model(images)
        return logits.float()


def _accelerate(network: nn.Module) -> None:
    """Use the faster training step of shufflenetv2.kernels, unless that folder was deleted."""
    try:
        from ..kernels.training import accelerate
    except ImportError:
        return
    accelerate(network)


def _to_torchscript(network: nn.Module) -> nn.Module:
    with warnings.catch_warnings():  # torch recommends torch.compile and torch.export instead
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # The profiling executor runs the first two iterations after every start differently, with different rounding.
        torch._C._jit_set_profiling_executor(False)
        torch._C._jit_set_profiling_mode(False)
        return cast(nn.Module, torch.jit.script(network))


def _keep_freed_memory() -> None:
    """Make the C library (glibc) keep freed memory for later allocations.

    By default glibc returns large blocks to the operating system. A training step frees and allocates all its activations, so
    that the system would fill every page with zeros again in every step. Peak memory grows by 10 to 20 %.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # never allocate with mmap: those blocks are returned as soon as they are freed
        mallopt(M_TRIM_THRESHOLD, -1)  # never shrink the heap


def choose_devices(name: str, execution: ExecutionConfig | None = None) -> Devices:
    """Choose the devices of this process.

    Args:
        name: 'auto' (the best device of this machine), 'cpu', 'mps', 'cuda' (all GPUs, or under torchrun the GPU of this
            process), or 'cuda:N' (one GPU).
        execution: memory layout, precision and compiler.

    Raises:
        UserError: there is no such device, or fewer GPUs than processes, or the device does not support the execution.
    """
    execution = execution or ExecutionConfig()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    devices = _placement(_existing_device(name), name, execution)
    _check_execution(devices)
    if execution.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by torch.use_deterministic_algorithms
        torch.use_deterministic_algorithms(True)
    return devices


def _existing_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise UserError(f"`device` {name}: this machine has no such device; `device` auto chooses one") from error
    return device


def _placement(device: torch.device, name: str, execution: ExecutionConfig) -> Devices:
    """Return the GPUs of this process if `device` is 'cuda', else the device itself."""
    processes = distributed.local_world_size()
    if processes > 1 and (device.type == "mps" or device.index is not None):
        raise UserError(f"`device` {name}: with torchrun each process uses its own GPU, or the CPU; leave `device` out")
    if device.type != "cuda" or device.index is not None:
        return Devices(device, execution=execution)
    gpus = torch.cuda.device_count()
    if processes > gpus:
        raise UserError(f"torchrun started {processes} processes for {gpus} GPUs; use --nproc-per-node {gpus}")
    if processes > 1:
        return Devices(torch.device("cuda", int(os.environ["LOCAL_RANK"])), execution=execution)
    return Devices(torch.device("cuda:0"), 1 if "LOCAL_RANK" in os.environ else gpus, execution)


def _check_execution(devices: Devices) -> None:
    execution = devices.execution
    if devices.count > 1 and (execution.torchcompile or execution.torchscript):
        option = "torchcompile" if execution.torchcompile else "torchscript"
        raise UserError(f"`{option}` cannot use {devices.count} GPUs in one process; start one process per GPU with torchrun")
    if execution.torchcompile and execution.torchcompile not in (backends := torch.compiler.list_backends(exclude_tags=())):
        raise UserError(f"`torchcompile` {execution.torchcompile}: unknown backend; torch has {', '.join(backends)}")
    if execution.amp and execution.amp_dtype == "float16" and devices.first.type == "cpu":
        raise UserError("`amp_dtype` float16 needs a GPU; on a CPU use bfloat16")
