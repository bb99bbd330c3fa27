"""Data-parallel training with one process per GPU, started by torchrun.

Each process computes its slice of every batch. Gradients and batch-norm statistics are combined within the iteration, so that
all processes have the same state afterwards, and checkpoints have the same content for any number of processes. In a run with a
single process, no function of this module communicates.
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


def rank() -> int:
    """Return the rank of this process, 0 to world_size() - 1; process 0 writes the files and the log."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """Return the number of processes that torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@contextlib.contextmanager
def init_process_group(device: torch.device) -> Iterator[None]:
    """Connect the processes that torchrun started, with NCCL for GPU tensors and gloo for CPU tensors.

    Raises:
        UserError: another process has ended. Raised in place of the exception of the interrupted collective operation.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The functions below reduce tensors in host memory, for which gloo is used with GPUs as well.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, own_rank, processes = next(iter(rendezvous("env://")))
    store = _fresh_store(store, own_rank, processes)
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=processes)
    try:
        yield
        all_reduce_max(0)  # a barrier, because a process that ends early would break the collective operations of the others
    except UserError as error:
        error.is_repeated = _has_reported(store)
        raise
    except RuntimeError as error:
        if "gloo" in str(error) or isinstance(error, dist.DistError):
            ended = UserError(f"process {rank()} of {world_size()}: another process of this run has ended", status=1)
            ended.is_repeated = _has_reported(store)
            raise ended from error
        raise
    gc.collect()  # a DistributedDataParallel that still references the group would abort when the interpreter exits
    dist.destroy_process_group()


def _has_reported(store: Store) -> bool | None:
    """Return whether a process of the run has called this function before, to report an error; None if it is not known.

    The processes often meet the same error, such as too many damaged images, and the end of one ends the others.
    """
    try:
        return store.add("reported", 1) > 1
    except RuntimeError:  # the process that holds the store has ended
        return None


def _fresh_store(store: Store, own_rank: int, processes: int) -> Store:
    """Return a view of the store under a prefix that no earlier attempt of the run has used.

    When torchrun restarts the processes, its store still holds the addresses of the previous processes, and the new processes
    would wait for those. The processes therefore agree on a new random prefix: each process registers a random token, process 0
    replies to each token with the prefix, and repeats this until every process has confirmed the prefix. Process 0 may at first
    read the token of an ended process; it reads again until the new process has overwritten the token.
    """
    token = secrets.token_hex(8)
    if own_rank != 0:
        store.set(f"token/{own_rank}", token)
        prefix = store.get(f"prefix/{token}").decode()
        store.set(f"confirmed/{token}/{prefix}", "")
        return PrefixStore(prefix, store)
    prefix, unconfirmed = token, set(range(1, processes))
    while unconfirmed:
        for other in sorted(unconfirmed):
            if store.check([f"token/{other}"]):
                token = store.get(f"token/{other}").decode()
                store.set(f"prefix/{token}", prefix)
                if store.check([f"confirmed/{token}/{prefix}"]):
                    unconfirmed.remove(other)
        time.sleep(0.01)
    return PrefixStore(prefix, store)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a tensor in host memory over all processes, in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_rows(rows: Tensor, lengths: list[int]) -> Tensor:
    """Return the rows of all processes: those of the first batch in the order of the processes, then those of the second, ...

    Args:
        rows: of this process, in host memory (N, ...), batch after batch.
        lengths: number of rows in each batch of this process; all processes have the same number of batches.
    """
    if world_size() == 1:
        return rows
    counts = torch.zeros(len(lengths), world_size(), dtype=torch.int64)
    counts[:, rank()] = torch.tensor(lengths)
    ends = all_reduce_sum(counts).flatten().cumsum(0).view_as(counts)
    gathered = torch.zeros(int(ends[-1, -1]), *rows.shape[1:], dtype=rows.dtype)
    batches = [torch.arange(end - length, end) for end, length in zip(ends[:, rank()].tolist(), lengths, strict=True)]
    gathered[torch.cat(batches)] = rows
    return all_reduce_sum(gathered)  # each row is 0 in all processes but one


def all_reduce_max(value: int) -> int:
    """Return the largest of the values of all processes."""
    if world_size() == 1:
        return value
    values = torch.tensor(value, dtype=torch.int64)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return int(values)


def gather_lists(items: list[Any]) -> list[Any]:
    """Return the items of all processes, those of process 0 first; they are pickled on the way."""
    if world_size() == 1 or not all_reduce_max(len(items)):
        return items
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, items)
    return [item for of_process in gathered for item in of_process]


@contextlib.contextmanager
def local_rank0_first() -> Iterator[None]:
    """Run the block in one process of each machine first, then in the other processes."""
    is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not is_first:
        all_reduce_max(0)  # a barrier, which the first processes reach after the block
    yield
    if is_first:
        all_reduce_max(0)


class DelayedAllReduceMax:
    """All-reduce in the background: each call returns the maximum of the values that all processes passed to the previous call.

    No process waits for another process, since the reduction runs during the iteration between two calls.
    """

    def __init__(self) -> None:
        self._pending: tuple[dist.Work, Tensor] | None = None

    def __call__(self, value: int) -> int:
        if world_size() == 1:
            return value
        previous_max = 0
        if self._pending:
            work, values = self._pending
            work.wait()
            previous_max = int(values)
        values = torch.tensor(value, dtype=torch.int64)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._pending = work, values
        return previous_max

    def close(self) -> None:
        """Wait for the reduction of the last call."""
        if self._pending:
            self._pending[0].wait()
            self._pending = None


def broadcast_from_rank0(content: Any) -> Any:
    """Return the value that process 0 passes: nested dicts and lists of tensors and plain values."""
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
    """Wrap the model in DistributedDataParallel, which averages the gradients over all processes in every backward pass."""
    if world_size() == 1:
        return model
    with warnings.catch_warnings():  # torch 2.15 has another name for broadcast_buffers, which older versions do not know
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        wrapped = nn.parallel.DistributedDataParallel(
            model,
            device_ids=None if device.index is None else [device.index],
            broadcast_buffers=False,  # buffers are synchronized by synchronize_batch_norm, at the end of an iteration
            gradient_as_bucket_view=True,
        )
    # DDP rebuilds its gradient buckets after the first backward pass, and the bucket layout determines the order in which
    # the gradients of three or more processes are added. Force the rebuild now: otherwise the first iteration after a
    # resume would be rounded differently from the same iteration of an uninterrupted run.
    model.eval()
    channels = next(model.parameters()).shape[1]  # of the first convolution
    wrapped(torch.zeros(1, channels, 32, 32, device=device)).sum().backward()
    model.train().zero_grad()
    return wrapped


@torch.no_grad()
def synchronize_batch_norm(network: nn.Module, mode: str) -> None:
    """Make the batch-norm running statistics of all processes equal.

    Args:
        mode: 'broadcast': all processes get the statistics of process 0, as nn.DataParallel keeps those of the first GPU;
            'reduce': all processes get the average.
    """
    if world_size() == 1:
        return
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    statistics = [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var) if tensor is not None]
    flat = torch.cat([tensor.flatten() for tensor in statistics])  # one tensor, so that one message suffices
    if mode == "broadcast":
        dist.broadcast(flat, 0)
    else:
        dist.all_reduce(flat)
        flat /= world_size()
    synchronized = torch.split(flat, [tensor.numel() for tensor in statistics])
    torch._foreach_copy_(statistics, [new.view_as(old) for new, old in zip(synchronized, statistics, strict=True)])
