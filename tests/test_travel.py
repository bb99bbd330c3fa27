"""Weights come from any of four projects, leave for any of them, and nothing in a file is executed."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import shufflenetv2
from shufflenetv2 import ShuffleNetV2, convert, describe, files, load_model, read_weights, recalibrate
from shufflenetv2.cli import command
from shufflenetv2.cli import convert as convert_command
from shufflenetv2.cli import info as info_command
from shufflenetv2.cli import recalibrate as recalibrate_command
from shufflenetv2.data import DataIterator, FolderDataset, TrainTransform
from shufflenetv2.errors import UserError
from shufflenetv2.weights import Preprocessing, Weights
from tests.models import CLASSES, IMAGENET, MMClassifier, random_weights, randomized, torchvision_network
from tests.reference import SIZES, ReferenceNetwork
from tests.support import ONE_THREAD, ROOT, SHORT, Run, Train, same_tensors

NAMES = [f"class {number}" for number in range(CLASSES)]
DETAILS = {
    "accuracy": {"top1": 0.5, "top5": 0.75, "loss": 2.5},
    "options": {"batch_size": 64, "scale": (0.25, 1.0), "hflip": 0.0, "color_jitter": (0.1, 0.1, 0.1), "seed": 3},
    "version": "0.1.0",
    "host": "here",
    "time": "2026-01-02T03:04:05+0000",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process, which has loaded torch already; its status, output and errors."""
    monkeypatch.chdir(tmp_path)
    mains = {
        "convert": convert_command.main,
        "info": info_command.main,
        "recalibrate": recalibrate_command.main,
        "train": command.main,
    }

    def call(name: str, *arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        return mains[name]([str(argument) for argument in arguments], prog=f"shufflenetv2 {name}"), *capsys.readouterr()

    return call


def process(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m shufflenetv2 ARGS`"""
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "shufflenetv2", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def write_ours(path: Path, weights: Weights, preprocessing: Preprocessing | None = None) -> Path:
    """As our training writes it."""
    weights.class_names, weights.preprocessing, weights.iteration, weights.details = NAMES, preprocessing, 12, dict(DETAILS)
    files.write(path, weights.record())
    return path


def write_original(path: Path, model_size: str) -> Path:
    torch.save({"state_dict": randomized(ReferenceNetwork(CLASSES, model_size)).state_dict()}, path)
    return path


def picture() -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255


def same_answers(a: Path, b: Path) -> bool:
    with torch.no_grad():
        return torch.equal(load_model(a)(picture()), load_model(b)(picture()))


def content(path: Path) -> dict[str, torch.Tensor]:
    """The tensors under their project's own names."""
    found = torch.load(path, weights_only=True)
    return {name.removeprefix("module."): tensor for name, tensor in found.get("state_dict", found).items()}


# ---- convert


@pytest.mark.parametrize("model_size", SIZES)
def test_there_and_back_every_tensor_is_the_same_bit_for_bit(tmp_path: Path, model_size: str) -> None:
    torch.save(randomized(torchvision_network(model_size)).state_dict(), tmp_path / "torchvision")
    torch.save({"state_dict": randomized(MMClassifier(model_size)).state_dict()}, tmp_path / "mmpretrain")
    write_original(tmp_path / "original", model_size)
    write_ours(tmp_path / "ours", random_weights(model_size, layout="torchvision", head_bias=True), IMAGENET)
    routes = {
        "torchvision": ["mmpretrain", "safetensors", "torchvision"],
        "mmpretrain": ["shufflenetv2", "mmpretrain"],
        "original": ["safetensors", "original"],
        "ours": ["torchvision", "shufflenetv2"],
    }
    for origin, formats in routes.items():
        came = tmp_path / origin
        here = came
        for number, to in enumerate(formats):
            there = tmp_path / f"{origin} {number} {to}"
            assert convert(here, there, to).model_size == model_size
            here = there
        if origin == "ours":
            assert same_tensors(read_weights(here).state_dict, read_weights(came).state_dict)
        else:
            assert same_tensors(content(here), content(came))
        assert same_answers(here, came)


@pytest.mark.parametrize("model_size", SIZES)
def test_converted_files_load_into_the_other_projects_untouched_networks(tmp_path: Path, model_size: str) -> None:
    write_ours(tmp_path / "ours", random_weights(model_size, layout="torchvision", head_bias=True))
    convert(tmp_path / "ours", tmp_path / "tv.pth", "torchvision")
    torchvision_network(model_size).load_state_dict(torch.load(tmp_path / "tv.pth", weights_only=True), strict=True)
    assert (tmp_path / "tv.pth").read_bytes()[-22:-18] == b"PK\5\6"  # a zip file and nothing behind it
    convert(tmp_path / "ours", tmp_path / "mm.pth", "mmpretrain")
    content = torch.load(tmp_path / "mm.pth", weights_only=True)
    MMClassifier(model_size).load_state_dict(content["state_dict"], strict=True)
    assert content["meta"] == {"dataset_meta": {"classes": NAMES}}

    # As the original trainer goes on on a GPU: its network in nn.DataParallel, strictly.
    write_ours(tmp_path / "ours", random_weights(model_size))
    convert(tmp_path / "ours", tmp_path / "original.pth", "original")
    network = nn.DataParallel(ReferenceNetwork(CLASSES, model_size, 64), device_ids=[])
    network.load_state_dict(torch.load(tmp_path / "original.pth", weights_only=True)["state_dict"], strict=True)
    with torch.no_grad():
        expected = network.eval()(picture())
        answers = load_model(tmp_path / "original.pth")(picture())
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("to", ["original", "torchvision", "mmpretrain", "shufflenetv2", "safetensors"])
@pytest.mark.parametrize("preprocessing", [None, Preprocessing(64, 72, (1.5, 2.0, 3.0), (4.0, 5.0, 6.5), "bicubic")])
def test_what_a_file_tells_of_its_model_is_told_after_the_way_back(
    tmp_path: Path, to: str, preprocessing: Preprocessing | None
) -> None:
    came = write_ours(tmp_path / "ours", random_weights("0.5x"), preprocessing)
    convert(came, tmp_path / "there", to)
    convert(tmp_path / "there", tmp_path / "back", "shufflenetv2")
    weights = read_weights(tmp_path / "back")
    assert (weights.class_names, weights.iteration, weights.details) == (NAMES, 12, DETAILS)
    assert weights.preprocessing == (
        preprocessing if preprocessing or to not in ("torchvision", "mmpretrain") else IMAGENET_256
    )
    assert weights.origin == "shufflenetv2"


IMAGENET_256 = Preprocessing(224, 256, IMAGENET.mean, IMAGENET.std)


@pytest.mark.parametrize(
    ("to", "preprocessing", "said"),
    [
        (
            "torchvision",
            IMAGENET,
            "RGB, 0..1, then torchvision's Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
        ),
        ("mmpretrain", IMAGENET, "(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)"),
        ("original", IMAGENET, "BGR, 0..255, minus 103.53, 116.28, 123.675, divided by 57.375, 57.12, 58.395, which"),
        ("original", None, "short side of 256 pixels, central 224 x 224 pixels, BGR, 0..255\n"),
        ("shufflenetv2", IMAGENET, "BGR, 0..255; load_model normalizes them"),
    ],
)
def test_it_is_said_what_the_other_side_must_feed(
    run: Run, tmp_path: Path, to: str, preprocessing: Preprocessing | None, said: str
) -> None:
    write_ours(tmp_path / "in", random_weights("0.5x"), preprocessing)
    status, output, errors = run("convert", "in", "out", "--to", to)
    assert (status, errors) == (0, "")
    assert "out: ShuffleNetV2 0.5x, 7 classes, from shufflenetv2" in output
    assert said in output


def test_what_the_other_network_cannot_hold_is_refused_in_one_line(run: Run, tmp_path: Path) -> None:
    write_ours(tmp_path / "original 1.0x", random_weights("1.0x"))
    torch.save(randomized(torchvision_network("1.0x")).state_dict(), tmp_path / "torchvision 1.0x")
    write_ours(tmp_path / "biased 0.5x", random_weights("0.5x", head_bias=True))
    write_ours(tmp_path / "pooled 0.5x", random_weights("0.5x", pooling="catavgmax"))
    write_ours(tmp_path / "tf 0.5x", random_weights("0.5x", bn_eps=1e-3))
    (tmp_path / "out").write_text("what was there")
    for name, to, reason in (
        ("original 1.0x", "torchvision", "first unit has 58 + 58 output channels, not 24 + 92"),
        ("original 1.0x", "mmpretrain", "first unit has 58 + 58 output channels, not 24 + 92"),
        ("torchvision 1.0x", "original", "first unit has 24 + 92 output channels, not 58 + 58"),
        ("biased 0.5x", "original", "head has no biases"),
        ("pooled 0.5x", "original", "pooling is 'avg', not 'catavgmax'"),
        ("pooled 0.5x", "mmpretrain", "pooling is 'avg', not 'catavgmax'"),
        ("tf 0.5x", "original", "batch-norm epsilon is 1e-05, not 0.001"),
    ):
        status, _, errors = run("convert", name, "out", "--to", to)
        assert (status, errors.count("\n")) == (2, 1)
        assert errors.startswith(f"shufflenetv2 convert: error: {name} cannot be converted to ")
        assert reason in errors
        assert (tmp_path / "out").read_text() == "what was there"
    # Ours hold them all.
    for name in ("biased 0.5x", "pooled 0.5x", "tf 0.5x"):
        assert run("convert", name, "out", "--to", "safetensors")[0] == 0
        assert read_weights(tmp_path / "out").network().architecture == read_weights(tmp_path / name).network().architecture
        assert same_answers(tmp_path / "out", tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []  # nothing left half written


def test_wrong_use_and_a_folder_that_is_not_there_are_one_line(run: Run, tmp_path: Path) -> None:
    write_original(tmp_path / "in", "0.5x")
    for arguments, status, part in (
        (["in", "out"], 2, "--to"),
        (["in", "out", "--to", "onnx"], 2, "--to"),
        (["none", "out", "--to", "original"], 2, "none cannot be read: No such file"),
        (["in", "none/out", "--to", "original"], 1, "none/out cannot be written: No such file"),
    ):
        found, _, errors = run("convert", *arguments)
        assert (found, errors.count("\n")) == (status, 1), errors
        assert part in errors
    with pytest.raises(ValueError, match="`to` must be one of original, "):
        convert(tmp_path / "in", tmp_path / "out", "onnx")


def test_safetensors_are_read_by_others_and_those_of_others_here(tmp_path: Path) -> None:
    write_ours(tmp_path / "ours", random_weights("0.5x"), IMAGENET)
    convert(tmp_path / "ours", tmp_path / "ours.safetensors", "safetensors")
    with safe_open(tmp_path / "ours.safetensors", framework="numpy") as file:
        told = file.metadata()
        assert np.array_equal(
            file.get_tensor("conv_last.1.bias"), read_weights(tmp_path / "ours").state_dict["conv_last.1.bias"]
        )
    assert told["format"] == "pt"
    assert json.loads(told["model_size"]) == "0.5x"
    assert json.loads(told["class_names"]) == NAMES
    assert json.loads(told["preprocessing"])["mean"] == list(IMAGENET.mean)
    assert json.loads(told["architecture"])["layout"] == "original"

    # Theirs, and weights whose memory is shared or in another order.
    theirs = randomized(torchvision_network("1.0x")).state_dict()
    save_file(theirs, tmp_path / "theirs", {"format": "pt"})
    assert read_weights(tmp_path / "theirs").origin == "torchvision"
    strided = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor for name, tensor in theirs.items()
    }
    strided["conv5.1.running_var"] = strided["conv5.1.running_mean"]
    torch.save(strided, tmp_path / "strided")
    convert(tmp_path / "strided", tmp_path / "out", "safetensors")
    assert same_tensors(read_weights(tmp_path / "out").state_dict, read_weights(tmp_path / "strided").state_dict)

    data = (tmp_path / "out").read_bytes()
    for damaged in (data[:-1], data[: len(data) // 2], data[:100]):
        (tmp_path / "out").write_bytes(damaged)
        with pytest.raises(UserError, match="out is "):
            read_weights(tmp_path / "out")


# ---- safe loading


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


def test_code_in_a_file_is_refused_by_every_command_and_not_run(run: Run, tmp_path: Path) -> None:
    content = {"state_dict": Malicious(), "model_size": "0.5x"}
    torch.save(content, "zipped.pth")
    torch.save(content, "legacy.pth", _use_new_zipfile_serialization=False)
    Path("plain.pkl").write_bytes(pickle.dumps(content, protocol=2))
    (tmp_path / "images/cat").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "images/cat/1.png")
    for name in ("zipped.pth", "legacy.pth", "plain.pkl"):
        for arguments in (
            ["info", name],
            ["convert", name, "out", "--to", "safetensors"],
            ["recalibrate", name, "out", "--train-dir", "images"],
            ["train", "--train-dir", "images", "--initial-checkpoint", name],
            ["train", "--eval", "--eval-resume", name, "--val-dir", "images"],
        ):
            status, _, errors = run(*arguments)
            assert (status, errors.count("\n")) == (2, 1), errors
            assert f"{name} holds more than tensors and plain values, and is not loaded" in errors
            assert "posix.system" in errors
        for load in (load_model, lambda path: hub(checkpoint=path)):
            with pytest.raises(UserError, match=f"{name} holds more than"):
                load(name)
    assert not Path("executed").exists()
    assert not Path("out").exists()
    pickle.loads(Path("plain.pkl").read_bytes())  # the file is what it is meant to be
    assert Path("executed").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_file_of_another_kind_is_said_to_be_that(run: Run, tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), "resnet.pth")
    torch.save(torchvision_network("0.5x"), "module.pth")
    torch.jit.save(torch.jit.script(nn.ReLU()), "script.pt")
    torch.export.save(torch.export.export(nn.ReLU(), (torch.zeros(2),)), "exported.pt2")
    for name in ("image.jpg", "image.png"):
        Image.new("RGB", (40, 40)).save(name)
    np.savez("arrays.npz", a=np.ones(3))
    files = {
        "notes.pth": "Grüße\n".encode() * 200,
        "page.pth": b"<!DOCTYPE html><html><body>404</body></html>",
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        "model.onnx": b"\x08\x08\x12\x07pytorch\x1a\x062.15.0:\x00",
        "cut.pth": Path("resnet.pth").read_bytes()[:5000],
        "empty.pth": b"",
    }
    for name, data in files.items():
        Path(name).write_bytes(data)
    for name, said in {
        "resnet.pth": "no weights of a ShuffleNetV2.*: its first of 122 entries is 'conv1.weight' of shape \\(64, 3, 7, 7\\)",
        "module.pth": "would call torchvision.models.shufflenetv2.ShuffleNetV2; save weights alone",
        "script.pt": "it is a TorchScript program",
        "exported.pt2": "it is a program of torch.export",
        "image.jpg": "it is a JPEG image",
        "image.png": "it is a PNG image",
        "arrays.npz": "it is NumPy arrays",
        "notes.pth": "it is text",
        "page.pth": "it is a web page",
        "pointer.pth": "git lfs pull",
        "model.onnx": "it is an ONNX model",
        "cut.pth": "it is a zip archive whose end is missing",
        "empty.pth": "is empty",
        ".": "Is a directory",
        "none.pth": "No such file",
    }.items():
        with pytest.raises(UserError, match=f"^{name} .*{said}") as refusal:
            read_weights(name)
        assert "\n" not in str(refusal.value)
    assert run("info", "image.jpg")[0] == 2


# ---- info


def test_info_tells_what_a_file_is(run: Run, tmp_path: Path) -> None:
    write_ours(tmp_path / "ours", random_weights("1.0x", pooling="max"), Preprocessing(64, 72))
    status, output, errors = run("info", "ours")
    assert (status, errors) == (0, "")
    for part in (
        "ours: ShuffleNetV2 1.0x\n",
        "origin         shufflenetv2\n",
        "original; head without biases, pooling max",
        "7: class 0, class 1, class 2, class 3, class 4, ...\n",
        "short side 72 (bilinear), central 64 x 64 pixels; BGR, 0..255, mean 0, 0, 0, std 1, 1, 1\n",
        "top-1 50.00%, top-5 75.00%, loss 2.5000\n",
        "--batch-size 64 --scale 0.25 1.0 --hflip 0.0 --color-jitter 0.1 0.1 0.1 --seed 3\n",
        "version 0.1.0 on here at 2026-01-02T03:04:05+0000\n",
        "ShuffleV2Block: 2-4",
    ):
        assert part in output
    told = describe(tmp_path / "ours")
    assert (told["iteration"], told["class_names"], told["accuracy"]) == (12, NAMES, DETAILS["accuracy"])

    done = process(tmp_path, "info", "ours", "--json")
    assert done.returncode == 0, done.stderr
    plain = json.loads(done.stdout)
    assert plain == json.loads(json.dumps({name: value for name, value in told.items() if name != "table"} | {"path": "ours"}))


@pytest.mark.parametrize(
    ("model_size", "parameters", "mult_adds"),
    [("0.5x", 1_365_792, 40.5e6), ("1.0x", 2_278_760, 145.8e6), ("1.5x", 3_506_720, 299.0e6), ("2.0x", 7_402_600, 590.8e6)],
)
def test_info_counts_as_the_paper_does(tmp_path: Path, model_size: str, parameters: int, mult_adds: float) -> None:
    torch.save(ShuffleNetV2(model_size=model_size).state_dict(), tmp_path / "original")
    told = describe(tmp_path / "original")
    assert (told["origin"], told["parameters"], told["n_class"], told["head_bias"]) == ("original", parameters, 1000, False)
    assert told["mult_adds"] == pytest.approx(mult_adds, abs=0.05e6)
    assert told["layout"] == ("both" if model_size == "0.5x" else "original")
    assert told["class_names"] is told["preprocessing"] is told["accuracy"] is told["iteration"] is None

    torch.save(randomized(torchvision_network(model_size)).state_dict(), tmp_path / "theirs")
    theirs = describe(tmp_path / "theirs")
    assert (theirs["origin"], theirs["head_bias"], theirs["preprocessing"]["mean"]) == ("torchvision", True, IMAGENET.mean)
    assert theirs["layout"] == ("both" if model_size == "0.5x" else "torchvision")


# ---- recalibrate


def test_our_checkpoint_recalibrated_is_what_its_run_ended_with(train: Train, tmp_path: Path) -> None:
    """From what the files tell: the data set, the augmentation, the batches and where the training stood."""
    done = train(*SHORT)
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "models/checkpoint-000012.pth.tar"
    convert(checkpoint, tmp_path / "in.pth", "mmpretrain")  # on the way through which nothing is lost
    done = process(tmp_path, "recalibrate", "in.pth", "out.pkl", "--device", "cpu", "--workers", "1")
    assert done.returncode == 0, done.stderr
    ended, found = (torch.load(tmp_path / name, weights_only=True) for name in ("models/model.pkl", "out.pkl"))
    assert same_tensors(found["state_dict"], ended["state_dict"])
    for name in ended.keys() - {"state_dict", "architecture", "accuracy", "time"}:
        assert found[name] == ended[name], name
    assert found["accuracy"] == pytest.approx(ended["accuracy"])
    assert f"after: top-1 {ended['accuracy']['top1']:.2%}, " in done.stdout
    assert "before: top-1 " in done.stdout
    assert "recalibrating batch norm over 89 batches of 16 images on cpu" in done.stdout

    # Fewer images, another order, and other batches make a difference.
    variants: list[dict[str, Any]] = [{}, {"seed": 5}, {"batch_size": 32}]
    results = [
        recalibrate(checkpoint, tmp_path / "out.pkl", device="cpu", **({"images": 64} | variant)).state_dict
        for variant in variants
    ]
    assert not any(same_tensors(result, ended["state_dict"]) for result in results)
    assert not any(same_tensors(result, results[0]) for result in results[1:])


def test_weights_of_another_origin_are_recalibrated_with_the_published_recipe(
    run: Run, tmp_path: Path, photographs: Path
) -> None:
    network = randomized(torchvision_network("0.5x", classes=3))
    torch.save(network.state_dict(), "theirs")
    arguments: list[str] = ["--images", "13", "-j", "2", "--batch-size", "6", "--seed", "4", "--device", "cpu"]
    folders = ["--train-dir", photographs, "--val-dir", photographs]
    status, output, errors = run("recalibrate", "theirs", "out", *folders, *arguments)
    assert (status, errors) == (0, "")
    assert [line.split(":")[0].split(" batches")[0] for line in output.splitlines()] == [
        "before", "recalibrating batch norm over 2", "after", "written",
    ]  # fmt: skip
    before, after = read_weights("theirs"), read_weights("out")
    assert after.preprocessing == before.preprocessing
    assert after.origin == "torchvision"
    changed = {name for name in after.state_dict if not torch.equal(after.state_dict[name], before.state_dict[name])}
    assert changed == {name for name in after.state_dict if "running" in name or "num_batches" in name}

    # The first statistics, by hand, of the published transform at the weights' own size.
    iterator = DataIterator(FolderDataset(photographs), TrainTransform(224), 6, seed=4)
    fresh = before.network()
    with torch.no_grad():
        made = [fresh.first_conv[0](fresh.to_input(iterator.next()[0])) for _ in range(2)]
    iterator.close()
    for name, statistic in (("mean", torch.mean), ("var", torch.var)):
        expected = torch.stack([statistic(x, dim=(0, 2, 3)) for x in made]).mean(0)
        torch.testing.assert_close(after.state_dict[f"first_conv.1.running_{name}"], expected, rtol=1e-4, atol=1e-4)

    # The figure is that of an evaluation.
    assert after.details["accuracy"] is not None
    status, evaluated, _ = run("train", "--eval", "--eval-resume", "out", "--val-dir", photographs, "--device", "cpu")
    assert status == 0
    assert f"Top-1 err = {1 - after.details['accuracy']['top1']:.6f}" in evaluated


def test_a_recalibration_that_cannot_be_is_refused_in_one_line(run: Run, tmp_path: Path, photographs: Path) -> None:
    write_original(tmp_path / "in", "0.5x")
    for arguments, part in (
        (["in", "out"], "--train-dir is missing"),
        (["in", "none/out", "--train-dir", photographs], "none/out cannot be written: none is no folder"),
        (["in", "out", "--train-dir", "none"], "none is not a folder"),
        (["in", "out", "--train-dir", photographs, "--val-dir", photographs], "in knows 7 classes, and "),
        (["in", "out", "--train-dir", photographs, "--dataset", "digits"], "--train-dir is for --dataset folder"),
        (["in", "out", "--train-dir", photographs, "--images", "0"], "--images 0: must be"),
        (["in", "out", "--train-dir", photographs, "--batch-size", "1"], "--batch-size 1"),
        (["in", "out", "--train-dir", photographs, "--device", "abacus"], "--device abacus"),
    ):
        status, _, errors = run("recalibrate", *arguments)
        assert (status, errors.count("\n")) == (2, 1), errors
        assert part in errors
    assert not Path("out").exists()
    with pytest.raises(TypeError, match="learning_rate"):
        recalibrate("in", "out", learning_rate=1.0)


# ---- from Python


def hub(**arguments: Any) -> Any:
    return torch.hub.load(str(ROOT), "shufflenet_v2", source="local", **arguments)  # type: ignore[no-untyped-call]


def test_torch_hub_gives_the_model(tmp_path: Path) -> None:
    torch.save(randomized(torchvision_network("1.0x")).state_dict(), tmp_path / "theirs")
    with torch.no_grad():
        expected = load_model(tmp_path / "theirs")(picture())
        for model_size in (None, "1.0x"):
            model = hub(model_size=model_size, pretrained=False, checkpoint=str(tmp_path / "theirs"))
            assert torch.equal(model(picture()), expected)
    assert hub(n_class=5, model_size="0.5x")(picture().repeat(2, 1, 1, 1)).shape == (2, 5)
    assert (hub().model_size, hub().n_class) == ("1.0x", 1000)
    for arguments, reason in (
        ({"model_size": "2.0x"}, "holds a 1.0x model, and model_size says 2.0x"),
        ({"pretrained": True}, "give one of them"),
        ({"n_class": 5}, "n_class is for new weights"),
    ):
        with pytest.raises(UserError, match=reason):
            hub(checkpoint=str(tmp_path / "theirs"), **arguments)


def test_every_name_of_the_package_is_there_and_waits_for_its_use() -> None:
    for name in shufflenetv2.__all__:
        assert getattr(shufflenetv2, name) is not None
    program = "import sys, shufflenetv2; print({'torch', 'cv2', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout == "set()\n", done.stderr
