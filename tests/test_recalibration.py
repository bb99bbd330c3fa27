"""The command `recalibrate` and the function of that name: new batch-norm statistics for a weight file."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shufflenetv2 import convert, read_weights, recalibrate
from shufflenetv2.data import DataIterator, FolderDataset, TrainTransform
from tests.models import randomized, torchvision_network, write_original
from tests.support import SHORT, Run, Train, same_tensors


def test_recalibrating_a_checkpoint_gives_the_model_file_of_its_run(train: Train, tmp_path: Path) -> None:
    """The data set, augmentation, batch size and iteration are those that the file records."""
    finished = train(*SHORT)
    assert finished.returncode == 0, finished.stderr
    checkpoint = tmp_path / "models/checkpoint-000012.pth.tar"
    convert(checkpoint, tmp_path / "in.pth", "mmpretrain")  # loses nothing
    lines: list[str] = []
    recalibrate(tmp_path / "in.pth", tmp_path / "out.pkl", log=lines.append, device="cpu", workers=1)
    model, result = (torch.load(tmp_path / name, weights_only=True) for name in ("models/model.pkl", "out.pkl"))
    assert same_tensors(result["state_dict"], model["state_dict"])
    for name in model.keys() - {"state_dict", "architecture", "accuracy", "averaged", "time"}:
        assert result[name] == model[name], name
    assert result["accuracy"] == pytest.approx(model["accuracy"])
    before, progress, after = lines
    assert before.startswith("before: top-1 ")
    assert progress == "recalibrating batch norm over 10 batches of 16 images on cpu"
    assert after.startswith(f"after: top-1 {model['accuracy']['top1']:.2%}, ")

    # The number of images, the seed and the batch size have an effect.
    variants: list[dict[str, Any]] = [{}, {"seed": 5}, {"batch_size": 32}]
    results = [
        recalibrate(checkpoint, tmp_path / "out.pkl", device="cpu", **({"images": 64} | variant)).state_dict
        for variant in variants
    ]
    assert not any(same_tensors(state_dict, model["state_dict"]) for state_dict in results)
    assert not any(same_tensors(state_dict, results[0]) for state_dict in results[1:])


def test_weights_of_another_project_are_recalibrated_with_the_published_recipe(
    command: Run, tmp_path: Path, photographs: Path
) -> None:
    torch.save(randomized(torchvision_network("0.5x", classes=3)).state_dict(), "torchvision")
    arguments = ["--images", "13", "-j", "2", "--batch-size", "6", "--seed", "4", "--device", "cpu"]
    folders = ["--train-dir", photographs, "--val-dir", photographs]
    status, output, errors = command("recalibrate", "torchvision", "out", *folders, *arguments)
    assert (status, errors) == (0, "")
    assert [line.split(":")[0].split(" batches")[0] for line in output.splitlines()] == [
        "before", "recalibrating batch norm over 2", "after", "written",
    ]  # fmt: skip
    before, after = read_weights("torchvision"), read_weights("out")
    assert after.preprocessing == before.preprocessing
    assert after.origin == "torchvision"
    changed = {name for name in after.state_dict if not torch.equal(after.state_dict[name], before.state_dict[name])}
    assert changed == {name for name in after.state_dict if "running" in name or "num_batches" in name}

    # Compute the statistics of the first batch norm from images that the published transform made.
    iterator = DataIterator(FolderDataset(photographs), TrainTransform(224), 6, seed=4)
    network = before.network()
    with torch.no_grad():
        outputs = [network.first_conv[0](network.to_input(iterator.next()[0])) for _ in range(2)]
    iterator.close()
    for name, statistic in (("mean", torch.mean), ("var", torch.var)):
        expected = torch.stack([statistic(output, dim=(0, 2, 3)) for output in outputs]).mean(0)
        torch.testing.assert_close(after.state_dict[f"first_conv.1.running_{name}"], expected, rtol=1e-4, atol=1e-4)

    # An evaluation gives the same accuracy.
    status, evaluation, _ = command("train", "--eval", "--eval-resume", "out", "--val-dir", photographs, "--device", "cpu")
    assert status == 0
    assert f"top-1 {after.details['accuracy']['top1']:.2%}" in evaluation


def test_wrong_usage_of_recalibrate_gives_a_one_line_error(command: Run, tmp_path: Path, photographs: Path) -> None:
    write_original(tmp_path / "in", "0.5x")
    for arguments, message in (
        (["in", "out"], "--train-dir is missing"),
        (["in", "none/out", "--train-dir", photographs], "none/out cannot be written: none is not a folder"),
        (["in", "out", "--train-dir", "none"], "none is not a folder"),
        (["in", "out", "--train-dir", photographs, "--val-dir", photographs], "in has 7 classes, but "),
        (["in", "out", "--train-dir", photographs, "--dataset", "digits"], "--train-dir is for --dataset folder"),
        (["in", "out", "--train-dir", photographs, "--images", "0"], "--images 0: must be"),
        (["in", "out", "--train-dir", photographs, "--batch-size", "1"], "--batch-size 1"),
        (["in", "out", "--train-dir", photographs, "--device", "abacus"], "--device abacus"),
    ):
        status, _, errors = command("recalibrate", *arguments)
        assert (status, errors.count("\n")) == (2, 1), errors
        assert message in errors
    assert not Path("out").exists()
    with pytest.raises(TypeError, match="learning_rate"):
        recalibrate("in", "out", learning_rate=1.0)
