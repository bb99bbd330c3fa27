"""Weight files: `read_weights`, `convert` and `info` lose nothing, and execute no code from a file."""

import json
import os
import pickle
from collections.abc import Iterator, Mapping
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

from shufflenetv2 import ShuffleNetV2, UserError, convert, describe, files, load_model, read_weights
from shufflenetv2.weights import Preprocessing, Weights
from tests.models import (
    CLASSES,
    IMAGENET,
    MMBackbone,
    MMClassifier,
    example_image,
    random_weights,
    randomized,
    torchvision_network,
    write_original,
)
from tests.reference import SIZES, ReferenceNetwork
from tests.support import Run, hub_load, same_tensors

NAMES = [f"class {number}" for number in range(CLASSES)]
DETAILS = {
    "accuracy": {"top1": 0.5, "top5": 0.75, "loss": 2.5},
    "options": {"batch_size": 64, "scale": (0.25, 1.0), "hflip": 0.0, "color_jitter": (0.1, 0.1, 0.1), "seed": 3},
    "version": "0.1.0",
    "host": "here",
    "time": "2026-01-02T03:04:05+0000",
}


def write_shufflenetv2(path: Path, weights: Weights, preprocessing: Preprocessing | None = None) -> Path:
    """Write a model file as training does."""
    weights.class_names, weights.preprocessing, weights.iteration, weights.details = NAMES, preprocessing, 12, dict(DETAILS)
    files.write(path, weights.record())
    return path


def same_logits(a: Path, b: Path) -> bool:
    with torch.no_grad():
        return torch.equal(load_model(a)(example_image()), load_model(b)(example_image()))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in a file under the names that they have there, without `module.`."""
    content = torch.load(path, weights_only=True)
    return {name.removeprefix("module."): tensor for name, tensor in content.get("state_dict", content).items()}


# ---- reading


def wrapped_files() -> Iterator[tuple[str, Any, str]]:
    """Yield a name, the content and the origin of files as trainers write them."""
    torchvision_weights, original = torchvision_network("0.5x").state_dict(), ReferenceNetwork(CLASSES, "0.5x").state_dict()
    for key in (None, "state_dict", "model", "model_ema"):
        for prefix in ("", "module.", "_orig_mod.module."):
            for origin, state_dict in (("torchvision", torchvision_weights), ("original", original)):
                renamed: Mapping[str, Any] = {prefix + name: tensor for name, tensor in state_dict.items()}
                if prefix == "module.":
                    renamed = {"n_averaged": torch.tensor(3), **renamed}  # as torch's AveragedModel adds
                yield f"{key} {prefix}", {key: renamed, "epoch": 3} if key else renamed, origin


def test_a_state_dict_is_recognized_under_every_key_and_prefix_that_trainers_use(tmp_path: Path) -> None:
    for name, content, origin in wrapped_files():
        torch.save(content, tmp_path / name)
        weights = read_weights(tmp_path / name)
        assert (weights.path, weights.model_size, weights.n_class) == (tmp_path / name, "0.5x", CLASSES)
        assert weights.origin == origin
        assert weights.architecture["head_bias"] is (origin == "torchvision")
        assert (weights.preprocessing is not None) is (origin == "torchvision")
        weights.network()


def test_class_names_are_read_from_files_of_mmpretrain_and_mmclassification(tmp_path: Path) -> None:
    state_dict = MMClassifier("0.5x").state_dict()
    for meta in ({"dataset_meta": {"classes": tuple(NAMES)}}, {"CLASSES": tuple(NAMES)}):
        torch.save({"meta": meta, "state_dict": state_dict}, tmp_path / "mmpretrain")
        assert read_weights(tmp_path / "mmpretrain").class_names == NAMES
    torch.save({"meta": {"CLASSES": NAMES[1:]}, "state_dict": state_dict}, tmp_path / "mmpretrain")
    assert read_weights(tmp_path / "mmpretrain").class_names is None


class MakesFile:
    """An object whose pickle makes a file when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


def test_code_in_a_file_is_refused_by_every_command_and_not_executed(command: Run, tmp_path: Path) -> None:
    content = {"state_dict": MakesFile(), "model_size": "0.5x"}
    torch.save(content, "zipped.pth")
    torch.save(content, "legacy.pth", _use_new_zipfile_serialization=False)
    Path("plain.pkl").write_bytes(pickle.dumps(content, protocol=2))
    for class_name in ("cat", "dog"):
        (tmp_path / "images" / class_name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "images" / class_name / "1.png")
    for name in ("zipped.pth", "legacy.pth", "plain.pkl"):
        for arguments in (
            ["info", name],
            ["convert", name, "out", "--to", "safetensors"],
            ["recalibrate", name, "out", "--train-dir", "images"],
            ["train", "--train-dir", "images", "--initial-checkpoint", name],
            ["train", "--eval", "--eval-resume", name, "--val-dir", "images"],
        ):
            status, _, errors = command(*arguments)
            assert (status, errors.count("\n")) == (2, 1), errors
            assert f"{name} holds more than tensors and plain values, and is not loaded" in errors
            assert "posix.system" in errors
        for load in (load_model, lambda path: hub_load(checkpoint=path)):
            with pytest.raises(UserError, match=f"{name} holds more than"):
                load(name)
    assert not Path("executed").exists()
    assert not Path("out").exists()
    pickle.loads(Path("plain.pkl").read_bytes())
    assert Path("executed").exists()  # the file does contain code


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_the_error_about_an_unusable_file_says_what_kind_of_file_it_is(command: Run, tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), "resnet.pth")
    torch.save(MMBackbone("0.5x").state_dict(), "backbone.pth")
    torch.save(torchvision_network("0.5x"), "module.pth")
    torch.save([torch.zeros(1)], "list.pth")
    torch.save({}, "no-entries.pth")
    torch.jit.save(torch.jit.script(nn.ReLU()), "script.pt")
    torch.export.save(torch.export.export(nn.ReLU(), (torch.zeros(2),)), "exported.pt2")
    for name in ("image.jpg", "image.png"):
        Image.new("RGB", (40, 40)).save(name)
    np.savez("arrays.npz", a=np.ones(3))
    contents = {
        "notes.pth": "Grüße\n".encode() * 200,
        "page.pth": b"<!DOCTYPE html><html><body>404</body></html>",
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        "model.onnx": b"\x08\x08\x12\x07pytorch\x1a\x062.15.0:\x00",
        "cut.pth": Path("resnet.pth").read_bytes()[:5000],
        "empty.pth": b"",
    }
    for name, content in contents.items():
        Path(name).write_bytes(content)
    for name, message in {
        "resnet.pth": "no weights of a ShuffleNetV2.*: its first of 122 entries is 'conv1.weight' of shape \\(64, 3, 7, 7\\)",
        "backbone.pth": "no weights of a ShuffleNetV2 classifier",
        "module.pth": "would call torchvision.models.shufflenetv2.ShuffleNetV2; save weights alone",
        "list.pth": "holds a list, not weights",
        "no-entries.pth": "it is empty",
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
        ".": "it is a folder; did you mean",
        "none.pth": "No such file",
    }.items():
        with pytest.raises(UserError, match=f"^{name} .*{message}") as error:
            read_weights(name)
        assert "\n" not in str(error.value)
    assert command("info", "image.jpg")[0] == 2


# ---- convert


@pytest.mark.parametrize("model_size", SIZES)
def test_weights_converted_to_other_formats_and_back_are_bit_identical(tmp_path: Path, model_size: str) -> None:
    torch.save(randomized(torchvision_network(model_size)).state_dict(), tmp_path / "torchvision")
    torch.save({"state_dict": randomized(MMClassifier(model_size)).state_dict()}, tmp_path / "mmpretrain")
    write_original(tmp_path / "original", model_size)
    write_shufflenetv2(tmp_path / "shufflenetv2", random_weights(model_size, layout="torchvision", head_bias=True), IMAGENET)
    routes = {
        "torchvision": ["mmpretrain", "safetensors", "torchvision"],
        "mmpretrain": ["shufflenetv2", "mmpretrain"],
        "original": ["safetensors", "original"],
        "shufflenetv2": ["torchvision", "shufflenetv2"],
    }
    for origin, route in routes.items():
        source = last = tmp_path / origin
        for number, to in enumerate(route):
            destination = tmp_path / f"{origin} {number} {to}"
            assert convert(last, destination, to).model_size == model_size
            last = destination
        assert same_tensors(tensors(last), tensors(source))
        assert same_logits(last, source)


@pytest.mark.parametrize("model_size", SIZES)
def test_converted_files_load_into_the_networks_of_the_other_projects(tmp_path: Path, model_size: str) -> None:
    write_shufflenetv2(tmp_path / "in", random_weights(model_size, layout="torchvision", head_bias=True))
    convert(tmp_path / "in", tmp_path / "tv.pth", "torchvision")
    torchvision_network(model_size).load_state_dict(torch.load(tmp_path / "tv.pth", weights_only=True), strict=True)
    assert (tmp_path / "tv.pth").read_bytes()[-22:-18] == b"PK\5\6"  # a zip file without further bytes at its end
    convert(tmp_path / "in", tmp_path / "mm.pth", "mmpretrain")
    content = torch.load(tmp_path / "mm.pth", weights_only=True)
    MMClassifier(model_size).load_state_dict(content["state_dict"], strict=True)
    assert content["meta"] == {"dataset_meta": {"classes": NAMES}}

    # The original's trainer loads strictly into nn.DataParallel.
    write_shufflenetv2(tmp_path / "in", random_weights(model_size))
    convert(tmp_path / "in", tmp_path / "original.pth", "original")
    network = nn.DataParallel(ReferenceNetwork(CLASSES, model_size, 64), device_ids=[])
    network.load_state_dict(torch.load(tmp_path / "original.pth", weights_only=True)["state_dict"], strict=True)
    with torch.no_grad():
        expected = network.eval()(example_image())
        logits = load_model(tmp_path / "original.pth")(example_image())
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("to", ["original", "torchvision", "mmpretrain", "shufflenetv2", "safetensors"])
@pytest.mark.parametrize("preprocessing", [None, Preprocessing(64, 72, (1.5, 2.0, 3.0), (4.0, 5.0, 6.5), "bicubic")])
def test_metadata_survives_conversion_to_any_format_and_back(
    tmp_path: Path, to: str, preprocessing: Preprocessing | None
) -> None:
    write_shufflenetv2(tmp_path / "in", random_weights("0.5x"), preprocessing)
    convert(tmp_path / "in", tmp_path / "converted", to)
    convert(tmp_path / "converted", tmp_path / "back", "shufflenetv2")
    weights = read_weights(tmp_path / "back")
    assert (weights.class_names, weights.iteration, weights.details) == (NAMES, 12, DETAILS)
    # Weights of torchvision and mmpretrain without metadata are normalized as these projects do it.
    default = Preprocessing(224, 256, IMAGENET.mean, IMAGENET.std) if to in ("torchvision", "mmpretrain") else None
    assert weights.preprocessing == (preprocessing or default)
    assert weights.origin == "shufflenetv2"


@pytest.mark.parametrize(
    ("to", "preprocessing", "message"),
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
def test_convert_prints_the_input_that_the_network_expects(
    command: Run, tmp_path: Path, to: str, preprocessing: Preprocessing | None, message: str
) -> None:
    write_shufflenetv2(tmp_path / "in", random_weights("0.5x"), preprocessing)
    status, output, errors = command("convert", "in", "out", "--to", to)
    assert (status, errors) == (0, "")
    assert "out: ShuffleNetV2 0.5x, 7 classes, from shufflenetv2" in output
    assert message in output


def test_convert_refuses_weights_that_the_target_format_cannot_represent_and_says_why(command: Run, tmp_path: Path) -> None:
    write_shufflenetv2(tmp_path / "original 1.0x", random_weights("1.0x"))
    torch.save(randomized(torchvision_network("1.0x")).state_dict(), tmp_path / "torchvision 1.0x")
    write_shufflenetv2(tmp_path / "biased 0.5x", random_weights("0.5x", head_bias=True))
    write_shufflenetv2(tmp_path / "pooled 0.5x", random_weights("0.5x", pooling="catavgmax"))
    write_shufflenetv2(tmp_path / "tf 0.5x", random_weights("0.5x", bn_eps=1e-3))
    (tmp_path / "out").write_text("previous content")
    for name, to, reason in (
        ("original 1.0x", "torchvision", "first unit has 58 + 58 output channels, not 24 + 92"),
        ("original 1.0x", "mmpretrain", "first unit has 58 + 58 output channels, not 24 + 92"),
        ("torchvision 1.0x", "original", "first unit has 24 + 92 output channels, not 58 + 58"),
        ("biased 0.5x", "original", "head has no biases"),
        ("pooled 0.5x", "original", "pooling is 'avg', not 'catavgmax'"),
        ("pooled 0.5x", "mmpretrain", "pooling is 'avg', not 'catavgmax'"),
        ("tf 0.5x", "torchvision", "batch-norm epsilon is 1e-05, not 0.001"),
    ):
        status, _, errors = command("convert", name, "out", "--to", to)
        assert (status, errors.count("\n")) == (2, 1)
        assert errors.startswith(f"shufflenetv2 convert: error: {name} cannot be converted to {to}, whose ")
        assert reason in errors
        assert (tmp_path / "out").read_text() == "previous content"
    for name in ("biased 0.5x", "pooled 0.5x", "tf 0.5x"):
        assert command("convert", name, "out", "--to", "safetensors")[0] == 0
        assert read_weights(tmp_path / "out").network().architecture == read_weights(tmp_path / name).network().architecture
        assert same_logits(tmp_path / "out", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []  # no temporary file is left


def test_wrong_usage_of_convert_gives_a_one_line_error(command: Run, tmp_path: Path) -> None:
    write_original(tmp_path / "in", "0.5x")
    for arguments, expected, message in (
        (["in", "out"], 2, "--to"),
        (["in", "out", "--to", "onnx"], 2, "--to onnx: must be one of original, torchvision, mmpretrain, shufflenetv2, safe"),
        (["none", "out", "--to", "original"], 2, "none cannot be read: No such file"),
        (["in", "none/out", "--to", "original"], 1, "none/out cannot be written: No such file"),
    ):
        status, _, errors = command("convert", *arguments)
        assert (status, errors.count("\n")) == (expected, 1), errors
        assert message in errors
    with pytest.raises(ValueError, match="`to` must be one of original, "):
        convert(tmp_path / "in", tmp_path / "out", "onnx")


def test_safetensors_files_can_be_exchanged_with_other_programs(tmp_path: Path) -> None:
    write_shufflenetv2(tmp_path / "in", random_weights("0.5x"), IMAGENET)
    convert(tmp_path / "in", tmp_path / "out.safetensors", "safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="numpy") as file:
        metadata = file.metadata()
        bias = read_weights(tmp_path / "in").state_dict["conv_last.1.bias"]
        assert np.array_equal(file.get_tensor("conv_last.1.bias"), bias)
    assert metadata["format"] == "pt"
    assert json.loads(metadata["model_size"]) == "0.5x"
    assert json.loads(metadata["class_names"]) == NAMES
    assert json.loads(metadata["preprocessing"])["mean"] == list(IMAGENET.mean)
    assert json.loads(metadata["architecture"])["layout"] == "original"

    state_dict = randomized(torchvision_network("1.0x")).state_dict()
    save_file(state_dict, tmp_path / "torchvision.safetensors", {"format": "pt"})
    assert read_weights(tmp_path / "torchvision.safetensors").origin == "torchvision"

    # The format has neither channels_last tensors nor shared memory.
    for name, tensor in state_dict.items():
        state_dict[name] = tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
    state_dict["conv5.1.running_mean"] = state_dict["conv5.1.running_var"]
    torch.save(state_dict, tmp_path / "strided")
    convert(tmp_path / "strided", tmp_path / "out", "safetensors")
    assert same_tensors(read_weights(tmp_path / "out").state_dict, read_weights(tmp_path / "strided").state_dict)

    content = (tmp_path / "out").read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], content[:100]):
        (tmp_path / "out").write_bytes(damaged)
        with pytest.raises(UserError, match="out is "):
            read_weights(tmp_path / "out")


# ---- info


def test_info_prints_architecture_preprocessing_accuracy_and_options_of_a_file(command: Run, tmp_path: Path) -> None:
    write_shufflenetv2(tmp_path / "in", random_weights("1.0x", pooling="max"), Preprocessing(64, 72))
    status, output, errors = command("info", "in")
    assert (status, errors) == (0, "")
    for line in (
        "in: ShuffleNetV2 1.0x\n",
        "origin         shufflenetv2\n",
        "original; head without biases, pooling max",
        "7: class 0, class 1, class 2, class 3, class 4, ...\n",
        "resized to a short side of 72 pixels, central 64 x 64 pixels; bilinear, BGR, 0..255, mean 0, 0, 0, std 1, 1, 1\n",
        "top-1 50.00%, top-5 75.00%, loss 2.5000\n",
        "--batch-size 64 --scale 0.25 1.0 --hflip 0.0 --color-jitter 0.1 0.1 0.1 --seed 3\n",
        "version 0.1.0 on here at 2026-01-02T03:04:05+0000\n",
        "ShuffleV2Block: 2-4",
    ):
        assert line in output
    description = describe("in")
    assert (description["iteration"], description["class_names"]) == (12, NAMES)
    assert description["accuracy"] == DETAILS["accuracy"]
    status, output, _ = command("info", "in", "--json")
    assert status == 0
    assert json.loads(output) == json.loads(json.dumps({name: value for name, value in description.items() if name != "table"}))


@pytest.mark.parametrize(
    ("model_size", "parameters", "mult_adds"),
    [("0.5x", 1_365_792, 40.5e6), ("1.0x", 2_278_760, 145.8e6), ("1.5x", 3_506_720, 299.0e6), ("2.0x", 7_402_600, 590.8e6)],
)
def test_info_counts_parameters_and_mult_adds_as_the_paper_does(
    tmp_path: Path, model_size: str, parameters: int, mult_adds: float
) -> None:
    torch.save(ShuffleNetV2(model_size=model_size).state_dict(), tmp_path / "original")
    info = describe(tmp_path / "original")
    assert (info["origin"], info["parameters"], info["n_class"], info["head_bias"]) == ("original", parameters, 1000, False)
    assert info["mult_adds"] == pytest.approx(mult_adds, abs=0.05e6)
    assert info["layout"] == ("both" if model_size == "0.5x" else "original")
    assert info["class_names"] is info["preprocessing"] is info["accuracy"] is info["iteration"] is None

    torch.save(randomized(torchvision_network(model_size)).state_dict(), tmp_path / "torchvision")
    info = describe(tmp_path / "torchvision")
    assert (info["origin"], info["head_bias"], info["preprocessing"]["mean"]) == ("torchvision", True, IMAGENET.mean)
    assert info["layout"] == ("both" if model_size == "0.5x" else "torchvision")
