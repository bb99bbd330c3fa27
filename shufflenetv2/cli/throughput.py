"""Measurement of the speed of the network and of the loader: `train.py --throughput`."""

import time
from contextlib import closing

from .. import terminal
from ..config import Config, DistillationConfig
from ..data import BadImages, DataIterator, build_train_transform, worker_count
from ..engine import build_training_state, choose_devices, distributed, train_step
from ..recipe import build_class_weights, build_loss
from ..report import RunLog
from . import build

BATCHES_MEASURED = 20
BATCHES_LOADED_AHEAD = 3


def run_throughput(config: Config) -> int:
    """Print the images per second of the network alone and of the loader alone. Return the exit status."""
    terminal.configure(quiet=config.common.quiet)
    devices = choose_devices(config.common.device, config.execution)
    train_set, _ = build.open_datasets(config)
    config, weights = build.read_initial_weights(config)
    config = build.choose_batch_size(config, devices, train_set, weights)[0].with_length(len(train_set))
    batch_size = config.optimization.batch_size
    iterator = DataIterator(
        train_set,
        build_train_transform(config.data, config.augmentation),
        batch_size,
        seed=config.optimization.seed,
        workers=worker_count(config.common.workers, distributed.local_world_size()),
        pin_memory=devices.pin_memory,
        bad_images=BadImages.from_config(config.data, train_set, "training"),
    )
    with RunLog() as log:
        with closing(iterator):
            images, targets = next(iterator)
            loader_speed = BATCHES_MEASURED * batch_size / _loading_time(iterator)
        state = build_training_state(config, devices, train_set.class_names, weights, log.info)
        model = devices.place(state.network, training=True)
        class_weights = build_class_weights(
            config.optimization.class_weights, train_set.class_names, train_set.targets, device=devices.first
        )
        loss_function = build_loss(config.optimization, config.augmentation, DistillationConfig(), class_weights)
        images = images.to(devices.first)
        targets = targets.to(devices.first).repeat(len(images) // len(targets))
        seconds = []
        for _ in range(BATCHES_MEASURED):
            started = time.perf_counter()
            loss, _ = train_step(
                model, images, targets, loss_function, state.optimizer, accum_steps=config.optimization.grad_accum_steps
            )
            float(loss)  # waits for the device
            seconds.append(time.perf_counter() - started)
        network_speed = batch_size / sorted(seconds)[BATCHES_MEASURED // 2]
        log.result(
            f"the network alone, trained on {devices}: {network_speed:,.0f} images/s; "
            f"the loader alone: {loader_speed:,.0f} images/s"
        )
    return 0


def _loading_time(iterator: DataIterator) -> float:
    """Return the seconds that the measured batches take, once the batches loaded ahead are consumed."""
    for _ in range(BATCHES_LOADED_AHEAD - 1):
        next(iterator)
    started = time.perf_counter()
    for _ in range(BATCHES_MEASURED):
        next(iterator)
    return time.perf_counter() - started
