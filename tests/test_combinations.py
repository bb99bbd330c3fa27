"""With any options a run that is interrupted and continued ends with the same bits; wrong use gets one line."""

import csv
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shufflenetv2.cli.command import main, parse
from shufflenetv2.cli.evaluate import run_evaluation
from shufflenetv2.cli.throughput import run_throughput
from shufflenetv2.cli.train import run_training
from shufflenetv2.data import ImageError
from tests.support import same_tensors

RECIPES = {
    "reference": [],
    "mixing, then not": ["--cutmix-minmax", "0.2", "0.8", "--mixup-mode", "pair", "--mixup-prob", "0.8",
                         "--mixup-off-iter", "9"],
    "augmentation": ["--aa", "rand-m9-mstd0.5", "--reprob", "0.5", "--remode", "pixel", "--recount", "2", "--aug-repeats", "3",
                     "--amp", "--amp-dtype", "bfloat16", "--momentum", "0.8"],
    "splits": ["--aug-splits", "3", "--aa", "augmix-m3", "--jsd", "--split-bn", "--resplit", "--reprob", "0.3"],
    "adamw": ["--opt", "adamw", "--lr", "1e-3", "--opt-eps", "1e-7", "--opt-betas", "0.9", "0.99", "--sched", "cosine",
              "--opt-kwargs", "amsgrad=True", "--warmup-iters", "3", "--model-ema", "--model-ema-warmup", "--clip-grad", "1",
              "--save-images"],
    "agc, a rectangle": ["--clip-grad", "0.01", "--clip-mode", "agc", "--opt", "lookahead_lamb", "--lr", "1e-3", "--sched",
                         "tanh", "--model-ema", "--model-ema-force-cpu", "--model-ema-decay", "0.8", "--input-size", "32", "48",
                         "--resize-size", "40", "64", "--train-crop-size", "48", "32", "--cutmix", "1"],
    "policies, noise": ["--aa", "ta_wide", "--vflip", "0.5", "--grayscale-prob", "0.3", "--gaussian-blur-prob", "0.3",
                        "--train-crop-size", "40", "--train-interpolation", "random", "--color-jitter", "0.2", "--clip-grad",
                        "0.01", "--clip-mode", "value", "--sched", "multistep", "--decay-milestones", "5", "9", "--lr-noise",
                        "0.2", "0.9", "--lr-noise-pct", "0.5", "--lr-noise-std", "0.5", "--cooldown-iters", "2",
                        "--min-lr", "1e-4"],
    "cycles and drops": ["--sched", "poly", "--lr-cycle-limit", "2", "--lr-cycle-mul", "2", "--lr-cycle-decay", "0.5",
                         "--drop", "0.3", "--drop-path", "0.3", "--drop-block", "0.2", "--gp", "catavgmax", "--bn-tf"],
    "accumulation, squash and kept ratios": ["--grad-accum-steps", "3", "--mixup", "0.5", "--mixup-switch-prob", "0",
                                             "--crop-mode", "squash", "--train-crop-mode", "rkrr", "--vflip", "0.3"],
    "pooling and mixing": ["--gp", "avgmax", "--bn-momentum", "0.3", "--bn-eps", "1e-4", "--bce-loss", "--channels-last",
                           "--bce-target-thresh", "0.2", "--mixup", "0.2", "--cutmix", "1.0", "--mixup-mode", "elem"],
    "no augmentation": ["--no-aug", "--crop-pct", "1", "--interpolation", "area", "--sched", "step", "--decay-iters", "4",
                        "--decay-rate", "0.5"],
    "grey, plateau": ["--in-chans", "1", "--mean", "100", "--std", "60", "--aa", "rand-m9-mstd0.5", "--reprob", "0.3",
                      "--mixup", "0.2", "--train-crop-size", "20", "--channels-last", "--sched", "plateau", "--patience-iters",
                      "1", "--val-interval", "1", "--eval-metric", "loss", "--warmup-iters", "2", "--warmup-lr", "1e-5"],
    "torchscript": ["--torchscript", "--drop-path", "0.2"],
    "compiled": ["--torchcompile", "aot_eager", "--deterministic", "--weight-decay", "1e-3"],
    "everything": ["--aa", "rand-m9-mstd0.5-inc1", "--mixup", "0.2", "--reprob", "0.3", "--drop-path", "0.2",
                   "--aug-repeats", "2", "--model-ema", "--recovery-interval", "3", "--checkpoint-hist", "2"],
}  # fmt: skip


def arguments_for(photographs: Path, folder: Path, *arguments: str) -> list[str]:
    """Return the command line of a run of twelve iterations."""
    common = [
        "--train-dir", str(photographs), "--val-dir", str(photographs), "--save", str(folder / "models"),
        "--log-dir", str(folder / "logs"), "--model-size", "0.5x", "--input-size", "32", "--batch-size", "6",
        "--display-interval", "2", "--val-interval", "4", "--save-interval", "5", "--device", "cpu", "--no-figures",
        "--no-memory-check",
    ]  # fmt: skip
    length = [] if "--epochs" in arguments else ["--total-iters", "12"]
    return [*common, *length, *arguments]


def run(photographs: Path, folder: Path, *arguments: str) -> int:
    """Run twelve iterations in this process."""
    return run_training(parse(arguments_for(photographs, folder, *arguments)))


def tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of all result files that the run has written."""
    return {
        f"{path.name}/{name}": tensor
        for path in sorted((folder / "models").glob("*.pkl"))
        for name, tensor in torch.load(path, weights_only=True)["state_dict"].items()
    }


def figures(folder: Path) -> list[list[str]]:
    """Return the records of a run without measured times."""
    with open(folder / "logs/models/metrics.csv", encoding="utf-8") as file:
        return [
            [value for name, value in row.items() if "time" not in name and "second" not in name]
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def reference(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Run once without further options; return the resulting tensors."""
    folder = tmp_path_factory.mktemp("reference")
    assert run(photographs, folder) == 0
    return tensors(folder)


@pytest.mark.parametrize("name", RECIPES)
def test_an_interrupted_run_continues_to_the_same_bits(
    photographs: Path, tmp_path: Path, reference: dict[str, Tensor], name: str
) -> None:
    arguments = RECIPES[name]
    assert run(photographs, tmp_path / "untouched", *arguments, "--workers", "1") == 0
    stopped = tmp_path / "stopped"
    assert run(photographs, stopped, *arguments, "--hook", "tests.support:Stop", "--workers", "2") == 143
    assert not list((stopped / "models").glob("model*.pkl"))
    assert run(photographs, stopped, *arguments, "--workers", "3") == 0
    untouched = tensors(tmp_path / "untouched")
    assert same_tensors(tensors(stopped), untouched)
    assert len({file for file, _ in (key.split("/") for key in untouched)}) == 2 + ("--model-ema" in arguments)
    assert figures(stopped) == figures(tmp_path / "untouched")
    assert same_tensors(untouched, reference) == (name == "reference")  # the options have an effect


def test_the_splits_of_a_named_data_set_can_be_chosen(tmp_path: Path) -> None:
    options = [
        "--dataset", "digits", "--train-split", "val", "--val-split", "train", "--save", str(tmp_path / "models"),
        "--log-dir", str(tmp_path / "logs"), "--model-size", "0.5x", "--input-size", "32", "--batch-size", "300",
        "--ratio", "1", "1", "--total-iters", "1", "--device", "cpu", "--no-figures",
    ]  # fmt: skip
    assert run_training(parse(options)) == 0
    log = (tmp_path / "logs/models/train.log").read_text()
    assert re.search(r"training +359 images in 10 classes.*\n.*\n.*validation +1,438 images", log)


def test_part_of_the_training_images_can_be_held_out(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("owl\ncat\ndog\n")
    options = [
        "--data-dir", str(tmp_path / "data"), "--val-fraction", "0.3", "--class-map", str(tmp_path / "classes.txt"),
        "--save", str(tmp_path / "models"), "--log-dir", str(tmp_path / "logs"), "--model-size", "0.5x",
        "--input-size", "32", "--batch-size", "6", "--total-iters", "2", "--device", "cpu", "--num-classes", "3",
        "--no-figures",
    ]  # fmt: skip
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to(photographs)
    assert run_training(parse(options)) == 0
    log = (tmp_path / "logs/models/train.log").read_text()
    assert re.search(r"training +15 images in 3 classes.*\n.*\n.*validation +6 images", log)
    assert torch.load(tmp_path / "models/model.pkl", weights_only=True)["class_names"] == ["owl", "cat", "dog"]


def test_views_of_an_image_are_averaged_in_evaluation(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(photographs, tmp_path) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    losses = []
    for views in ("1", "2", "5", "10"):
        model = str(tmp_path / "models/model.pkl")
        options = ["--eval", "--eval-resume", model, "--val-dir", str(photographs), "--tta", views, "--device", "cpu"]
        assert run_evaluation(parse(options)) == 0
        losses.append(re.findall(r"loss = ([\d.]+)", next(tmp_path.glob("logs/eval/*/train.log")).read_text())[-1])
    assert len(set(losses)) == 4
    (folder,) = (tmp_path / "logs/eval").iterdir()
    assert {"per_class.csv", "figures"} <= {path.name for path in folder.iterdir()}


def test_throughput_of_network_and_loader_is_printed(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--throughput",
        "--train-dir",
        str(photographs),
        "--model-size",
        "0.5x",
        "--input-size",
        "32",
        "--batch-size",
        "2",
    ]
    assert run_throughput(parse([*options, "--save", str(tmp_path), "--device", "cpu"])) == 0
    assert re.search(r"the network alone, trained on cpu: [\d,]+ images/s; the loader alone: [\d,]+", capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_distillation_continues_to_the_same_bits(photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, tmp_path / "teacher") == 0
    teacher = str(tmp_path / "teacher/models/model.pkl")
    arguments = ["--teacher", teacher, "--distill-alpha", "0.7", "--distill-temperature", "2", "--mixup", "0.2"]
    assert run(photographs, tmp_path / "untouched", *arguments) == 0
    assert run(photographs, tmp_path / "stopped", *arguments, "--hook", "tests.support:Stop") == 143
    assert run(photographs, tmp_path / "stopped", *arguments) == 0
    assert same_tensors(tensors(tmp_path / "stopped"), tensors(tmp_path / "untouched"))


def test_an_interrupted_fine_tuning_continues_to_the_same_bits(photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, tmp_path / "first", "--mean", "104", "116", "124", "--std", "57", "57", "58") == 0
    first = str(tmp_path / "first/models/model.pkl")
    arguments = ["--initial-checkpoint", first, "--freeze", "stem", "stage2", "--backbone-lr-scale", "0.1"]
    assert run(photographs, tmp_path / "untouched", *arguments) == 0
    assert run(photographs, tmp_path / "stopped", *arguments, "--hook", "tests.support:Stop") == 143
    assert run(photographs, tmp_path / "stopped", *arguments) == 0
    assert same_tensors(tensors(tmp_path / "stopped"), tensors(tmp_path / "untouched"))
    before, after = tensors(tmp_path / "first"), tensors(tmp_path / "untouched")
    frozen = [name for name in after if "first_conv" in name or "features.2." in name]
    initial = {name: before["model.pkl/" + name.partition("/")[2]] for name in frozen}  # both results began with these
    assert all(torch.equal(initial[name], after[name]) for name in frozen)
    assert not torch.equal(
        before["model.pkl/features.5.branch_main.0.weight"], after["model.pkl/features.5.branch_main.0.weight"]
    )
    content = torch.load(tmp_path / "untouched/models/model.pkl", weights_only=True)
    assert content["preprocessing"]["mean"] == (104.0, 116.0, 124.0)  # recorded with the initial weights
    log = (tmp_path / "untouched/logs/models/train.log").read_text()
    assert "started from" in log
    assert "frozen: stem, stage2" in log


def test_a_run_can_continue_from_a_checkpoint_in_another_folder(photographs: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert run(photographs, whole) == 0
    checkpoint = str(whole / "models/checkpoint-000005.pth.tar")
    assert run(photographs, tmp_path / "continued", "--resume", checkpoint) == 0
    assert same_tensors(tensors(tmp_path / "continued"), tensors(whole))
    # With another optimizer only the weights and the iteration are taken.
    assert (
        run(photographs, tmp_path / "other", "--resume", checkpoint, "--no-resume-opt", "--opt", "adamw", "--lr", "1e-3") == 0
    )
    assert "continuing from" in (log := (tmp_path / "other/logs/models/train.log").read_text())
    assert "TRAIN Iter 6:" in log
    assert "TRAIN Iter 4:" not in log
    with pytest.raises(ValueError, match="`opt` was sgd and is adamw"):
        run(photographs, tmp_path / "refused", "--resume", checkpoint, "--opt", "adamw", "--lr", "1e-3")


def test_after_an_unreadable_image_is_repaired_the_run_continues_to_the_same_bits(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(photographs, folder)
    whole = (folder / "cat/3.jpg").read_bytes()
    (folder / "cat/3.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"cat/3\.jpg is not a readable image"):
        run(folder, tmp_path, "--workers", "1", "--seed", "3", "--no-validate", "--on-bad-image", "stop")
    (saved,) = (tmp_path / "models").glob("checkpoint*")
    assert torch.load(saved, weights_only=True)["iteration"] == 2  # saved because of the error
    (folder / "cat/3.jpg").write_bytes(whole)
    assert run(folder, tmp_path, "--seed", "3", "--no-validate") == 0
    assert run(photographs, tmp_path / "untouched", "--seed", "3", "--no-validate") == 0
    assert same_tensors(tensors(tmp_path), tensors(tmp_path / "untouched"))


def test_only_the_wanted_checkpoints_are_kept(photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, tmp_path, "--save-interval", "4", "--recovery-interval", "3", "--checkpoint-hist", "2") == 0
    kept = sorted(path.name for path in (tmp_path / "models").glob("[!.]*"))
    assert kept == [
        "best.pkl", "bnps-checkpoint-000012.pth.tar", "checkpoint-000008.pth.tar", "checkpoint-000009.pth.tar",
        "checkpoint-000012.pth.tar", "model.pkl",
    ]  # fmt: skip


def test_a_validation_counts_the_weights_or_their_average_whichever_is_better(photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, tmp_path, "--val-interval", "2", "--eval-metric", "loss", "--model-ema") == 0
    losses: dict[int, list[float]] = {}
    with open(tmp_path / "logs/models/metrics.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["kind"] in ("test", "test_ema"):
                losses.setdefault(int(row["iteration"]), []).append(float(row["loss"]))
    assert {len(values) for values in losses.values()} == {2}
    last = torch.load(tmp_path / "models/checkpoint-000012.pth.tar", weights_only=True)
    assert last["validations"] == {iteration: -min(values) for iteration, values in losses.items()}
    best = last["best_weights"]
    assert losses[best["iteration"]][best["averaged"]] == min(map(min, losses.values()))


def test_a_run_writes_its_records_and_pictures(photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, tmp_path, "--save-images", "--epochs", "2", "--experiment", "named") == 0
    logs = tmp_path / "logs/named"
    names = {path.name for path in logs.iterdir()}
    assert {"train.log", "options.yaml", "metrics.csv", "metrics.jsonl", "per_class.csv"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert sorted(path.name for path in (logs / "images").iterdir()) == ["000002.png", "000004.png", "000006.png"]
    assert "total-iters: 7" in (logs / "options.yaml").read_text()  # two passes over 21 images, six at a time
    assert (tmp_path / "models/named/model.pkl").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--jsd"], ["--jsd", "--aug-splits"]),
        (["--split-bn"], ["--split-bn", "--aug-splits"]),
        (["--mixup", "0.2", "--jsd", "--aug-splits", "3"], ["--mixup", "--jsd"]),
        (["--warmup-iters", "13"], ["--warmup-iters 13"]),
        (["--torchscript", "--sync-bn"], ["--torchscript", "--sync-bn"]),
        (["--sync-bn"], ["--sync-bn", "GPU"]),
        (["--aa", "rand-x9"], ["--aa rand-x9", "rand-m9-mstd0.5"]),
        (["--opt", "adamv", "--lr", "1"], ["--opt adamv", "adam"]),
        (["--opt", "adamw"], ["--opt adamw", "--learning-rate"]),
        (["--teacher", "resnet81"], ["--teacher resnet81", "resnet18"]),
        (["--freeze", "stage5"], ["--freeze stage5", "stage"]),
        (["--hook", "nowhere:Nobody"], ["--hook nowhere:Nobody", "nowhere"]),
        (["--num-classes", "4"], ["--num-classes 4", "3 classes"]),
        (["--initial-checkpoint", "absent.pkl"], ["absent.pkl"]),
        (["--sched", "plateau", "--no-validate"], ["--sched plateau", "--no-validate"]),
        (["--grad-accum-steps", "4"], ["--batch-size 6", "--grad-accum-steps 4"]),
        (["--sched", "step"], ["--decay-iters"]),
        (["--resume", "absent.pth.tar"], ["absent.pth.tar"]),
        (["--class-map", "absent.txt"], ["absent.txt"]),
        (["--batch-size", "1", "--train-crop-size", "32"], ["--batch-size", "single images"]),
        (["--mean", "0.485", "0.456", "0.406"], ["--mean 0.485 0.456 0.406", "0..255"]),
        (["--recount", "3"], ["--recount", "--reprob"]),
        (["--amp-dtype", "float16"], ["--amp-dtype", "--amp"]),
        (["--warmup-epochs", "5"], ["--warmup-epochs", "--warmup-iters"]),
        (["photographs"], ["'photographs'", "does not exist"]),
    ],
)  # fmt: skip
def test_wrong_use_ends_with_one_line(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], parts: list[str]
) -> None:
    assert main(arguments_for(photographs, tmp_path, *arguments)) in (1, 2)
    message = capsys.readouterr().err
    assert message.startswith("train.py: error: ")
    assert message.count("\n") == 1
    assert all(part in message for part in parts), message
    assert not list(tmp_path.rglob("*.pth.tar"))
