"""Several processes, one for each GPU, as torchrun starts them.

Each takes their slice of every batch. Gradients and batch-norm statistics are
combined within the iteration, so after it all of them hold the same state, and a checkpoint says
nothing about how many they were. For a single process every function here has no effect.
"""

import contextlib
import gc
import io
import os
import secrets
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from ..errors import UserError


class ProcessLostError(UserError):
    """Another process of the run has ended or cannot be reached."""

    status = 1


def rank() -> int:
    """The number of this process, 0 to world_size() - 1. Process 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """How many of them torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@contextlib.contextmanager
def init_process_group(device: torch.device) -> Iterator[None]:
    """Finds the other processes that torchrun started, if it did: through NCCL for GPUs, gloo for CPUs.

    Raises:
        ProcessLostError: in place of what is raised where another process ends.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # What is agreed upon below lies in the host's memory and takes gloo in either case.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, own_rank, world_size = next(iter(rendezvous("env://")))
    dist.init_process_group(backend, store=_unused(store, own_rank, world_size), rank=own_rank, world_size=world_size)
    try:
        yield
    except RuntimeError as error:
        if "gloo" in str(error) or isinstance(error, dist.DistError):
            raise ProcessLostError(f"process {rank()} of {world_size()}: another process of this run has ended") from error
        raise
    all_reduce_max(0)  # nobody leaves before all are done
    gc.collect()  # what still holds the group (DistributedDataParallel does) would end it at the interpreter's exit, and abort
    dist.destroy_process_group()


def _unused(store: Store, own_rank: int, world_size: int) -> Store:
    """A part of the store in which nobody has written.

    When torchrun starts processes again, its store still has the addresses of the dead ones, and
    whoever comes first would wait for them. So each process asks under a name that nobody had before,
    and process 0 answers with such a name for all, until it knows that all have heard it.
    """
    name = secrets.token_hex(8)
    if own_rank == 0:
        waiting = set(range(1, world_size))
        while waiting:
            for other in sorted(waiting):
                if store.check([f"asks/{other}"]):  # perhaps a dead one still
                    asking = store.get(f"asks/{other}").decode()
                    store.set(f"answer/{asking}", name)
                    if store.check([f"heard/{asking}/{name}"]):
                        waiting.remove(other)
            time.sleep(0.01)
    else:
        store.set(f"asks/{own_rank}", name)
        answer = store.get(f"answer/{name}").decode()
        store.set(f"heard/{name}/{answer}", "")
        name = answer
    return PrefixStore(name, store)


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over all processes of a tensor in the host's memory."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def all_reduce_max(value: int) -> int:
    """The largest of the processes' values."""
    if world_size() == 1:
        return value
    values = torch.tensor(value, dtype=torch.int64)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return int(values)


@contextlib.contextmanager
def local_rank0_first() -> Iterator[None]:
    """One process of each machine goes first; the others come when it is done."""
    ahead = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not ahead:
        all_reduce_max(0)  # waits for all, and the first ones are there when they are done
    yield
    if ahead:
        all_reduce_max(0)


class Agreement:
    """Like `all_reduce_max`, but of the values of the call before, so that no process waits for another."""

    def __init__(self) -> None:
        self._pending: tuple[dist.Work, Tensor] | None = None

    def __call__(self, value: int) -> int:
        if world_size() == 1:
            return value
        agreed = 0
        if self._pending:
            work, values = self._pending
            work.wait()
            agreed = int(values)
        values = torch.tensor(value, dtype=torch.int64)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._pending = work, values
        return agreed

    def close(self) -> None:
        """Waits for the last call's message."""
        if self._pending:
            self._pending[0].wait()
            self._pending = None


def broadcast_from_rank0(content: Any) -> Any:
    """What process 0 has: tensors and plain values, nested; what the others pass is ignored."""
    if world_size() == 1:
        return content
    buffer = io.BytesIO()
    if rank() == 0:
        torch.save(content, buffer)
    length = torch.tensor(buffer.tell(), dtype=torch.int64)
    dist.broadcast(length, 0)
    data = (
        torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        if rank() == 0
        else torch.empty(int(length), dtype=torch.uint8)
    )
    dist.broadcast(data, 0)
    return content if rank() == 0 else torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, its gradients averaged over all processes in every backward pass (DistributedDataParallel)."""
    if world_size() == 1:
        return model
    with warnings.catch_warnings():  # torch 2.15 gives this argument a new name, which older ones do not know
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        wrapped = nn.parallel.DistributedDataParallel(
            model,
            device_ids=None if device.index is None else [device.index],
            broadcast_buffers=False,  # synchronize_batch_norm does that, at the end of an iteration
            gradient_as_bucket_view=True,
        )
    # It lays its buckets out anew after the first backward pass, and the layout decides in what order
    # three or more processes' gradients are added. Once and for all now, or a run that was resumed
    # would round its first iteration unlike one that was not.
    model.eval()
    wrapped(torch.zeros(1, 3, 32, 32, device=device)).sum().backward()
    model.train().zero_grad()
    return wrapped


@torch.no_grad()
def synchronize_batch_norm(network: nn.Module, how: str) -> None:
    """Makes the running statistics the same in all processes.

    Args:
        how: 'broadcast', those of process 0, which nn.DataParallel keeps as well; or 'reduce', the average.
    """
    if world_size() == 1:
        return
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    statistics = [each for layer in layers for each in (layer.running_mean, layer.running_var) if each is not None]
    flat = torch.cat([each.flatten() for each in statistics])  # one message
    if how == "broadcast":
        dist.broadcast(flat, 0)
    else:
        dist.all_reduce(flat)
        flat /= world_size()
    parts = torch.split(flat, [each.numel() for each in statistics])
    torch._foreach_copy_(statistics, [part.view_as(each) for part, each in zip(parts, statistics, strict=True)])
