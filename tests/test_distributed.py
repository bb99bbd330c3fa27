"""A run with several processes, started by torchrun, gives the result of a run with one process."""

import copy
import csv
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shufflenetv2 import ShuffleNetV2
from shufflenetv2.data import DataIterator, Digits, EvaluationTransform, TrainTransform, evaluation_batches
from shufflenetv2.data.images import Image
from shufflenetv2.engine import recalibrate_batch_norm
from shufflenetv2.recipe import linear_decay, parameter_groups
from shufflenetv2.rng import generator
from tests.processes import Process
from tests.support import ONE_THREAD, ROOT, SHORT, Train, same_tensors

OPTIONS = [*SHORT, "--batch-size", "12", "--total-iters", "18", "--display-interval", "1", "--val-interval", "10",
           "--save-interval", "5", "--model-ema", "--drop", "0.2", "--grad-accum-steps", "2", "--mixup", "0.2",
           "--clip-grad", "5", "--aug-repeats", "2"]  # fmt: skip


class RecordingDigits(Digits):
    """Digits that record the names of the images that are loaded."""

    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.loaded: list[str] = []

    def image(self, index: int) -> Image:
        self.loaded.append(self.name(index))
        return super().image(index)


def load_batches(world_size: int, start: int, count: int) -> tuple[list[list[str]], list[torch.Tensor]]:
    """Return sample names and images of `count` batches after the first `start`, joined from the slices of all processes."""
    names: list[list[str]] = [[] for _ in range(count)]
    images: list[list[torch.Tensor]] = [[] for _ in range(count)]
    for rank in range(world_size):
        transform = TrainTransform(32, (0.5, 1), (0.8, 1.2), (0.4,) * 3, 0.5)
        for number in range(count):
            dataset = RecordingDigits("train")
            iterator = DataIterator(
                dataset, transform, 12, seed=5, start_iteration=start + number, workers=1, rank=rank, world_size=world_size
            )
            images[number].append(iterator.next()[0])
            iterator.close()
            names[number] += dataset.loaded[: 12 // world_size]
    return names, [torch.cat(slices) for slices in images]


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_together_load_the_batches_of_a_single_process(world_size: int) -> None:
    start = 117  # the epoch of 1,438 samples ends in the third batch
    names, images = load_batches(1, start, 4)
    assert len({name for batch in names for name in batch}) > 40
    names_of_processes, images_of_processes = load_batches(world_size, start, 4)
    assert names_of_processes == names
    assert all(torch.equal(a, b) for a, b in zip(images, images_of_processes, strict=True))
    single = DataIterator(Digits("train"), TrainTransform(32, (0.5, 1), (0.8, 1.2), (0.4,) * 3, 0.5), 12, seed=5)
    assert [single.sample_names(start + number) for number in (1, 2, 3, 4)] == names


@pytest.mark.parametrize(("batch_size", "world_size"), [(50, 2), (64, 3), (7, 8), (400, 5)])
def test_several_processes_evaluate_every_image_once_in_the_same_number_of_batches(batch_size: int, world_size: int) -> None:
    datasets = [RecordingDigits("val") for _ in range(world_size)]
    counts = []
    for rank, dataset in enumerate(datasets):
        batches = evaluation_batches(dataset, EvaluationTransform(32, 32), batch_size, rank=rank, world_size=world_size)
        counts.append([len(targets) for _, targets in batches])
    assert len({len(count) for count in counts}) == 1
    assert sorted(name for dataset in datasets for name in dataset.loaded) == sorted(Digits("val").name(i) for i in range(359))
    assert [sum(batch) for batch in zip(*counts, strict=True)][:-1] == [batch_size] * (len(counts[0]) - 1)


def torchrun(folder: Path, *arguments: str, restarts: int = 0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               "--max-restarts", str(restarts), str(ROOT / "train.py"), *arguments]  # fmt: skip
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def start_two(folder: Path, *arguments: str) -> tuple[Process, Process]:
    """Start two processes with the environment that torchrun gives them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    first, second = (Process(folder, *arguments, **common, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1"))
    return first, second


def run_two(folder: Path, *arguments: str) -> list[tuple[int, str, str]]:
    """Run two processes to their end; return exit status and output of each."""
    return [(process.wait(), *process.communicate()) for process in start_two(folder, *arguments)]


def run_two_to_the_end(folder: Path, *arguments: str) -> None:
    for status, _, errors in run_two(folder, *arguments):
        assert status == 0, errors


def read_predictions(folder: Path) -> list[tuple[tuple[str, ...], list[float]]]:
    """Return the image, label and prediction, and the probabilities, of each row of the predictions of an evaluation."""
    (path,) = folder.glob("eval/**/predictions.csv")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name.startswith("p(")]
    return [((row["image"], row["label"], row["prediction"]), [float(row[name]) for name in columns]) for row in rows]


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    state_dict: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state_dict


@pytest.mark.parametrize("dist_bn", ["broadcast", "reduce"])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_gradients_and_statistics_are_averaged_over_the_processes(tmp_path: Path, dist_bn: str) -> None:
    """Compare a run of two processes with the same computation in this process."""
    short = [*SHORT, "--total-iters", "3", "--save-interval", "3,10m", "--learning-rate", "0.02", "--display-interval", "1"]
    run_two_to_the_end(tmp_path, *short, "--dist-bn", dist_bn)
    output = (tmp_path / "logs/models/train.log").read_text()

    network = ShuffleNetV2(32, 10, "0.5x")
    network.initialize_weights(torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(parameter_groups(network, 4e-5), lr=0.02, momentum=0.9)
    schedule, loss_function = linear_decay(optimizer, 3), nn.CrossEntropyLoss(label_smoothing=0.1)
    transform = TrainTransform(32, (0.8, 1.0), (0.9, 1.1), (0.2,) * 3, 0.0)  # as in digits.yaml
    stream, losses, wrong = DataIterator(Digits("train"), transform, 16, seed=0), [], []
    for _ in range(3):
        images, targets = stream.next()
        copies = [copy.deepcopy(network).train() for _ in range(2)]
        schedule.step()
        logits = [network_copy(part) for network_copy, part in zip(copies, torch.split(images, 8), strict=True)]
        loss = torch.stack([loss_function(*pair) for pair in zip(logits, torch.split(targets, 8), strict=True)]).mean()
        wrong.append((torch.cat(logits).argmax(1) != targets).double().mean().item())
        torch.autograd.backward(loss)
        losses.append(loss.item())
        for parameter, *of_copies in zip(network.parameters(), *(copied.parameters() for copied in copies), strict=True):
            parameter.grad = sum(parameter_of_copy.grad for parameter_of_copy in of_copies)
        optimizer.step()
        for buffer, first, second in zip(network.buffers(), copies[0].buffers(), copies[1].buffers(), strict=True):
            buffer.copy_(first if dist_bn == "broadcast" or not first.is_floating_point() else (first + second) / 2)
    printed = [float(loss) for loss in re.findall(r"TRAIN Iter .*?loss = ([\d.]+)", output)]
    assert printed == pytest.approx(losses, rel=1e-4)
    assert [float(error) for error in re.findall(r"Top-1 err = ([\d.]+),\tTop-5.*data_time", output)] == pytest.approx(wrong)
    trained = read_state_dict(tmp_path / "models/checkpoint-000003.pth.tar")
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)

    # The recalibration averages over the slices of all processes, for either value of `dist_bn`.
    stream, states = DataIterator(Digits("train"), transform, 16, seed=0, start_iteration=3), []
    batches = [torch.split(stream.next()[0], 8) for _ in range(160 // 16)]
    for rank in range(2):
        network.load_state_dict(trained)
        recalibrate_batch_norm(network, [slices[rank] for slices in batches])
        states.append(copy.deepcopy(network.state_dict()))
    for name, tensor in read_state_dict(tmp_path / "models/model.pkl").items():
        expected = (states[0][name] + states[1][name]) / 2 if "running" in name else states[0][name]
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with two processes without interruption; return the folder of the run."""
    folder = tmp_path_factory.mktemp("two")
    run_two_to_the_end(folder, *OPTIONS)
    return folder


def test_only_process_0_writes_the_log_and_the_files(two_processes: Path) -> None:
    log = (two_processes / "logs/models/train.log").read_text()
    assert re.findall(r"TRAIN Iter (\d+)", log) == [str(k) for k in range(1, 19)]
    assert "device      2 processes (cpu)" in log
    assert sorted(path.name for path in (two_processes / "models").glob("checkpoint*")) == [
        f"checkpoint-{k:06}.pth.tar" for k in (5, 10, 15, 18)
    ]


def test_a_stopped_run_of_two_processes_continues_with_one(tmp_path: Path, train_here: Train) -> None:
    processes = start_two(tmp_path, *OPTIONS)
    assert any(" 7/18 " in line for line in processes[0].stdout)
    for process in processes:
        process.send_signal(signal.SIGTERM)  # as torchrun does
    rest, more = (process.communicate()[0] for process in processes)
    assert (rest + more).count("stopped by SIGTERM after iteration ") == 1
    (saved,) = set((tmp_path / "models").glob("*.pth.tar")) - {tmp_path / "models/checkpoint-000005.pth.tar"}
    single = train_here(*OPTIONS)
    assert single.returncode == 0, single.stderr
    assert f"continuing from models/{saved.name}" in single.stdout
    assert "finished: models/model.pkl" in single.stdout


def test_after_a_process_is_killed_the_restarted_run_gives_a_bit_identical_result(tmp_path: Path, two_processes: Path) -> None:
    process = torchrun(tmp_path, *OPTIONS, restarts=3)
    assert process.stdout is not None
    assert any(" 13/18 " in line for line in process.stdout)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGKILL)
    rest, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert re.search(r"continuing from models/checkpoint-0000(10|15)", rest)
    for name in ("model.pkl", "model-ema.pkl", "best.pkl"):
        assert same_tensors(read_state_dict(tmp_path / "models" / name), read_state_dict(two_processes / "models" / name))


def test_a_process_whose_peer_is_killed_ends_with_one_line(tmp_path: Path) -> None:
    first, second = start_two(tmp_path, *OPTIONS, "--total-iters", "100000")
    assert any(" 7/100,000 " in line for line in first.stdout)
    second.kill()
    _, errors = first.communicate()
    assert (first.returncode, errors.count("\n")) == (1, 1), errors
    assert "error: process 0 of 2: another process of this run has ended" in errors


def test_evaluation_gives_the_same_loss_and_accuracy_with_one_process_and_two(
    tmp_path: Path, two_processes: Path, train_here: Train
) -> None:
    arguments = [*SHORT[:2], "--eval", "--eval-resume", str(two_processes / "models/model.pkl"), "--device", "cpu"]
    assert train_here(*arguments).returncode == 0
    predictions_of_one = read_predictions(tmp_path / "logs")
    run_two_to_the_end(tmp_path, *arguments, "--val-batch-size", "50", "--log-dir", "two")
    output_of_one, output_of_two = (next(tmp_path.glob(f"{folder}/eval/*/train.log")).read_text() for folder in ("logs", "two"))
    (loss, *errors), (loss_of_two, *errors_of_two) = (
        re.findall(r"TEST Iter 18: loss = ([\d.]+),\tTop-1 err = ([\d.]+),\tTop-5 err = ([\d.]+)", output)[0]
        for output in (output_of_one, output_of_two)
    )
    assert output_of_one.count("TEST Iter") == output_of_two.count("TEST Iter") == 1
    assert errors == errors_of_two
    assert float(loss) == pytest.approx(float(loss_of_two), rel=1e-5)
    texts, probabilities = zip(*predictions_of_one, strict=True)
    texts_of_two, probabilities_of_two = zip(*read_predictions(tmp_path / "two"), strict=True)
    assert len(texts) == 359
    assert texts == texts_of_two
    np.testing.assert_allclose(probabilities, probabilities_of_two, rtol=1e-4, atol=1e-6)


def test_a_batch_size_that_cannot_be_divided_is_refused_by_one_process(tmp_path: Path) -> None:
    ended = run_two(tmp_path, *OPTIONS, "--batch-size", "14")
    assert 0 not in [status for status, *_ in ended]
    message = "error: --batch-size 14 cannot be divided among 2 processes and --grad-accum-steps 2"
    assert sum(errors.count(message) for *_, errors in ended) == 1
    assert not (tmp_path / "models").exists()


def test_each_process_has_its_own_random_stream() -> None:
    draws = {tuple(generator(0, 3, iteration, rank).integers(2**63, size=2)) for iteration in range(4) for rank in range(4)}
    assert len(draws) == 16
    np.testing.assert_array_equal(generator(0, 3, 7).integers(100, size=9), generator(0, 3, 7, 0).integers(100, size=9))
