"""Where and how the network computes: devices, memory layout, precision, compiler."""

import ctypes
import os
import sys
import warnings
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import distributed

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


class DeviceError(UserError):
    """A device that is not there, or that cannot do what is asked of it."""


@dataclass(frozen=True)
class Execution:
    """How a network is run.

    Args:
        channels_last: whether tensors are interleaved in memory (NHWC) rather than planar.
        amp_dtype: bfloat16 or float16 for torch.autocast, which uses it where that is safe; None for float32.
        backend: of torch.compile, for training; none if empty.
        torchscript: whether to train the network as a TorchScript program.
        deterministic: whether operations that may add in another order every time are refused.
    """

    channels_last: bool = False
    amp_dtype: torch.dtype | None = None
    backend: str = ""
    torchscript: bool = False
    deterministic: bool = False


@dataclass(frozen=True)
class Devices:
    """What the network of this process runs on, and how: `first`, and with several GPUs all of them through nn.DataParallel."""

    first: torch.device
    count: int = 1
    execution: Execution = field(default_factory=Execution)

    @property
    def pin_memory(self) -> bool:
        return self.first.type == "cuda"

    def place(self, network: nn.Module, *, training: bool = False) -> nn.Module:
        """The network, moved there, in a wrapper if one is needed; its own names stay as they are.

        With the CPU the process keeps what memory it frees, from then on.

        Args:
            training: compile or script it too, where that is wanted. (Not for the recalibration of batch
                norm, where every batch would be compiled anew.)
        """
        if self.first.type == "cpu":
            _keep_freed_memory()
        layout = torch.channels_last if self.execution.channels_last else torch.contiguous_format
        model = network.to(self.first).to(memory_format=layout)
        if training and self.execution.torchscript:
            model = _scripted(model)
        if self.execution.amp_dtype:
            model = _Autocast(model, self.first.type, self.execution.amp_dtype)
        if training and self.execution.backend:
            model = cast(nn.Module, torch.compile(model, backend=self.execution.backend))
        return nn.DataParallel(model) if self.count > 1 else model

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps float16 gradients from vanishing; does nothing for other types."""
        return torch.amp.GradScaler(self.first.type, enabled=self.execution.amp_dtype == torch.float16)

    def __str__(self) -> str:
        each = f"{self.count} GPUs" if self.count > 1 else str(self.first)
        return each if distributed.world_size() == 1 else f"{distributed.world_size()} processes ({self.first.type})"


class _Autocast(nn.Module):
    def __init__(self, model: nn.Module, device_type: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.device_type, self.dtype = model, device_type, dtype

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device_type, self.dtype):
            logits: Tensor = self.model(images)
        return logits.float()


def _scripted(network: nn.Module) -> nn.Module:
    with warnings.catch_warnings():  # torch recommends torch.compile and torch.export by now
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # Otherwise the first two iterations after every start would be computed, and rounded, unlike the others.
        torch._C._jit_set_profiling_executor(False)
        torch._C._jit_set_profiling_mode(False)
        return cast(nn.Module, torch.jit.script(network))


def _keep_freed_memory() -> None:
    """Has the C library keep what is freed for what is allocated next, where that is glibc.

    It returns large pieces to the system, and a step frees and allocates all its activations: the system
    would fill every page of them with zeros again, at every step. What the process has at most grows by a tenth or a fifth.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # pieces of their own, which go back as soon as they are free: none
        mallopt(M_TRIM_THRESHOLD, -1)  # bytes free at the end of the heap, of which it is made shorter: never


def choose_devices(name: str, execution: Execution | None = None) -> Devices:
    """'auto' and 'cuda' take all GPUs, or under torchrun the one of this process; 'cuda:N' takes one.

    Raises:
        DeviceError: where there is none of that name, or not one for every process, or it cannot compute so.
    """
    execution = execution or Execution()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        raise DeviceError(f"--device {name}: there is no such device here; auto finds one") from error
    devices = Devices(device, execution=execution)
    here = distributed.local_world_size()
    if here > 1:
        if device.type == "mps" or device.index is not None:
            raise DeviceError(f"--device {name}: torchrun's processes take a GPU each, or the CPU; leave --device out")
        if device.type == "cuda":
            gpus = torch.cuda.device_count()
            if here > gpus:
                raise DeviceError(f"torchrun started {here} processes for {gpus} GPUs; say --nproc-per-node {gpus}")
            devices = Devices(torch.device("cuda", int(os.environ["LOCAL_RANK"])), execution=execution)
    elif device.type == "cuda" and device.index is None:
        count = 1 if "LOCAL_RANK" in os.environ else torch.cuda.device_count()
        devices = Devices(torch.device("cuda:0"), count, execution)
    if devices.count > 1 and (execution.backend or execution.torchscript):
        which = "--torchcompile" if execution.backend else "--torchscript"
        raise DeviceError(f"{which} cannot be spread over {devices.count} GPUs in one process; start it with torchrun")
    if execution.backend and execution.backend not in (known := torch.compiler.list_backends(exclude_tags=())):
        raise DeviceError(f"--torchcompile {execution.backend}: torch knows {', '.join(known)}")
    if execution.amp_dtype == torch.float16 and device.type == "cpu":
        raise DeviceError("--amp-dtype float16 needs a GPU; the CPU has bfloat16")
    if execution.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for
        torch.use_deterministic_algorithms(True)
    return devices
