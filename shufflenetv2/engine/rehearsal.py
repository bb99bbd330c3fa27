"""Measurement of the memory of an iteration: a rehearsal with a few blank images before a run begins.

`rehearse` builds the network, the optimizer and everything else that an iteration involves a second time, performs one or two
iterations, and records how many bytes of tensors exist at the same time. Memory grows linearly with the number of images,
so that two sizes of the batch give the memory of every other. The rehearsal leaves nothing behind: it has its own network,
and restores torch's random generators.
"""

import math
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config import Config, height_width
from ..recipe import load_teacher
from ..weights import Weights
from . import distributed
from .devices import Devices
from .loop import StepSettings, prepare_batch, train_step
from .state import build_training_state

# Pixels of the smaller rehearsal: few enough to take a fraction of a second, and enough that activations, not gradients,
# determine the peak, as they do in a batch of usual size.
REHEARSED_PIXELS = 2 * 224**2


@dataclass(frozen=True)
class IterationMemory:
    """Bytes of tensors on the device of a run, apart from the batches that the loader keeps ready.

    Attributes:
        state: of the weights, the averaged weights, the optimizer and the teacher.
        gradients: of the gradients.
        step: of a training step, apart from what grows with the batch; at least `gradients`.
        held: of each sample, from the arrival of its batch to the end of the iteration.
        prepared: of each sample, at the peak of mixing and of the teacher's forward pass; includes `held`.
        stepped: of each sample, at the peak of the training step; includes `held`.
        forward: of each training image, at the peak of a forward pass without gradients.
        largest: of each sample, in the largest tensor.
    """

    state: int
    gradients: int
    step: int
    held: int
    prepared: int
    stepped: int
    forward: int
    largest: int


def rehearse(config: Config, devices: Devices, class_names: list[str], weights: Weights | None) -> IterationMemory:
    """Perform one or two iterations with a few blank images, and return the memory that they need.

    One GPU stands for all, and a compiled network is taken to need what the same network needs without compilation.

    Args:
        class_names: class names in the order of their labels.
        weights: weights that the run starts from; None for random weights.
    """
    device = devices.first
    single = replace(devices, count=1, execution=replace(devices.execution, torchcompile=""))
    (height, width), views = image_shape(config)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _TensorMeter(device) as meter:
        state = build_training_state(config, single, class_names, weights)
        placed, model = single.place(state.network), single.place(state.network, training=True)
        teacher = load_teacher(config.distillation, len(class_names), class_names, config.model.in_chans)
        settings = StepSettings.from_config(config, state.network, teacher and single.place(teacher))

        def blank_images(count: int) -> Tensor:
            shape = (count, height, width, config.model.in_chans)
            return torch.zeros(shape, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)

        largest = []  # sizes of the largest tensors of each sample

        def iterate(samples: int) -> tuple[int, int, int]:
            """Perform an iteration as `train` does; return the bytes held, and those at the peaks before and in the step."""
            before = meter.live
            meter.reset_peak()
            images, targets = blank_images(views * samples), torch.zeros(samples, dtype=torch.int64, device=device)
            images, targets, _ = prepare_batch(images, targets, settings.mixing, iteration=1)
            loss_targets = (targets, settings.teacher(images)) if settings.teacher else targets
            held, prepared = meter.live - before, meter.peak - before
            largest.append(meter.largest // samples)
            meter.reset_peak()
            train_step(
                model.train(), images, loss_targets, settings.loss_function, state.optimizer, state.scaler, clip=settings.clip
            )
            state.optimizer.zero_grad()
            return held, prepared, meter.peak - before

        gradients = sum(each.nbytes for each in state.network.parameters() if each.requires_grad)
        count = max(2, round(REHEARSED_PIXELS / (views * height * width)))
        chunk = samples_at_once(config, devices)
        if chunk <= 2 * count:
            held, prepared, stepped = iterate(chunk)
            held, prepared, step = held // chunk, prepared // chunk, gradients
            stepped = math.ceil(max(0, stepped - step) / chunk)
        else:
            small, large = iterate(count), iterate(2 * count)
            held, prepared, stepped = ((more - less) // count for less, more in zip(small, large, strict=True))
            step = max(gradients, large[2] - 2 * count * stepped)
        state_bytes = meter.live
        meter.reset_peak()
        with torch.no_grad():
            placed.eval()(blank_images(count))
        largest.append(views * meter.largest // count)
        return IterationMemory(
            state_bytes, gradients, step, held, prepared, stepped, (meter.peak - state_bytes) // count, max(largest)
        )


def image_shape(config: Config) -> tuple[tuple[int, int], int]:
    """Return the height and width of a training image in pixels, and the number of its views."""
    return height_width(config.data.train_crop_size or config.data.input_size), config.augmentation.aug_splits or 1


def samples_at_once(config: Config, devices: Devices) -> int:
    """Return the number of samples that pass through the network of one device at once."""
    optimization = config.optimization
    return -(-optimization.batch_size // (distributed.world_size() * devices.count * optimization.grad_accum_steps))


class _TensorMeter(TorchDispatchMode):
    """Count the bytes of the tensors on a device that operations create while this context is active, as long as they live.

    On a GPU, too: what torch's allocator counts includes the workspaces of cuDNN, which are larger than a few images' tensors.

    Attributes:
        live: bytes of the tensors that exist.
        peak: the largest value of `live` since `reset_peak`.
        largest: size of the largest tensor created since `reset_peak`.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.largest = 0
        self._device, self._storages = device, dict[int, weakref.ref[torch.UntypedStorage]]()

    def reset_peak(self) -> None:
        self.peak, self.largest = self.live, 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        output = operation(*arguments, **(named or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.device.type == self._device.type:
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._storages:  # a view, or the result of an operation in place
            return

        def discount(_: object) -> None:
            self.live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, discount)
        self.live += size
        self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
