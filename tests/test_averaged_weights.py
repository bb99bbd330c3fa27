"""--use-ema takes the averaged weights of a checkpoint, in every command that reads weights."""

import re
from pathlib import Path

import pytest
import torch

from shufflenetv2 import files, load, load_model, read_weights
from shufflenetv2.cli.command import main
from shufflenetv2.errors import UserError
from tests.models import random_images, random_weights, write_model
from tests.support import Run, same_tensors


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Write a checkpoint with averaged weights, and a file averaged.pkl of these alone, for three classes."""
    content = files.read(write_model(tmp_path / "model.pkl", n_class=3)) | {"class_names": ["cat", "dog", "owl"]}
    averaged = {name: tensor * 0.9 if tensor.is_floating_point() else tensor for name, tensor in content["state_dict"].items()}
    files.write(tmp_path / "averaged.pkl", content | {"state_dict": averaged})
    files.write(tmp_path / "checkpoint-000012.pth.tar", content | {"state_dict_ema": averaged, "optimizer": {}})
    return tmp_path / "checkpoint-000012.pth.tar"


def test_the_averaged_weights_of_a_checkpoint_are_read(checkpoint: Path) -> None:
    raw, averaged = read_weights(checkpoint), read_weights(checkpoint, use_ema=True)
    assert same_tensors(averaged.state_dict, read_weights(checkpoint.with_name("averaged.pkl")).state_dict)
    assert not same_tensors(averaged.state_dict, raw.state_dict)
    assert (averaged.class_names, averaged.preprocessing) == (raw.class_names, raw.preprocessing)
    assert averaged.details["averaged"]
    assert same_tensors(load_model(checkpoint, use_ema=True).state_dict(), averaged.network().state_dict())


def test_averaged_weights_of_other_trainers_are_read(tmp_path: Path) -> None:
    """Under timm's name, and under that of torchvision's reference."""
    weights = random_weights("0.5x").state_dict
    averaged = {f"module.{name}": tensor for name, tensor in random_weights("0.5x").state_dict.items()}
    averaged["module.classifier.0.weight"] = torch.ones_like(averaged["module.classifier.0.weight"])
    for names in (("state_dict", "state_dict_ema"), ("model", "model_ema")):
        torch.save(dict(zip(names, (weights, averaged), strict=True)), tmp_path / "checkpoint.pth")
        assert (read_weights(tmp_path / "checkpoint.pth", use_ema=True).state_dict["classifier.0.weight"] == 1).all()
        assert same_tensors(read_weights(tmp_path / "checkpoint.pth").state_dict, weights)


def test_every_command_takes_them(checkpoint: Path, photographs: Path, command: Run, tmp_path: Path) -> None:
    def outcome(*arguments: str | Path) -> str:
        status, output, errors = command(*arguments)
        assert status == 0, errors
        return output

    def outcomes(name: str, *arguments: str | Path) -> tuple[str, str, str]:
        """Return what a command prints for the averaged weights of the checkpoint, for these alone, and for the raw ones."""
        alone = checkpoint.with_name("averaged.pkl")
        return (
            outcome(name, checkpoint, *arguments, "--use-ema"),
            outcome(name, alone, *arguments),
            outcome(name, checkpoint, *arguments),
        )

    averaged, alone, raw = outcomes("predict", photographs / "cat", "--json")
    assert averaged == alone != raw

    assert "averaged (EMA)" in outcome("info", checkpoint, "--use-ema")
    assert "averaged (EMA)" not in outcome("info", checkpoint)

    expected = read_weights(checkpoint, use_ema=True)
    outcome("convert", checkpoint, "converted.pkl", "--to", "shufflenetv2", "--use-ema")
    assert same_tensors(read_weights("converted.pkl").state_dict, expected.state_dict)
    assert read_weights("converted.pkl").details["averaged"]

    outcome("export", checkpoint, "exported.pt", "--use-ema")
    logits = load("exported.pt").logits(random_images(2))
    torch.testing.assert_close(logits, expected.network()(random_images(2)).detach(), rtol=1e-3, atol=1e-3)

    status, _, errors = command("predict", "exported.pt", photographs, "--use-ema")
    assert (status, errors.count("\n")) == (2, 1)
    assert "--use-ema is for checkpoints; leave it out" in errors

    outcome("recalibrate", checkpoint, "recalibrated.pkl", "--train-dir", photographs, "-b", "7", "--use-ema")
    recalibrated = read_weights("recalibrated.pkl")
    assert torch.equal(recalibrated.state_dict["classifier.0.weight"], expected.state_dict["classifier.0.weight"])
    assert recalibrated.details["recalibrated"]


def test_an_evaluation_takes_them(
    checkpoint: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkpoint.parent)

    def loss(path: Path, *arguments: str) -> str:
        assert main(["--eval", "--eval-resume", str(path), "--val-dir", str(photographs), "--device", "cpu", *arguments]) == 0
        line = re.search(r"loss ([\d.]+)", capsys.readouterr().out)
        assert line
        return line[1]

    assert loss(checkpoint, "--use-ema") == loss(checkpoint.with_name("averaged.pkl")) != loss(checkpoint)
    assert main(["--train-dir", str(photographs), "--use-ema"]) == 2
    assert "--use-ema has no effect without --eval" in capsys.readouterr().err


def test_a_file_without_averaged_weights_is_refused_with_the_remedy(checkpoint: Path, command: Run) -> None:
    model = checkpoint.with_name("model.pkl")
    status, _, errors = command("info", model, "--use-ema")
    assert (status, errors.count("\n")) == (2, 1)
    assert f"{model} holds no averaged weights; checkpoints of a run with --model-ema do. Without --use-ema" in errors
    averaged = model.with_name("model-ema.pkl")
    files.write(averaged, files.read(model) | {"averaged": True})
    with pytest.raises(UserError, match=r"model\.pkl holds no averaged weights; .*model-ema\.pkl does"):
        read_weights(model, use_ema=True)
    assert same_tensors(read_weights(averaged, use_ema=True).state_dict, read_weights(model).state_dict)
