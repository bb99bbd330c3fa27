"""`shufflenetv2 predict` prints the probabilities that an evaluation computes, for weight files and exported files."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from shufflenetv2.cli import predict
from shufflenetv2.data import EvaluationTransform, FolderDataset, ImageFiles, evaluation_batches
from shufflenetv2.export import Classifier, export
from shufflenetv2.export import predict as predict_images
from shufflenetv2.weights import Preprocessing, read_weights
from tests.models import SIZE, write_model
from tests.support import ONE_THREAD, ROOT, Run, photograph

COMMAND = [sys.executable, "-m", "shufflenetv2", "predict"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.pkl", mean=(90.0, 110.0, 130.0), std=(40.0, 60.0, 80.0))


@pytest.fixture
def run(command: Run) -> Run:
    return lambda *arguments: command("predict", *arguments, "--device", "cpu")


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def probabilities(output: str, n_class: int = 7) -> torch.Tensor:
    """Return the probabilities (N, n_class) in the output of `--json --top N_CLASS`."""
    table = torch.full((len(output.splitlines()), n_class), math.nan)
    for row, line in zip(table, lines(output), strict=True):
        for prediction in line["predictions"]:
            row[prediction["label"]] = prediction["probability"]
    return table


def evaluated_probabilities(model: Path, folder: Path) -> torch.Tensor:
    """Return the probabilities (N, 7) of the images in class folders, computed as an evaluation does."""
    network = read_weights(model).network()
    batches = evaluation_batches(FolderDataset(folder), EvaluationTransform(SIZE, SIZE + 8), 4, workers=1)
    with torch.inference_mode():
        return torch.cat([network(images) for images, _ in batches]).softmax(dim=1)


def test_predictions_equal_an_evaluation_for_every_batch_size(run: Run, model: Path, photographs: Path) -> None:
    expected = evaluated_probabilities(model, photographs)
    assert expected.std(dim=0).max() > 0.01
    outputs = [
        run(model, photographs, "--json", "--top", "7", "-b", size, "-j", workers)
        for size, workers in ((1, 1), (8, 3), (64, 2))
    ]
    for status, output, errors in outputs:
        assert (status, errors) == (0, "")
        assert [line["path"] for line in lines(output)] == sorted(str(path) for path in photographs.rglob("*.jpg"))
        torch.testing.assert_close(probabilities(output), expected, rtol=0, atol=1e-4)


def test_the_most_likely_classes_come_first_and_are_named(run: Run, model: Path, photographs: Path) -> None:
    (image, *_) = sorted(photographs.rglob("*.jpg"))
    best = evaluated_probabilities(model, photographs)[0].sort(descending=True)
    (line,) = lines(run(model, image, "--json")[1])
    assert [prediction["label"] for prediction in line["predictions"]] == best.indices[:5].tolist()
    assert [prediction["class"] for prediction in line["predictions"]] == [f"Käfer {i}" for i in best.indices[:5].tolist()]
    (p0, p1), (label0, label1) = best.values[:2].tolist(), best.indices[:2].tolist()
    assert run(model, image, "--top", "2")[1] == f"{image}: Käfer {label0} {p0:.2%}, Käfer {label1} {p1:.2%}\n"
    assert len(lines(run(model, image, "--json", "--top", "99")[1])[0]["predictions"]) == 7


def test_predictions_have_the_order_of_the_arguments_and_are_sorted_within_a_folder(
    run: Run, model: Path, tmp_path: Path, photographs: Path
) -> None:
    image = photographs / "cat/0.jpg"
    for name in ("b/2.jpg", "b/10.JPG", "b/a/deep/1.jpeg", "b/.hidden.jpg", "b/.git/3.jpg", "z.data", "linked/4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / name)
    (tmp_path / "b/notes.txt").write_text("no image")
    (tmp_path / "b/link").symlink_to(tmp_path / "linked", target_is_directory=True)
    (tmp_path / "b/back").symlink_to(tmp_path / "b", target_is_directory=True)
    status, output, errors = run(model, "z.data", "b", "b/2.jpg", "--json")
    assert (status, errors) == (0, "")
    assert [line["path"] for line in lines(output)] == [
        "z.data",
        "b/10.JPG",
        "b/2.jpg",
        "b/a/deep/1.jpeg",
        "b/link/4.jpg",
        "b/2.jpg",
    ]


def test_unreadable_images_are_reported_and_skipped(run: Run, model: Path, tmp_path: Path, photographs: Path) -> None:
    good = photographs / "cat/0.jpg"
    encoded = good.read_bytes()
    (tmp_path / "bad").mkdir()
    (tmp_path / "empty").mkdir()
    for name, content in {
        "1.jpg": b"no image", "2.jpg": encoded, "3.png": b"", "4.jpg": encoded[:900],
        "5.jpg": encoded.split(b"\xff\xda")[0] + b"\xff\xd9",  # header and end marker without image data
    }.items():  # fmt: skip
        (tmp_path / "bad" / name).write_bytes(content)
    for size in ("1", "3", "64"):
        status, output, errors = run(model, "bad", "nowhere.jpg", "empty", good, "--json", "-b", size)
        assert status == 0
        assert [line["path"] for line in lines(output)] == ["bad/2.jpg", str(good)]
        assert lines(output)[0]["predictions"] == lines(output)[1]["predictions"]
        reasons = [line.removeprefix("shufflenetv2 predict: skipped: ") for line in errors.splitlines()]
        assert reasons == [
            "empty holds no images",
            "bad/1.jpg is not a readable image; remove it or replace it",
            "bad/3.png is not a readable image; remove it or replace it",
            "bad/4.jpg is damaged: its data is incomplete or altered; remove the file or replace it",
            "bad/5.jpg is not a readable image; remove it or replace it",
            "nowhere.jpg cannot be read: No such file or directory",
        ]


def test_an_image_that_cannot_be_resized_is_reported_and_skipped(tmp_path: Path) -> None:
    line, dot = str(tmp_path / "line.png"), str(tmp_path / "dot.png")
    assert cv2.imwrite(line, np.full((1, 1_000_000), 255, np.uint8))
    assert cv2.imwrite(dot, np.full((50, 50), 255, np.uint8))
    warnings: list[str] = []
    # With a short side of 4000 pixels, the first image would be four thousand million pixels wide.
    model = Classifier(lambda images: torch.zeros(len(images), 1), None, Preprocessing(32, 4000, interpolation="bicubic"))
    predictions = list(predict_images(model, ImageFiles([line, dot]), top=1, batch_size=1, workers=1, warn=warnings.append))
    assert [prediction.path for prediction in predictions] == [dot]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        f"{line} is too long and thin: 1,000,000 x 1 pixels would be resized to 4,000,000,000 x 4,000;"
    )


@pytest.mark.parametrize("path", ["bad.jpg", "empty"])
def test_the_exit_status_is_1_if_no_image_is_readable(run: Run, model: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    status, output, errors = run(model, path)
    assert (status, output) == (1, "")
    assert errors.splitlines()[-1] == "shufflenetv2 predict: error: no image is readable"


# ---- model files


@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("torchscript", ".pt"), ("exported", ".pt2")])
def test_an_exported_file_contains_all_that_a_prediction_needs(
    run: Run, model: Path, tmp_path: Path, photographs: Path, format: str, suffix: str
) -> None:
    uint8_input = "rgb-nhwc" if format == "onnx" else None
    content = export(read_weights(model), format, uint8_input=uint8_input)
    (tmp_path / f"other{suffix}").write_bytes(content)
    status, output, errors = run(f"other{suffix}", photographs, "--json", "--top", "7", "-b", "5")
    assert (status, errors) == (0, "")
    torch.testing.assert_close(probabilities(output), evaluated_probabilities(model, photographs), rtol=0, atol=1e-3)
    assert lines(output)[0]["predictions"][0]["class"].startswith("Käfer ")
    if uint8_input:
        # An image of resize_size needs no resizing: pass its central pixels directly to ONNX Runtime.
        picture = Image.open(photographs / "dog/1.jpg").convert("RGB").resize((SIZE + 8, SIZE + 8))
        picture.save(tmp_path / "raw.png")
        pixels = np.asarray(picture.crop((4, 4, SIZE + 4, SIZE + 4)))[None]
        logits = onnxruntime.InferenceSession(content).run(None, {"images": pixels})[0]
        expected = torch.from_numpy(logits).softmax(dim=1)
        for file in (model, "other.onnx"):
            predicted = probabilities(run(file, "raw.png", "--json", "--top", "7")[1])
            torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-3)


def test_without_class_names_the_labels_are_printed_as_names(run: Run, model: Path, tmp_path: Path, photographs: Path) -> None:
    torch.save({"state_dict": read_weights(model).state_dict}, tmp_path / "bare.pth.tar")
    (line,) = lines(run("bare.pth.tar", photographs / "cat/0.jpg", "--json")[1])
    assert all(prediction["class"] == str(prediction["label"]) for prediction in line["predictions"])


class MakesFolder:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "model.pt2", "model.onnx"])
@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_pickle_is_refused_and_not_executed(
    run: Run, tmp_path: Path, photographs: Path, name: str, save: Callable[..., object]
) -> None:
    save({"state_dict": MakesFolder(tmp_path / "executed")}, tmp_path / name)
    status, output, errors = run(name, photographs)
    assert status in (1, 2)
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.startswith(f"shufflenetv2 predict: error: {name} ")
    assert not (tmp_path / "executed").exists()


def test_a_program_is_executed_only_with_the_suffix_of_a_program(
    run: Run, model: Path, tmp_path: Path, photographs: Path
) -> None:
    (tmp_path / "model.pkl").write_bytes(export(read_weights(model), "torchscript"))
    status, _, errors = run("model.pkl", photographs)
    assert status == 2
    assert errors == (
        "shufflenetv2 predict: error: model.pkl is a TorchScript program, which is code and not weights; "
        "rename the file to *.pt to execute it\n"
    )
    shutil.copy(model, tmp_path / "weights.pt")
    assert run("weights.pt", photographs / "cat/0.jpg")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.pkl", "x.jpg"], "absent.pkl cannot be read: No such file"),
        (["absent.onnx", "x.jpg"], "absent.onnx cannot be read: No such file"),
        (["absent.pt2", "x.jpg"], "absent.pt2 cannot be read: No such file"),
        (["MODEL"], "IMAGES"),
        (["MODEL", "x.jpg", "--top", "0"], "--top 0: must be a whole number of at least 1"),
        (["MODEL", "x.jpg", "--batch-size", "many"], "--batch-size many: must be"),
        (["MODEL", "x.jpg", "--device", "abacus"], "--device abacus: this machine has no such device"),
        (["some.onnx", "x.jpg", "--device", "cuda"], "--device cuda: an exported file runs on the CPU only"),
    ],
)
def test_wrong_usage_gives_a_one_line_error_and_exit_status_2(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert predict.main([str(model) if argument == "MODEL" else argument for argument in arguments]) == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.startswith("shufflenetv2 predict: error: ")
    assert message in errors


# ---- output to a pipe


def test_predictions_are_printed_at_once_until_the_pipe_is_closed(model: Path, tmp_path: Path, photographs: Path) -> None:
    """The first image is small; the many large ones after it take so long that their predictions cannot be there yet."""
    image, large = photographs / "cat/0.jpg", tmp_path / "large.png"
    photograph(1500, 1500, seed=0).save(large, compress_level=1)
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    process = subprocess.Popen(
        [*COMMAND, model, image, *[large] * 80, "-b", "1", "-j", "1", "--device", "cpu"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    timeout = threading.Timer(100, process.kill)
    timeout.start()
    output = os.read(process.stdout.fileno(), 2**16).decode()
    assert output.startswith(f"{image}: Käfer ")
    assert output.count("\n") < 40
    process.stdout.close()  # as `head` does
    assert process.stderr.read() == ""
    assert process.wait() == 0
    timeout.cancel()
