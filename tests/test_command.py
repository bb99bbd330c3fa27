"""The training command as users run it: processes, files, exit statuses."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shufflenetv2 import ShuffleNetV2, __version__, files, load_model
from shufflenetv2.__main__ import main as package_main
from shufflenetv2.cli.command import main
from shufflenetv2.data import DataIterator, Digits, TrainTransform
from tests.support import ROOT, SHORT, Train, photograph, same_tensors, training_losses

TRAIN_LINE = re.compile(
    r"TRAIN Iter (\d+): lr = [\d.]+,\tloss = [\d.]+,\tTop-1 err = [\d.]+,\tTop-5 err = [\d.]+,"
    r"\tdata_time = [\d.]+,\ttrain_time = [\d.]+$",
    re.M,
)
# Without a prefix: whether a line 'best TEST' follows depends on the iteration with the best weights, and so on the processor.
TEST_LINE = re.compile(
    r"(?<=\] )TEST Iter (\d+): loss = ([\d.]+),\tTop-1 err = ([\d.]+),\tTop-5 err = ([\d.]+),\tval_time = [\d.]+$", re.M
)


def read(path: Path) -> dict[str, torch.Tensor]:
    state_dict: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state_dict


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("[!.]*")) if path.is_file()}


def test_a_run_trains_validates_recalibrates_and_saves(train: Train, tmp_path: Path) -> None:
    done = train(*SHORT)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^iter +(\d+)/12  loss [\d.]+  top-1 [\d.]+%  lr [\d.]+  \d+ images/s", done.stdout, re.M) == [
        "3", "6", "9", "12",
    ]  # fmt: skip
    assert re.findall(r"^(\w+) at (\d+)  top-1 [\d.]+%  top-5 [\d.]+%  loss [\d.]+", done.stdout, re.M) == [
        ("validation", "6"), ("validation", "12"), ("recalibrated", "12"),
    ]  # fmt: skip
    assert re.search(r"learning rate 0.0125 for batch size 16: \S*digits.yaml gives 0.05 for batch size 64", done.stdout)
    assert sorted(path.name for path in (tmp_path / "models").glob("[!.]*")) == [
        "best.pkl", "bnps-checkpoint-000012.pth.tar", "checkpoint-000004.pth.tar", "checkpoint-000008.pth.tar",
        "checkpoint-000012.pth.tar", "model.pkl",
    ]  # fmt: skip
    log = (tmp_path / "logs/models/train.log").read_text()
    assert TRAIN_LINE.findall(log) == ["3", "6", "9", "12"]
    assert [line[0] for line in TEST_LINE.findall(log)] == ["6", "12", "12"]
    assert "Total params: 352,032" in log
    assert (tmp_path / "logs/models/options.yaml").exists()

    # Recalibration changes the batch-norm statistics and nothing else, and its result is the model.
    raw, recalibrated = (read(tmp_path / f"models/{tag}checkpoint-000012.pth.tar") for tag in ("", "bnps-"))
    changed = {name for name in raw if not torch.equal(raw[name], recalibrated[name])}
    assert changed == {name for name in raw if "running" in name or "num_batches" in name}
    assert same_tensors(read(tmp_path / "models/model.pkl"), recalibrated)
    assert not any(name.startswith("module.") for name in raw)

    content = torch.load(tmp_path / "models/model.pkl", weights_only=True)
    assert content["model_size"] == "0.5x"
    assert content["class_names"] == [str(digit) for digit in range(10)]
    assert content["preprocessing"]["input_size"] == 32
    assert content["accuracy"]["top1"] == pytest.approx(1 - float(TEST_LINE.findall(log)[-1][2]), abs=1e-6)
    assert load_model(tmp_path / "models/model.pkl")(torch.zeros(1, 3, 32, 32)).shape == (1, 10)

    # An evaluation prints the same figures.
    evaluated = train(*SHORT[:2], "--eval", "--eval-resume", "models/model.pkl", "--device", "cpu")
    assert evaluated.returncode == 0, evaluated.stderr
    evaluation_log = next(tmp_path.glob("logs/eval/*/train.log")).read_text()
    assert [line[:4] for line in TEST_LINE.findall(evaluation_log)] == [TEST_LINE.findall(log)[-1][:4]]

    # Running a finished command again says so and changes nothing.
    before = tree(tmp_path / "models")
    again = train(*SHORT)
    assert (again.returncode, "this run is finished" in again.stdout) == (0, True)
    assert tree(tmp_path / "models") == before

    # A different recipe in the same folder is refused.
    other = train(*SHORT, "--total-iters", "14", "--momentum", "0.8")
    assert other.returncode == 2
    assert "--total-iters was 12 and is 14; --momentum was 0.9 and is 0.8. Use --experiment NAME " in other.stderr
    assert other.stderr.count("\n") == 1
    assert tree(tmp_path / "models") == before

    # --no-auto-continue starts over, and keeps the earlier results.
    restarted = train(*SHORT, "--total-iters", "2", "--no-auto-continue")
    assert restarted.returncode == 0, restarted.stderr
    assert tree(tmp_path / "models/previous-1") == before
    assert (tmp_path / "models/checkpoint-000002.pth.tar").exists()
    assert not (tmp_path / "models/checkpoint-000012.pth.tar").exists()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_the_losses_of_the_command_are_those_of_its_parts(train_here: Train) -> None:
    """Options of the recipe reach the parts; other tests compare each part with the published recipe."""
    done = train_here(*SHORT, "--total-iters", "4", "--display-interval", "1", "--seed", "3", "--learning-rate", "0.02",
                 "--weight-decay", "0.01", "--hflip", "0.5", "--color-jitter", "0.3", "--scale", "0.5", "0.9")  # fmt: skip
    assert done.returncode == 0, done.stderr
    network = ShuffleNetV2(32, 10, "0.5x")
    network.initialize_weights(torch.Generator().manual_seed(3))
    stream = DataIterator(Digits("train"), TrainTransform(32, (0.5, 0.9), (0.9, 1.1), (0.3,) * 3, 0.5), 16, seed=3)
    expected = training_losses(network, [stream.next() for _ in range(4)], base=0.02, decay=0.01)
    log = Path("logs/models/train.log").read_text()
    losses = [float(loss) for loss in re.findall(r"TRAIN Iter .*?loss = ([\d.]+)", log)]
    assert losses == pytest.approx(expected, abs=2e-6)


def test_the_same_command_gives_the_same_bits_with_one_worker_or_three(train_here: Train, tmp_path: Path) -> None:
    for name, workers in (("one", "1"), ("again", "1"), ("three", "3")):
        done = train_here(*SHORT, "--save", name, "--workers", workers)
        assert done.returncode == 0, done.stderr
    one, again, three = (read(tmp_path / name / "model.pkl") for name in ("one", "again", "three"))
    assert same_tensors(one, again)
    assert same_tensors(one, three)


def test_a_run_continues_from_its_newest_undamaged_checkpoint_to_the_same_bits(train_here: Train, tmp_path: Path) -> None:
    uninterrupted = train_here(*SHORT, "--save", "uninterrupted")
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    # State of the folder after a kill at iteration 9 and a disk error: checkpoints 4 and 8, the second one damaged.
    (tmp_path / "interrupted").mkdir()
    for iteration in (4, 8):
        name = f"checkpoint-{iteration:06}.pth.tar"
        content = (tmp_path / "uninterrupted" / name).read_bytes()
        (tmp_path / "interrupted" / name).write_bytes(content if iteration == 4 else content[:5000] + b"?" + content[5001:])
    resumed = train_here(*SHORT, "--save", "interrupted", "--workers", "3")
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing from interrupted/checkpoint-000004.pth.tar" in resumed.stdout
    assert "checkpoint-000008.pth.tar is damaged" in resumed.stdout
    assert same_tensors(read(tmp_path / "interrupted/model.pkl"), read(tmp_path / "uninterrupted/model.pkl"))
    # The metrics accumulated between two TRAIN lines are part of the checkpoint (4 is between 3 and 6).
    log, log_of_resumed = ((tmp_path / name / "logs/train.log").read_text() for name in ("uninterrupted", "interrupted"))
    lines = {match.group(1): match.group(0).split("data_time")[0] for match in TRAIN_LINE.finditer(log)}
    for match in TRAIN_LINE.finditer(log_of_resumed):
        assert match.group(0).split("data_time")[0] == lines[match.group(1)]


def test_an_interrupted_validation_is_repeated_and_a_completed_one_is_not(train_here: Train, tmp_path: Path) -> None:
    every_6 = [*SHORT, "--save-interval", "6", "--val-interval", "6"]
    assert train_here(*every_6, "--save", "uninterrupted").returncode == 0
    content = (tmp_path / "uninterrupted/checkpoint-000006.pth.tar").read_bytes()
    for name, expected in (("completed", ["12", "12"]), ("interrupted", ["6", "12", "12"])):
        (tmp_path / name).mkdir()
        checkpoint = tmp_path / name / "checkpoint-000006.pth.tar"
        checkpoint.write_bytes(content)
        if name == "interrupted":  # state after a signal in the middle of the validation
            files.write(checkpoint, files.read(checkpoint) | {"validated": 0})
        done = train_here(*every_6, "--save", name)
        assert done.returncode == 0, done.stderr
        assert [line[0] for line in TEST_LINE.findall((tmp_path / name / "logs/train.log").read_text())] == expected


def test_a_folder_of_photographs_is_trained_on_and_evaluated(train_here: Train, tmp_path: Path, photographs: Path) -> None:
    small = ["--input-size", "64", "--batch-size", "8", "--device", "cpu"]
    done = train_here(
        "--train-dir", photographs, "--val-dir", photographs, "--model-size", "0.5x", *small,
        "--total-iters", "6", "--display-interval", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "logs/models/train.log").read_text()
    assert TRAIN_LINE.findall(log) == ["2", "4", "6"]
    assert "learning rate 0.00390625: 0.5 x batch size 8 / 1024" in done.stdout
    # The tests of other weights than those of model.pkl have a prefix.
    trained = TEST_LINE.findall(log)[-1]
    evaluated = train_here("--eval", "--eval-resume", "models/model.pkl", "--val-dir", photographs, "--val-batch-size", "5")
    assert evaluated.returncode == 0, evaluated.stderr
    line = TEST_LINE.findall(next(tmp_path.glob("logs/eval/*/train.log")).read_text())[0]
    assert line[2:4] == trained[2:4]
    assert float(line[1]) == pytest.approx(float(trained[1]), abs=1e-4)  # rounding depends on the batch size


def test_weights_of_the_original_are_evaluated(train_here: Train, tmp_path: Path, photographs: Path) -> None:
    network = ShuffleNetV2(n_class=3, model_size="0.5x")
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, tmp_path / "net.mdl")
    done = train_here("--eval", "--eval-resume", "net.mdl", "--model-size", "0.5x", "--val-dir", photographs)
    assert done.returncode == 0, done.stderr
    assert [line[0] for line in TEST_LINE.findall(next(tmp_path.glob("logs/eval/*/train.log")).read_text())] == ["0"]

    wrong_size = train_here("--eval", "--eval-resume", "net.mdl", "--model-size", "1.0x", "--val-dir", photographs)
    assert wrong_size.returncode == 2
    assert "net.mdl holds a 0.5x model, not --model-size 1.0x" in wrong_size.stderr

    torch.save(ShuffleNetV2(n_class=4, model_size="0.5x").state_dict(), tmp_path / "four.pkl")
    wrong_classes = train_here("--eval", "--eval-resume", "four.pkl", "--val-dir", photographs)
    assert wrong_classes.returncode == 2
    assert "four.pkl has 4 classes" in wrong_classes.stderr
    assert wrong_classes.stderr.count("\n") == 1


def test_wrong_use_gets_one_line_and_status_2(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare" / "cat").mkdir(parents=True)
    (tmp_path / "flat").mkdir()
    photograph(40, 40, seed=0).save(tmp_path / "flat" / "1.jpg")
    (tmp_path / "bad.pkl").write_bytes(b"no weights")
    (tmp_path / "bad.yaml").write_text("batchsize: 3")
    images = str(photographs)
    for arguments, part in (
        ([], "--config configs/digits.yaml"),
        (["--train-dir", "absent"], "absent is not a folder"),
        (["--train-dir", "empty"], "empty holds no class folders"),
        (["--train-dir", "flat"], "flat holds no class folders"),
        (["--train-dir", "bare"], "bare/cat holds no images"),
        (["--train-dir", images, "--val-dir", "empty"], "empty holds no class folders"),
        (["--eval", "--eval-resume", "bad.pkl", "--val-dir", images], "bad.pkl is not a file of weights"),
        (["--eval", "--eval-resume", "absent.pkl", "--val-dir", images], "absent.pkl cannot be read: No such file"),
        (["--train-dir", images, "-b", "-1"], "-b -1"),
        (["--train-dir", images, "--device", "cuda:77"], "--device cuda:77"),
        (["--config", "bad.yaml"], "did you mean batch-size?"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert error.startswith("train.py: error: ")
        assert part in error


def test_one_process_of_a_machine_reports_wrong_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(["--batch-size", "0"]) == 2
        assert capsys.readouterr().err.count("\n") == lines


def test_debug_shows_the_traceback_of_an_error(train: Train) -> None:
    done = train("--train-dir", "absent", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_unreadable_image_ends_the_run_by_name_with_status_1(train_here: Train, tmp_path: Path) -> None:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "data/cat/good.png")
    (tmp_path / "data/cat/bad.jpg").write_bytes(b"not a picture")
    shutil.copytree(tmp_path / "data/cat", tmp_path / "data/dog", ignore=shutil.ignore_patterns("bad.jpg"))
    options = ["--batch-size", "2", "--total-iters", "2", "--input-size", "32", "--device", "cpu", "--on-bad-image", "stop"]
    done = train_here("--train-dir", "data", *options)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "data/cat/bad.jpg is not a readable image" in done.stderr


def test_help_does_not_load_torch() -> None:
    program = (
        "import sys; from shufflenetv2.cli.command import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print({'torch', 'cv2', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_package_is_a_command_too() -> None:
    run = [sys.executable, "-m", "shufflenetv2"]
    done = subprocess.run([*run, "train", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout.startswith("usage: shufflenetv2 train")) == (0, True)


def test_the_help_of_the_package_lists_every_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert package_main(["--help"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for name in ("train", "prepare", "info", "convert", "recalibrate", "export", "predict", "schema"):
        assert re.search(rf"^  {name} +\w", shown.out, re.M)
    assert package_main([]) == 2
    assert capsys.readouterr().err == shown.out


def test_a_mistyped_command_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert package_main(["trian", "--help"]) == 2
    assert capsys.readouterr().err == "shufflenetv2: error: unknown command 'trian'; did you mean train?\n"
    assert package_main(["xyzzy"]) == 2
    assert "--help lists" in capsys.readouterr().err


def test_every_command_shows_its_help_and_its_version_and_refuses_a_mistyped_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("train", "schema"):
        for option, start in (("--help", f"usage: shufflenetv2 {name}"), ("--version", f"shufflenetv2 {name} {__version__}")):
            with pytest.raises(SystemExit) as caught:
                package_main([name, option])
            assert caught.value.code == 0
            assert capsys.readouterr().out.startswith(start)
        assert package_main([name, "--hlep"]) == 2
        assert capsys.readouterr().err.startswith(f"shufflenetv2 {name}: error: unknown option '--hlep'")
    assert package_main(["--version"]) == 0
    assert capsys.readouterr().out == f"shufflenetv2 {__version__}\n"


@pytest.mark.parametrize("words", [["train.py", "--help"], ["-m", "shufflenetv2", "info", "model.pkl"]])
def test_without_its_packages_the_program_says_so_in_one_line(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-S", *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "which this program needs, is not installed here; activate its environment" in done.stderr
    assert len(done.stderr.splitlines()) == 1
