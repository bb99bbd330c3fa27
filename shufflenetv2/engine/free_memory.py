"""How much memory this process can still use: of a GPU, or of the machine within the limits set for the process."""

import ctypes
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

KIB = 1024
UNKNOWN = 2**62  # bytes; more than any memory


def release_freed_memory() -> None:
    """Return main memory that was freed, and that the C library (glibc) keeps for later, to the system.

    To be called between phases with batches of different sizes: the gaps that the tensors of one leave are of no use to
    those of the other.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)


def free_gpu_memory(first: torch.device, count: int = 1) -> int:
    """Return the bytes that can be allocated on each of `count` GPUs; the cache of torch's allocator counts as used."""
    gpus = range(count) if count > 1 else [first]
    return min(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)


def free_host_memory(root: Path = Path("/")) -> int:
    """Return the bytes of main memory that this process can still use; UNKNOWN if the system does not say.

    The smallest of: the available memory of the machine, the remainder of every control group that contains the process
    (containers and batch systems limit memory with them), and the remainder of the limits of the process (`ulimit -v`,
    `ulimit -d`). Swap space does not count: training that swaps is too slow to be of use.

    Args:
        root: folder that contains `proc` and `sys`.
    """
    available = _read_table(root / "proc/meminfo").get("MemAvailable")
    if available is None:
        return UNKNOWN
    remainders = [available * KIB, *_cgroup_remainders(root), *_limit_remainders(root)]
    return max(0, min(remainders))


def _limit_remainders(root: Path) -> Iterator[int]:
    """Yield what remains of the limits of this process on its address space and on its data."""
    if resource is None:
        return
    sizes = _read_table(root / "proc/self/status")
    for limit, size in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        maximum = resource.getrlimit(limit)[0]
        if maximum != resource.RLIM_INFINITY and size in sizes:
            yield maximum - sizes[size] * KIB


def _cgroup_remainders(root: Path) -> Iterator[int]:
    """Yield what remains of the memory limit of each control group that contains this process."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            for group in _with_parents(root / "sys/fs/cgroup", path):
                limits = [int(text) for name in ("memory.max", "memory.high") if (text := _read(group / name)).isdigit()]
                if limits and (used := _read(group / "memory.current")).isdigit():
                    cache = _read_table(group / "memory.stat")
                    yield min(limits) - int(used) + _reclaimable(cache, "inactive_file", "active_file", "slab_reclaimable")
        elif "memory" in controllers.split(","):  # version 1
            for group in _with_parents(root / "sys/fs/cgroup/memory", path):
                limit, used = _read(group / "memory.limit_in_bytes"), _read(group / "memory.usage_in_bytes")
                if limit.isdigit() and used.isdigit():  # without a limit the file holds a number that no machine reaches
                    cache = _read_table(group / "memory.stat")
                    yield int(limit) - int(used) + _reclaimable(cache, "total_inactive_file", "total_active_file")


def _with_parents(mount: Path, path: str) -> list[Path]:
    """Return the folders of a control group and of those that contain it, as far as they are visible in this container."""
    group = mount / path.strip("/")
    return [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]


def _reclaimable(statistics: Mapping[str, int], *names: str) -> int:
    """Return the bytes that the kernel frees before it refuses memory to the group: unused cache of files."""
    return sum(statistics.get(name, 0) for name in names)


def _read_table(path: Path) -> dict[str, int]:
    """Return the numbers in a file with a name and a number in each line, as in /proc/meminfo; empty if there is none."""
    rows = (line.replace(":", " ").split() for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
