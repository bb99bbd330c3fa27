"""What is predicted is what the evaluation would say of the same images, from whatever file the model comes."""

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
from shufflenetv2.export.formats import export
from shufflenetv2.export.prediction import Tolerant
from shufflenetv2.weights import read_weights
from tests.models import SIZE, write_model
from tests.support import ONE_THREAD, ROOT, Run

COMMAND = [sys.executable, "-m", "shufflenetv2", "predict"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.pkl", mean=(90.0, 110.0, 130.0), std=(40.0, 60.0, 80.0))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, which has loaded torch already; its status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        return predict.main([*map(str, arguments), "--device", "cpu"]), *capsys.readouterr()

    return call


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def probabilities(output: str, n_class: int = 7) -> torch.Tensor:
    """(N, n_class) of what `--json --top n_class` printed."""
    found = torch.full((len(output.splitlines()), n_class), math.nan)
    for row, line in zip(found, lines(output), strict=True):
        for guess in line["predictions"]:
            row[guess["label"]] = guess["probability"]
    return found


def evaluated(model: Path, folder: Path) -> torch.Tensor:
    """Of every image in class folders, (N, 7), by the evaluation's own means."""
    network = read_weights(model).network()
    batches = evaluation_batches(FolderDataset(folder), EvaluationTransform(SIZE, SIZE + 8), 4, workers=1)
    with torch.inference_mode():
        return torch.cat([network(images) for images, _ in batches]).softmax(dim=1)


def test_it_says_what_the_evaluation_would(run: Run, model: Path, photographs: Path) -> None:
    expected = evaluated(model, photographs)
    assert expected.std(dim=0).max() > 0.01
    outputs = [
        run(model, photographs, "--json", "--top", "7", "-b", size, "-j", workers)
        for size, workers in ((1, 1), (8, 3), (64, 2))
    ]
    for status, output, errors in outputs:
        assert (status, errors) == (0, "")
        assert [line["path"] for line in lines(output)] == sorted(str(path) for path in photographs.rglob("*.jpg"))
        torch.testing.assert_close(probabilities(output), expected, rtol=0, atol=1e-4)


def test_the_likeliest_classes_come_first_and_by_name(run: Run, model: Path, photographs: Path) -> None:
    (image, *_) = sorted(photographs.rglob("*.jpg"))
    best = evaluated(model, photographs)[0].sort(descending=True)
    (line,) = lines(run(model, image, "--json")[1])
    assert [guess["label"] for guess in line["predictions"]] == best.indices[:5].tolist()
    assert [guess["class"] for guess in line["predictions"]] == [f"Käfer {label}" for label in best.indices[:5].tolist()]
    guesses = ", ".join(f"Käfer {label} {p:.2%}" for p, label in zip(*(part[:2].tolist() for part in best), strict=True))
    assert run(model, image, "--top", "2")[1] == f"{image}: {guesses}\n"
    assert len(lines(run(model, image, "--json", "--top", "99")[1])[0]["predictions"]) == 7


def test_files_and_folders_in_the_order_given(run: Run, model: Path, tmp_path: Path, photographs: Path) -> None:
    image = photographs / "cat/0.jpg"
    for name in ("b/2.jpg", "b/10.JPG", "b/a/deep/1.jpeg", "b/.hidden.jpg", "b/.git/3.jpg", "z.data", "linked/4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / name)
    (tmp_path / "b/notes.txt").write_text("no image")
    (tmp_path / "b/link").symlink_to(tmp_path / "linked", target_is_directory=True)
    (tmp_path / "b/back").symlink_to(tmp_path / "b", target_is_directory=True)
    status, output, errors = run(model, "z.data", "b", "b/2.jpg", "--json")
    assert (status, errors) == (0, "")
    found = [line["path"] for line in lines(output)]
    assert found == ["z.data", "b/10.JPG", "b/2.jpg", "b/a/deep/1.jpeg", "b/link/4.jpg", "b/2.jpg"]


def test_unreadable_images_are_named_and_the_rest_goes_on(run: Run, model: Path, tmp_path: Path, photographs: Path) -> None:
    good = photographs / "cat/0.jpg"
    encoded = good.read_bytes()
    (tmp_path / "bad").mkdir()
    (tmp_path / "empty").mkdir()
    for name, content in {
        "1.jpg": b"no image", "2.jpg": encoded, "3.png": b"", "4.jpg": encoded[:900],
        "5.jpg": encoded.split(b"\xff\xda")[0] + b"\xff\xd9",  # a header and an end: found out when it is decoded
    }.items():  # fmt: skip
        (tmp_path / "bad" / name).write_bytes(content)
    for size in ("1", "3", "64"):
        status, output, errors = run(model, "bad", "nowhere.jpg", "empty", good, "--json", "-b", size)
        assert status == 0
        assert [line["path"] for line in lines(output)] == ["bad/2.jpg", str(good)]
        assert lines(output)[0]["predictions"] == lines(output)[1]["predictions"]
        reasons = [line.removeprefix("shufflenetv2 predict: left out: ") for line in errors.splitlines()]
        assert reasons == [
            "empty holds no images",
            "bad/1.jpg is not a readable image; remove it or replace it",
            "bad/3.png is not a readable image; remove it or replace it",
            "bad/4.jpg is not a readable image; remove it or replace it",
            "bad/5.jpg is not a readable image; remove it or replace it",
            "nowhere.jpg cannot be read: No such file or directory",
        ]


def test_an_image_that_cannot_be_resized_is_named_too(tmp_path: Path) -> None:
    line, dot = str(tmp_path / "line.png"), str(tmp_path / "dot.png")
    assert cv2.imwrite(line, np.full((1, 1_000_000), 255, np.uint8))
    assert cv2.imwrite(dot, np.full((50, 50), 255, np.uint8))
    images = Tolerant(ImageFiles([line, dot]), EvaluationTransform(32, 4000))  # 4 thousand million pixels wide
    assert images.image(0).crop(0, 0, 32, 32).max() == 0
    assert images.unreadable == {0: f"{line} is too long and thin to be resized; remove it or replace it"}
    assert images.image(1).crop(0, 0, 32, 32).min() == 255
    assert len(images.unreadable) == 1


@pytest.mark.parametrize("path", ["bad.jpg", "empty"])
def test_nothing_readable_is_a_failure(run: Run, model: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    status, output, errors = run(model, path)
    assert (status, output) == (1, "")
    assert errors.splitlines()[-1] == "shufflenetv2 predict: error: no image was readable"


# ---- the model


@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("torchscript", ".pt"), ("exported", ".pt2")])
def test_an_exported_file_is_all_it_takes(
    run: Run, model: Path, tmp_path: Path, photographs: Path, format: str, suffix: str
) -> None:
    as_bytes = "rgb-nhwc" if format == "onnx" else ""
    content = export(read_weights(model), format, uint8_input=as_bytes)
    (tmp_path / f"other{suffix}").write_bytes(content)
    status, output, errors = run(f"other{suffix}", photographs, "--json", "--top", "7", "-b", "5")
    assert (status, errors) == (0, "")
    torch.testing.assert_close(probabilities(output), evaluated(model, photographs), rtol=0, atol=1e-3)
    assert lines(output)[0]["predictions"][0]["class"].startswith("Käfer ")
    if as_bytes:
        # The pixels of a picture that has the model's size already, as anyone reads them.
        picture = Image.open(photographs / "dog/1.jpg").convert("RGB").resize((SIZE + 8, SIZE + 8))
        picture.save(tmp_path / "raw.png")
        pixels = np.asarray(picture.crop((4, 4, SIZE + 4, SIZE + 4)))[None]
        logits = onnxruntime.InferenceSession(content).run(None, {"images": pixels})[0]
        expected = torch.from_numpy(logits).softmax(dim=1)
        for file in (model, "other.onnx"):
            found = probabilities(run(file, "raw.png", "--json", "--top", "7")[1])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_weights_without_names_give_numbers(run: Run, model: Path, tmp_path: Path, photographs: Path) -> None:
    torch.save({"state_dict": read_weights(model).state_dict}, tmp_path / "bare.pth.tar")
    (line,) = lines(run("bare.pth.tar", photographs / "cat/0.jpg", "--json")[1])
    assert all(guess["class"] == str(guess["label"]) for guess in line["predictions"])


class Trap:
    """What a pickle can do to whoever loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "model.pt2", "model.onnx"])
@pytest.mark.parametrize("save", [torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap))])
def test_code_in_a_pickle_is_refused_and_not_run(
    run: Run, tmp_path: Path, photographs: Path, name: str, save: Callable[..., object]
) -> None:
    save({"state_dict": Trap(tmp_path / "sprung")}, tmp_path / name)
    status, output, errors = run(name, photographs)
    assert status in (1, 2)
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.startswith(f"shufflenetv2 predict: error: {name} ")
    assert not (tmp_path / "sprung").exists()


def test_a_program_is_only_run_under_a_name_that_says_so(run: Run, model: Path, tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(export(read_weights(model), "torchscript"))
    status, _, errors = run("model.pkl", photographs)
    assert status == 2
    assert errors == (
        "shufflenetv2 predict: error: model.pkl holds a TorchScript program, which is code and no weights; "
        "to run it nevertheless, name it *.pt\n"
    )
    shutil.copy(model, tmp_path / "weights.pt")  # and weights stay weights
    assert run("weights.pt", photographs / "cat/0.jpg")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.pkl", "x.jpg"], "absent.pkl cannot be read: No such file"),
        (["absent.onnx", "x.jpg"], "absent.onnx cannot be read: No such file"),
        (["absent.pt2", "x.jpg"], "absent.pt2 cannot be read: No such file"),
        (["MODEL"], "IMAGE_OR_FOLDER"),
        (["MODEL", "x.jpg", "--top", "0"], "--top 0: must be a whole number of at least 1"),
        (["MODEL", "x.jpg", "--batch-size", "many"], "--batch-size many: must be"),
        (["MODEL", "x.jpg", "--device", "abacus"], "--device abacus: there is no such device here"),
        (["some.onnx", "x.jpg", "--device", "cuda"], "--device cuda: an exported file runs on the CPU here"),
    ],
)
def test_wrong_use_gets_one_line_and_status_2(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert predict.main([str(model) if argument == "MODEL" else argument for argument in arguments]) == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.startswith("shufflenetv2 predict: error: ")
    assert message in errors


# ---- as a process of its own


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_predictions_come_as_they_are_made_and_may_be_cut_off(model: Path, tmp_path: Path, photographs: Path) -> None:
    """The second picture is a pipe, which nobody has written to when the first prediction is read."""
    image = photographs / "cat/0.jpg"
    os.mkfifo(tmp_path / "later.jpg")
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    process = subprocess.Popen(
        [*COMMAND, model, image, "later.jpg", image, image, "-b", "1", "-j", "1", "--device", "cpu"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    rescue = threading.Timer(100, process.kill)  # from waiting for ever for what does not come
    rescue.start()
    first = process.stdout.readline()
    assert first.startswith(f"{image}: Käfer ")
    (tmp_path / "later.jpg").write_bytes(image.read_bytes())
    assert process.stdout.readline() == first.replace(str(image), "later.jpg")
    process.stdout.close()  # as `head` does
    assert process.stderr.read() == ""
    assert process.wait() == 0
    rescue.cancel()
