"""Names from other trainers, options with lists, options that contradict each other, and options short for others."""

import re
from pathlib import Path

import pytest
import yaml

from shufflenetv2.cli.command import parse, training_parser
from shufflenetv2.config import OPTIONS, Config
from tests.test_options import refusal

TRAIN = ("--train-dir", "D")
ALIASES = {
    "--lr": ("learning_rate", "0.25", 0.25),
    "--smoothing": ("label_smooth", "0.2", 0.2),
    "--model": ("model_size", "2.0x", "2.0x"),
    "--img-size": ("input_size", "160", 160),
    "--output": ("save", "here", "here"),
    "--work-dir": ("save", "here", "here"),
    "--log-interval": ("display_interval", "7", 7),
    "--print-freq": ("display_interval", "7", 7),
    "--resume-from": ("resume", "other.pth.tar", "other.pth.tar"),
    "--test-only": ("eval", "true", True),
    "--drop-connect": ("drop_path", "0.1", 0.1),
    "--data-path": ("data_dir", "there", "there"),
    "--validation-batch-size": ("val_batch_size", "9", 9),
    "--val-crop-size": ("input_size", "160", 160),
    "--val-resize-size": ("resize_size", "300", 300),
    "--wd": ("weight_decay", "0.01", 0.01),
    "--label-smoothing": ("label_smooth", "0.2", 0.2),
    "--clip-grad-norm": ("clip_grad", "5", 5),
    "--lr-min": ("min_lr", "0.001", 0.001),
    "--dr": ("decay_rate", "0.5", 0.5),
    "--lr-gamma": ("decay_rate", "0.5", 0.5),
    "--random-erase": ("reprob", "0.2", 0.2),
    "--mixup-alpha": ("mixup", "0.2", 0.2),
    "--cutmix-alpha": ("cutmix", "0.2", 0.2),
    "--output-dir": ("save", "here", "here"),
    "--use-deterministic-algorithms": ("deterministic", "true", True),
    "--jsd-loss": ("jsd", "true", True),
    "--kd-model-name": ("teacher", "resnet18", "resnet18"),
    "--kd-temperature": ("distill_temperature", "2", 2),
}
SHORT = {
    "-b": ("batch_size", "32", 32),
    "-j": ("workers", "3", 3),
    "-d": ("dataset", "cifar10", "cifar10"),
    "-vb": ("val_batch_size", "9", 9),
}
WITH_IMAGES = (*TRAIN, "--val-dir", "V")
COMPANIONS = {
    "--data-path": ("--dataset", "cifar10"),
    "-d": ("--data-dir", "D"),
    "--jsd-loss": (*WITH_IMAGES, "--aug-splits", "3"),
    "--kd-temperature": (*WITH_IMAGES, "--teacher", "resnet18"),
}


def config_file(tmp_path: Path, content: str) -> tuple[str, str]:
    """Write a YAML file; return the arguments that name it."""
    (tmp_path / "c.yaml").write_text(content)
    return "--config", str(tmp_path / "c.yaml")


def test_the_help_shows_every_alias(capsys: pytest.CaptureFixture[str]) -> None:
    assert {alias: option.name for option in OPTIONS for alias in option.aliases} == {
        alias: name for alias, (name, _, _) in ALIASES.items()
    }
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert all(alias in shown for alias in (*ALIASES, *SHORT))


@pytest.mark.parametrize("alias", [*ALIASES, *SHORT])
def test_an_alias_is_the_option_on_the_command_line_and_in_a_file(tmp_path: Path, alias: str) -> None:
    name, text, value = (ALIASES | SHORT)[alias]
    common = COMPANIONS.get(alias, WITH_IMAGES)

    def has_value(config: Config) -> bool:
        actual = config.values()[name]
        return bool(Path(actual) == Path(text) if name == "save" else actual == value)

    spellings = [parse([*common, alias, text]), parse([*common, "--" + name.replace("_", "-"), text])]
    if alias in ALIASES:
        assert parse([*common, f"{alias}={text}"]) == spellings[0]
        for key in (alias[2:], alias[2:].replace("-", "_")):
            from_file = parse([*common, *config_file(tmp_path, f"{key}: {text}\n")])
            assert has_value(from_file)
            assert name not in from_file.explicit
    assert all(has_value(config) and name in config.explicit for config in spellings)
    assert not has_value(parse(WITH_IMAGES))


def test_an_alias_on_the_command_line_wins_over_the_name_in_the_file(tmp_path: Path) -> None:
    assert parse([*TRAIN, *config_file(tmp_path, "learning-rate: 3"), "--lr", "0.5"]).optimization.learning_rate == 0.5
    assert parse([*TRAIN, *config_file(tmp_path, "lr: 3"), "--learning-rate", "0.5"]).optimization.learning_rate == 0.5


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("freeze", ("stem", "stage2", "conv_last")),
        ("hook", ("a:A", "b.c:B", "a:A")),
        ("decay-milestones", (3, 7, 20)),
        ("opt-kwargs", ("nesterov=True", "dampening=0")),
    ],
)
def test_a_list_grows_with_every_mention(tmp_path: Path, option: str, values: tuple[object, ...]) -> None:
    first, *others = map(str, values)
    name = option.replace("-", "_")
    one_by_one = parse([*TRAIN, *(word for value in values for word in (f"--{option}", str(value)))])
    assert one_by_one.values()[name] == values
    assert parse([*TRAIN, f"--{option}", first, *others]).values()[name] == values
    assert parse([*TRAIN, f"--{option}", first, f"--{option}", *others]).values()[name] == values
    assert parse([*TRAIN, f"--{option}", first]).values()[name] == values[:1]
    file = config_file(tmp_path, yaml.safe_dump({option: list(values)}))
    assert parse([*TRAIN, *file]).values()[name] == values
    # A list on the command line replaces the list in the file.
    assert parse([*TRAIN, *file, f"--{option}", first]).values()[name] == values[:1]
    assert parse([*TRAIN, *config_file(tmp_path, f"{option}: {first}")]).values()[name] == values[:1]
    assert parse([*TRAIN, *config_file(tmp_path, one_by_one.to_yaml())]).values()[name] == values
    assert parse(TRAIN).values()[name] == ()
    assert option in refusal(*TRAIN, f"--{option}")


def test_a_wrong_value_in_a_list_is_refused_with_the_list() -> None:
    assert refusal(*TRAIN, "--decay-milestones", "3", "--decay-milestones", "x").startswith("--decay-milestones 3 x: must be")


CONTRADICTIONS = [
    ("--eval-resume model.pkl", "--eval-resume names weights to evaluate"),
    ("--epochs 3 --total-iters 100", "--epochs and --total-iters both"),
    ("--jsd", "--jsd compares the views"),
    ("--split-bn", "--split-bn is for the views"),
    ("--resplit", "--resplit is for the first of several views"),
    ("--aug-splits 3 --jsd --mixup 0.2", "--mixup or --cutmix cannot be combined with --jsd"),
    ("--aug-splits 3 --jsd --cutmix-minmax 0.2 0.8", "--mixup or --cutmix cannot be combined with --jsd"),
    ("--aug-splits 3 --cutmix 1", "--mixup or --cutmix would mix the views"),
    ("--aug-splits 3 --jsd --bce-loss", "--jsd includes cross-entropy"),
    ("--no-aug --aa ta_wide", "--no-aug turns augmentation off"),
    ("--no-aug --reprob 0.1", "--no-aug turns augmentation off"),
    ("--no-aug --vflip 0.1", "--no-aug turns augmentation off"),
    ("--no-aug --aug-splits 2", "--no-aug turns augmentation off"),
    ("--bce-loss --bce-target-thresh 0 --class-weights sqrt", "--bce-target-thresh cannot be combined with --class-weights"),
    ("--bce-loss --bce-target-thresh 0 --focal-gamma 2", "--bce-target-thresh cannot be combined with --class-weights or"),
    ("--bce-target-thresh 0.2", "--bce-target-thresh has no effect without --bce-loss"),
    ("--mixup-off-iter 10", "--mixup-off-iter has no effect without --mixup or --cutmix"),
    ("--grad-accum-steps 2 --aug-splits 3", "--grad-accum-steps would separate the views"),
    ("--batch-size 16 --grad-accum-steps 3", "--batch-size 16 cannot be divided into --grad-accum-steps 3"),
    ("--clip-mode agc", "--clip-mode has no effect without a limit"),
    ("--torchscript --sync-bn", "--torchscript cannot be combined with --sync-bn"),
    ("--torchscript --split-bn --aug-splits 2", "--torchscript cannot be combined with --split-bn"),
    ("--torchscript --torchcompile", "--torchscript cannot be combined with --torchcompile"),
    ("--bn-tf --bn-eps 1e-3", "--bn-tf sets what --bn-eps and --bn-momentum set"),
    ("--bn-tf --bn-momentum 0.2", "--bn-tf sets what --bn-eps and --bn-momentum set"),
    ("--sync-bn --split-bn --aug-splits 2", "--sync-bn cannot be combined with --split-bn"),
    ("--pretrained --initial-checkpoint model.pkl", "--pretrained and --initial-checkpoint both give the weights"),
    ("--teacher-checkpoint model.pkl", "--teacher-checkpoint holds weights of a --teacher"),
    ("--no-resume-opt", "--no-resume-opt has no effect without --resume"),
    ("--model-ema-warmup", "--model-ema-warmup has no effect without --model-ema"),
    ("--sched plateau --no-validate", "--sched plateau needs validation results"),
    ("--recovery-interval 10 --save-interval 10m", "--recovery-interval needs a --save-interval in iterations"),
    ("--eval --throughput", "--eval cannot be combined with --throughput"),
]


@pytest.mark.parametrize(("arguments", "message"), CONTRADICTIONS, ids=[arguments for arguments, _ in CONTRADICTIONS])
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, arguments: str, message: str) -> None:
    assert refusal(*TRAIN, *arguments.split()).startswith(message)
    texts = training_parser().parse(arguments.split())
    content = {name.replace("_", "-"): yaml.safe_load(str(value)) for name, value in texts.items()}
    from_file = refusal(*TRAIN, *config_file(tmp_path, yaml.safe_dump(content)))
    assert str(tmp_path / "c.yaml") in from_file
    without_source = re.sub(" in [^ ;,]*c.yaml", "", from_file).replace("--", "")
    assert without_source.startswith(message.replace("--no-resume-opt", "resume-opt").replace("--", ""))


def test_the_length_is_in_iterations_or_in_epochs_and_the_command_line_decides(tmp_path: Path) -> None:
    def length(*arguments: str) -> tuple[int, float | None]:
        optimization = parse([*TRAIN, *arguments]).optimization
        return optimization.total_iters, optimization.epochs

    assert length() == (300_000, None)
    assert length("--epochs", "2.5", "--batch-size", "8") == (0, 2.5)
    assert length(*config_file(tmp_path, "total-iters: 7"), "--epochs", "2") == (0, 2)
    assert length(*config_file(tmp_path, "epochs: 2"), "--total-iters", "7") == (7, None)
    assert "both give the length" in refusal(*TRAIN, *config_file(tmp_path, "epochs: 2\ntotal-iters: 7"))

    resolved = parse([*TRAIN, "--epochs", "2.5", "--batch-size", "8"]).with_length(100)
    assert (resolved.optimization.total_iters, resolved.optimization.epochs) == (31, None)
    assert parse([*TRAIN, "--epochs", "0.001"]).with_length(100).optimization.total_iters == 1
    assert parse([*TRAIN, "--total-iters", "7"]).with_length(100).optimization.total_iters == 7
    assert length(*config_file(tmp_path, resolved.to_yaml())) == (31, None)


@pytest.mark.parametrize(
    ("arguments", "interval"),
    [
        ([], 10_000),
        (["--total-iters", "5000"], 500),
        (["--total-iters", "7"], 1),
        (["--epochs", "2.5", "--batch-size", "1"], 25),
        (["--total-iters", "5000", "--val-interval", "6"], 6),
    ],
)
def test_a_run_validates_ten_times_or_every_10000_iterations(arguments: list[str], interval: int) -> None:
    assert parse([*TRAIN, *arguments]).with_length(100).run.val_interval == interval


def test_an_experiment_is_a_folder_in_save(tmp_path: Path) -> None:
    def folder(*arguments: str) -> Path:
        return Path(parse([*TRAIN, *arguments]).common.save)

    assert folder() == Path("models")
    assert folder("--experiment", "first") == Path("models/first")
    assert folder("--experiment", "first", "--save", "there") == Path("there/first")
    assert folder(*config_file(tmp_path, "experiment: 7\nsave: there")) == Path("there/7")
    # A folder on the command line replaces the experiment of a file.
    assert folder(*config_file(tmp_path, "experiment: 7"), "--save", "there") == Path("there")
    assert folder(*config_file(tmp_path, "experiment: 7"), "--experiment", "8") == Path("models/8")
    # The options of a run name the resulting folder, and not the experiment again.
    written = parse([*TRAIN, "--experiment", "first"]).to_yaml()
    assert folder(*config_file(tmp_path, written)) == Path("models/first")


def test_a_data_dir_is_short_for_its_two_folders(tmp_path: Path) -> None:
    def folders(*arguments: str) -> tuple[str, str, str]:
        data = parse(arguments).data
        return data.train_dir, data.val_dir, data.data_dir

    assert folders("--data-dir", "D") == ("D/train", "D/val", "")
    assert folders("--data-dir", "D", "--val-dir", "V") == ("D/train", "V", "")
    assert folders("--data-dir", "D", "--train-dir", "T") == ("T", "D/val", "")
    assert folders("--data-dir", "D", "--val-fraction", "0.1") == ("D/train", "", "")
    assert folders("--data-dir", "D", "--eval")[1] == "D/val"
    assert folders(*config_file(tmp_path, "data-dir: D")) == ("D/train", "D/val", "")
    assert folders("--dataset", "cifar10", "--data-dir", "D") == ("", "", "D")
    assert refusal("--dataset", "cifar10").startswith("--data-dir is missing")
    assert refusal("--dataset", "digits", "--data-dir", "D").startswith("--data-dir has no effect")
    assert refusal("--dataset", "cifar10", "--data-dir", "D", *TRAIN).startswith("--train-dir is for --dataset folder")
    assert refusal("--val-fraction", "0.1", *TRAIN, "--val-dir", "V").startswith("--val-fraction replaces --val-dir")
    assert refusal("--dataset-download", *TRAIN).startswith("--dataset-download needs a --dataset by name")
