"""Weight files that are damaged or lie: every command refuses them with one line, and before they take memory."""

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shufflenetv2 import UserError, describe, export, files, load_model, read_weights
from shufflenetv2.engine.checkpoint import read_newest
from shufflenetv2.export import load
from shufflenetv2.export.metadata import ExportMetadata
from shufflenetv2.weights import Preprocessing
from tests.models import write_model
from tests.support import Run, photograph


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model with three classes."""
    return write_model(tmp_path_factory.mktemp("model") / "model.pkl", n_class=3)


@pytest.fixture(scope="module")
def content(model: Path) -> dict[str, Any]:
    record: dict[str, Any] = files.read(model)
    return record


def refusal(path: Path) -> str:
    """Return the message with which reading a file fails."""
    with pytest.raises(UserError) as error:
        read_weights(path).network()
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


class Several(dict[str, Any]):
    """Keys that replace those of a nested dict."""


WRONG_METADATA: list[tuple[str, dict[str, Any]]] = [
    ("metadata.class_names is 'abc', and must be a valid list", {"class_names": "abc"}),
    ("it has names for 9 classes, and its classifier has 3", {"class_names": list("abcdefghi")}),
    ("metadata.class_names.1 is 5", {"class_names": ["a", 5, "c"]}),
    ("metadata.preprocessing.std.1 is 0.0, and must be greater than 0", {"preprocessing": Several(std=(1.0, 0.0, 1.0))}),
    ("metadata.preprocessing.mean.0 is nan", {"preprocessing": Several(mean=(float("nan"), 0.0, 0.0))}),
    ("mean and std are not 3 numbers each", {"preprocessing": Several(mean=(0.0,), std=(1.0,))}),
    ("metadata.preprocessing.input_size is 1000000000", {"preprocessing": Several(input_size=10**9)}),
    ("metadata.preprocessing.resize_size is (40, 4)", {"preprocessing": Several(resize_size=(40, 4))}),
    ("metadata.preprocessing.input_size is True", {"preprocessing": Several(input_size=True)}),
    ("metadata.preprocessing.interpolation is 'spline'", {"preprocessing": Several(interpolation="spline")}),
    ("metadata.preprocessing.normalise is True", {"preprocessing": Several(normalise=True)}),
    ("metadata.preprocessing is None", {"preprocessing": None}),
    ("metadata.iteration is -1", {"iteration": -1}),
    ("metadata.iteration is 12.5", {"iteration": 12.5}),
    ("metadata.iteration is 160693804425899027...2993782792835301376, and must be less than", {"iteration": 2**200}),
    ("its metadata are those of a 2.0x model, its tensors those of a 0.5x model", {"model_size": "2.0x"}),
    ("metadata.model_size is ['0.5x']", {"model_size": ["0.5x"]}),
    ("architecture.bn_eps is -1.0", {"architecture": Several(bn_eps=-1.0)}),
    ("architecture.in_chans is 10000000, and must be 1 or 3", {"architecture": Several(in_chans=10**7)}),
    ("architecture.forward is 'print'", {"architecture": Several(forward="print")}),
    ("architecture is 'ShuffleNetV2'", {"architecture": "ShuffleNetV2"}),
    ("metadata.origin is 'elsewhere'", {"origin": "elsewhere"}),
    ("metadata.accuracy is {'top1': 0.5}", {"accuracy": {"top1": 0.5}}),
    ("metadata.accuracy.top1 is 'all'", {"accuracy": {"top1": "all", "top5": 1.0, "loss": 0.0}}),
    ("metadata.history.0.options is 5", {"history": [{"iteration": 3, "options": 5}]}),
    ("metadata.history is {'iteration': 3}", {"history": {"iteration": 3}}),
    ("metadata.options.seed", {"options": {"seed": {"a": [[[1]]]}}}),
    ("metadata.host is 5", {"host": 5}),
    ("metadata.stop_reason is tensor(", {"stop_reason": torch.zeros(300, 300)}),
]


@pytest.mark.parametrize(("message", "changes"), WRONG_METADATA, ids=[message[:40] for message, _ in WRONG_METADATA])
def test_metadata_that_cannot_be_true_are_refused_with_their_place_and_value(
    content: dict[str, Any], tmp_path: Path, message: str, changes: dict[str, Any]
) -> None:
    merged = {name: {**content[name], **value} if isinstance(value, Several) else value for name, value in changes.items()}
    files.write(tmp_path / "file", content | merged)
    assert message in refusal(tmp_path / "file")


def test_metadata_whose_references_multiply_when_they_are_followed_are_refused_at_once(
    content: dict[str, Any], tmp_path: Path
) -> None:
    nested: Any = ["x"]
    for _ in range(60):
        nested = [nested, nested]
    for name in ("class_names", "options", "history", "accuracy", "stop_reason", "preprocessing"):
        files.write(tmp_path / "file", content | {name: {"seed": nested} if name == "options" else nested})
        assert len(refusal(tmp_path / "file")) < 600


def test_safetensors_metadata_are_checked_like_those_of_other_files(model: Path, tmp_path: Path) -> None:
    state_dict = read_weights(model).state_dict
    deep = "[" * 100_000 + "]" * 100_000
    for metadata, message in (
        ({"class_names": '"abc"'}, "metadata.class_names is 'abc'"),
        ({"class_names": deep}, "is damaged"),
        ({"iteration": "9" * 5000}, "is damaged"),
        ({"iteration": "NaN"}, "metadata.iteration is nan"),
        ({"preprocessing": '{"mean": [0, 0, 0], "std": [1, 1, Infinity]}'}, "metadata.preprocessing.std.2 is inf"),
        ({"accuracy": "[1]"}, "metadata.accuracy is [1]"),
    ):
        save_file(state_dict, tmp_path / "file", {"model_size": '"0.5x"', **metadata})
        assert message in refusal(tmp_path / "file")


def spoil(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state_dict: dict[str, torch.Tensor]) -> None:
        state_dict[name].view(-1)[-1] = value

    return change


def replace(name: str, tensor: Any) -> Callable[[dict[str, Any]], None]:
    def change(state_dict: dict[str, Any]) -> None:
        state_dict[name] = tensor

    return change


WRONG_TENSORS: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
    ("features.3.branch_main.0.weight holds values that are NaN or", spoil("features.3.branch_main.0.weight", float("nan"))),
    ("conv_last.1.bias holds values that are NaN or infinite", spoil("conv_last.1.bias", float("-inf"))),
    ("is a variance and holds the negative value -0.5", spoil("first_conv.1.running_var", -0.5)),
    ("first_conv.1.bias in its state dict is a list", replace("first_conv.1.bias", [0.0] * 24)),
    ("first_conv.0.weight in its state dict is a int", replace("first_conv.0.weight", 3)),
    ("1 tensors are missing, unknown or of another shape", replace("first_conv.0.weight", torch.tensor(1.0))),
    ("features.0.branch_proj.2.weight first", replace("features.0.branch_proj.2.weight", torch.tensor(1.0))),
    ("is a sparse_coo tensor on cpu", replace("first_conv.1.bias", torch.zeros(24).to_sparse())),
    ("is a strided tensor on meta", replace("first_conv.1.bias", torch.zeros(24, device="meta"))),
    ("holds complex64 values", replace("first_conv.1.bias", torch.zeros(24, dtype=torch.complex64))),
    ("repeats its values", replace("classifier.0.weight", torch.zeros(1, 1).expand(10**9, 1024))),
    ("holds no weights of a ShuffleNetV2 classifier", replace("classifier.0.weight", torch.zeros(0, 1024))),
]


@pytest.mark.parametrize(("message", "change"), WRONG_TENSORS, ids=[message[:40] for message, _ in WRONG_TENSORS])
def test_tensors_with_which_no_network_can_compute_are_refused_by_name(
    content: dict[str, Any], tmp_path: Path, message: str, change: Callable[[dict[str, Any]], None]
) -> None:
    state_dict = {name: tensor.clone() for name, tensor in content["state_dict"].items()}
    change(state_dict)
    torch.save(state_dict, tmp_path / "file")
    assert message in refusal(tmp_path / "file")


def test_weights_that_are_not_finite_are_described_and_converted_on_demand_but_predict_nothing(
    command: Run, content: dict[str, Any], tmp_path: Path
) -> None:
    state_dict = {name: tensor.clone() for name, tensor in content["state_dict"].items()}
    spoil("conv_last.1.running_var", float("nan"))(state_dict)
    files.write(tmp_path / "nan.pkl", content | {"state_dict": state_dict})
    photograph(40, 40, seed=1).save(tmp_path / "image.png")
    for arguments in (
        ["info", "nan.pkl"],
        ["convert", "nan.pkl", "out", "--to", "safetensors"],
        ["predict", "nan.pkl", "image.png"],
    ):
        status, output, errors = command(*arguments)
        assert (status, output, errors.count("\n")) == (1, "", 1)
        assert "nan.pkl cannot be used: conv_last.1.running_var holds values that are NaN or infinite" in errors
    assert command("info", "nan.pkl", "--no-check-weights")[0] == 0
    assert command("convert", "nan.pkl", "out", "--to", "safetensors", "--no-check-weights")[0] == 0
    assert torch.isnan(read_weights("out", check_weights=False).state_dict["conv_last.1.running_var"]).any()
    # Finite weights can still give infinite logits.
    spoil("conv_last.1.running_var", 1.0)(state_dict)
    state_dict["classifier.0.weight"].fill_(3e38)
    files.write(tmp_path / "huge.pkl", content | {"state_dict": state_dict})
    status, output, errors = command("predict", "huge.pkl", "image.png")
    assert (status, output) == (1, "")
    assert "the model gives NaN or infinite logits for image.png" in errors


def test_a_compressed_archive_is_refused_before_it_is_unpacked(model: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(model) as source, zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb:
        for member in source.namelist():
            content = source.read(member)
            bomb.writestr(member, bytes(2**27) if member.endswith("data/0") else content)
    assert (tmp_path / "bomb").stat().st_size < 2**25
    assert "is a compressed archive of 13" in refusal(tmp_path / "bomb")
    with pytest.raises(UserError, match="is a compressed archive"):
        load_model(tmp_path / "bomb")


def test_a_pickle_that_makes_bytes_of_any_number_is_not_loaded(tmp_path: Path) -> None:
    # bytearray(2 ** 40), which torch's unpickler would execute
    pickle = b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85R."
    with zipfile.ZipFile(tmp_path / "file", "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3\n")
    assert "holds more than tensors and plain values" in refusal(tmp_path / "file")


def test_archives_with_damage_anywhere_are_refused(model: Path, tmp_path: Path) -> None:
    complete = model.read_bytes()[: -files.TRAILER_BYTES]
    directory = complete.index(b"PK\1\2")
    for position, byte in (
        (directory, 0x51),  # signature of the directory: BadZipFile
        (directory + 46, 0xFF),  # a name that is not UTF-8
        (directory + 9, 0x88),  # flags
        (directory + 10, 99),  # compression
        (directory + 24, 0x7F),  # size
        (directory + 28, 0xFF),  # length of the name
        (len(complete) - 6, 0xFF),  # offset of the directory
        (len(complete) - 12, 0xFF),  # number of entries
    ):
        damaged = bytearray(complete)
        damaged[position] = byte
        (tmp_path / "file").write_bytes(damaged)
        for read in (read_weights, describe, load):
            with contextlib.suppress(UserError):  # or the damage is without effect
                read(tmp_path / "file")
        (tmp_path / "file").write_bytes(damaged[:-1000] + b"PK\5\6" + bytes(18))
        assert refusal(tmp_path / "file")


@cache
def exported(model: Path) -> bytes:
    return export(read_weights(model), "torchscript")


def test_exported_files_are_refused_if_their_metadata_cannot_be_true(model: Path, tmp_path: Path) -> None:
    strings = ExportMetadata("0.5x", ["a", "b", "c"], Preprocessing(32, 40)).to_strings()
    values = {name: json.loads(text) for name, text in strings.items()}
    preprocessing, images = values["preprocessing"], values["input"]
    changes: list[tuple[str, dict[str, Any]]] = [
        ("metadata.class_names is 'abc'", {"class_names": "abc"}),
        ("gives logits of shape (1, 3) for 1 images and 2 classes", {"class_names": ["a", "b"]}),
        ("metadata.model_size is 5", {"model_size": 5}),
        ("metadata.preprocessing.center_crop is 1000000000", {"preprocessing": preprocessing | {"center_crop": 10**9}}),
        ("metadata.preprocessing.interpolation is None", {"preprocessing": preprocessing | {"interpolation": None}}),
        ("does not say how its input is resized", {"preprocessing": preprocessing | {"border_color": [0.0]}}),
        (
            "gives the shape of its input and the size of images differently",
            {"preprocessing": preprocessing | {"center_crop": 40}},
        ),
        ("metadata.preprocessing is []", {"preprocessing": []}),
        ("metadata.input.dtype is 'float'", {"input": images | {"dtype": "float"}}),
        ("metadata.input.shape.0 is -1", {"input": images | {"shape": [-1, 3, 32, 32]}}),
        ("metadata.input is 5", {"input": 5}),
        ("cannot be executed", {"input": images | {"layout": "nhwc", "shape": [1, 32, 32, 3]}}),
    ]
    photograph(40, 40, seed=1).save(tmp_path / "image.png")
    for message, changed in changes:
        with zipfile.ZipFile(io.BytesIO(exported(model))) as source, zipfile.ZipFile(tmp_path / "file.pt", "w") as target:
            for member in source.infolist():
                key = member.filename.rpartition("/")[2]
                content = json.dumps(changed[key]) if key in changed else source.read(member)
                if key in strings and key not in changed:
                    content = strings[key]
                target.writestr(member.filename, content)
        with pytest.raises(UserError) as error:
            load(tmp_path / "file.pt")(tmp_path / "image.png")
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_a_checkpoint_with_a_right_checksum_and_wrong_content_counts_as_damaged(
    content: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files.write(tmp_path / "checkpoint-000001.pth.tar", content | {"optimizer": {}, "iteration": 1})
    for wrong in ([1], {"optimizer": {}, "iteration": -1}, content | {"optimizer": {}, "validations": {"a": 1}}):
        files.write(tmp_path / "checkpoint-000002.pth.tar", wrong)  # type: ignore[arg-type]
        path, _ = read_newest(tmp_path) or (Path(), {})
        assert path.name == "checkpoint-000001.pth.tar"
        assert "renamed to *.damaged" in caplog.text
        assert (tmp_path / "checkpoint-000002.pth.tar.damaged").exists()
