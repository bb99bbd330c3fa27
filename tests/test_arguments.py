"""Other trainers' names, lists that grow, options that exclude each other, and names that stand for others."""

from pathlib import Path

import pytest
import yaml

from shufflenetv2.cli.build import with_length
from shufflenetv2.config import declaration
from shufflenetv2.config.declaration import OptionsError, flag
from shufflenetv2.config.options import GROUPS, REFUSED, Options, _contradictions, fields, parse, to_yaml

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
}
LETTERS = {"-b": ("batch_size", "32", 32), "-j": ("workers", "3", 3)}


def refusal(*given: str) -> str:
    with pytest.raises(OptionsError) as caught:
        parse(given)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.status == 2
    return message


def config(tmp_path: Path, content: str) -> tuple[str, str]:
    (tmp_path / "c.yaml").write_text(content)
    return "--config", str(tmp_path / "c.yaml")


def test_the_aliases_below_are_all_there_are_and_stand_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert {alias: field.name for field in fields() for alias in field.metadata["aliases"]} == {
        alias: name for alias, (name, _, _) in ALIASES.items()
    }
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert all(alias in shown for alias in (*ALIASES, *LETTERS))


@pytest.mark.parametrize("alias", [*ALIASES, *LETTERS])
def test_an_alias_is_the_option_on_the_command_line_and_in_a_file(tmp_path: Path, alias: str) -> None:
    name, text, value = (ALIASES | LETTERS)[alias]
    common = (*TRAIN, "--val-dir", "V")

    def is_value(options: Options) -> bool:
        found = getattr(options, name)
        return bool(Path(found) == Path(text) if name == "save" else found == value)

    ways = [parse([*common, alias, text]), parse([*common, flag(name), text])]
    if alias in ALIASES:
        assert parse([*common, f"{alias}={text}"]) == ways[0]
        for key in (alias[2:], alias[2:].replace("-", "_")):
            from_file = parse([*common, *config(tmp_path, f"{key}: {text}\n")])
            assert is_value(from_file)
            assert name not in from_file.given
    assert all(is_value(options) and name in options.given for options in ways)
    assert not is_value(parse(common))


def test_an_alias_on_the_command_line_wins_over_the_name_in_the_file(tmp_path: Path) -> None:
    assert parse([*TRAIN, *config(tmp_path, "learning-rate: 3"), "--lr", "0.5"]).learning_rate == 0.5
    assert parse([*TRAIN, *config(tmp_path, "lr: 3"), "--learning-rate", "0.5"]).learning_rate == 0.5


@pytest.mark.parametrize("name", REFUSED)
def test_options_without_a_meaning_here_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    reason = REFUSED[name]
    for spelled in (f"--{name}", "--" + name.replace("-", "_")):
        assert refusal(*TRAIN, spelled) == f"{spelled} on the command line: {reason}"
        assert refusal(*TRAIN, f"{spelled}=1") == f"{spelled} on the command line: {reason}"
        assert refusal(*TRAIN, spelled, "1", "--lr", "0.1") == f"{spelled} on the command line: {reason}"
    for key in (name, name.replace("-", "_")):
        assert refusal(*TRAIN, *config(tmp_path, f"{key}: 1")) == f"{key} in {tmp_path / 'c.yaml'}: {reason}"


def test_what_is_refused_are_the_names_that_others_use_and_no_options() -> None:
    assert {"native-amp", "apex-amp", "local-rank", "pin-mem", "no-prefetcher"} <= set(REFUSED)
    assert not {flag(field.name)[2:] for field in fields()} & set(REFUSED)
    # What a refusal recommends exists.
    known = {flag(field.name) for field in fields()}
    assert all(word.strip(";,.") in known for reason in REFUSED.values() for word in reason.split() if word.startswith("--"))


@pytest.mark.parametrize(
    ("option", "values"),
    [("freeze", ("stem", "stage2", "conv_last")), ("hook", ("a:A", "b.c:B", "a:A")), ("decay-milestones", (3, 7, 20))],
)
def test_a_list_grows_with_every_mention(tmp_path: Path, option: str, values: tuple[object, ...]) -> None:
    first, *others = map(str, values)
    name = option.replace("-", "_")
    one_by_one = parse([*TRAIN, *(word for value in values for word in (f"--{option}", str(value)))])
    assert getattr(one_by_one, name) == values
    assert getattr(parse([*TRAIN, f"--{option}", first, *others]), name) == values
    assert getattr(parse([*TRAIN, f"--{option}", first, f"--{option}", *others]), name) == values
    assert getattr(parse([*TRAIN, f"--{option}", first]), name) == values[:1]
    file = config(tmp_path, yaml.safe_dump({option: list(values)}))
    assert getattr(parse([*TRAIN, *file]), name) == values
    # The command line wins: it replaces the file's list, and does not add to it.
    assert getattr(parse([*TRAIN, *file, f"--{option}", first]), name) == values[:1]
    assert getattr(parse([*TRAIN, *config(tmp_path, f"{option}: {first}")]), name) == values[:1]
    assert getattr(parse([*TRAIN, *config(tmp_path, to_yaml(one_by_one))]), name) == values
    assert getattr(parse(TRAIN), name) == ()
    assert option in refusal(*TRAIN, f"--{option}")


def test_a_wrong_value_in_a_list_is_refused_with_the_list() -> None:
    assert refusal(*TRAIN, "--decay-milestones", "3", "--decay-milestones", "x").startswith("--decay-milestones 3 x: must be")


CONTRADICTIONS = [
    ("--eval-resume model.pkl", "--eval-resume is for --eval"),
    ("--epochs 3 --total-iters 100", "--epochs and --total-iters both"),
    ("--jsd", "--jsd compares the views"),
    ("--split-bn", "--split-bn is for the views"),
    ("--resplit", "--resplit is for the first of several views"),
    ("--aug-splits 3 --jsd --mixup 0.2", "--mixup or --cutmix cannot go with --jsd"),
    ("--aug-splits 3 --jsd --cutmix-minmax 0.2 0.8", "--mixup or --cutmix cannot go with --jsd"),
    ("--aug-splits 3 --cutmix 1", "--mixup or --cutmix would mix the views"),
    ("--aug-splits 3 --jsd --bce-loss", "--jsd brings cross-entropy"),
    ("--no-aug --aa ta_wide", "--no-aug leaves no augmentation"),
    ("--no-aug --reprob 0.1", "--no-aug leaves no augmentation"),
    ("--no-aug --vflip 0.1", "--no-aug leaves no augmentation"),
    ("--no-aug --aug-splits 2", "--no-aug leaves no augmentation"),
    ("--mixup-off-iter 10", "--mixup-off-iter needs --mixup or --cutmix"),
    ("--grad-accum-steps 2 --aug-splits 3", "--grad-accum-steps would tear --aug-splits apart"),
    ("--batch-size 16 --grad-accum-steps 3", "--batch-size 16 cannot be divided into --grad-accum-steps 3"),
    ("--clip-mode agc", "--clip-mode needs a limit: --clip-grad"),
    ("--torchscript --sync-bn", "--torchscript cannot hold --sync-bn"),
    ("--torchscript --split-bn --aug-splits 2", "--torchscript cannot hold --split-bn"),
    ("--torchscript --torchcompile", "--torchscript and --torchcompile exclude each other"),
    ("--bn-tf --bn-eps 1e-3", "--bn-tf says what --bn-eps and --bn-momentum say"),
    ("--bn-tf --bn-momentum 0.2", "--bn-tf says what --bn-eps and --bn-momentum say"),
    ("--sync-bn --split-bn --aug-splits 2", "--sync-bn and --split-bn exclude each other"),
    ("--pretrained --initial-checkpoint model.pkl", "--pretrained and --initial-checkpoint: give one of them"),
    ("--teacher-checkpoint model.pkl", "--teacher-checkpoint needs --teacher"),
    ("--no-resume-opt", "--no-resume-opt is for --resume"),
    ("--model-ema-warmup", "--model-ema-warmup needs --model-ema"),
    ("--sched plateau --no-validate", "--sched plateau looks at the validation"),
    ("--recovery-interval 10 --save-interval 10m", "--recovery-interval is told apart by iterations"),
    ("--eval --throughput", "--eval and --throughput exclude each other"),
]


@pytest.mark.parametrize(("given", "message"), CONTRADICTIONS, ids=[given for given, _ in CONTRADICTIONS])
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, given: str, message: str) -> None:
    assert refusal(*TRAIN, *given.split()).startswith(message)
    found, _ = declaration.read(GROUPS, given.split(), "train.py", "", "", REFUSED)
    content = {flag(name)[2:]: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    assert refusal(*TRAIN, *config(tmp_path, yaml.safe_dump(content))).startswith(message)


def test_every_contradiction_that_is_looked_for_can_be_met() -> None:
    met = set()
    for given, message in CONTRADICTIONS:
        found, _ = declaration.read(GROUPS, [*TRAIN, *given.split()], "train.py", "", "", REFUSED)
        lines = list(_contradictions(Options(**found)))
        first = next(number for number, (_, wrong, _) in enumerate(lines) if wrong)
        assert f"{lines[first][0]} {lines[first][2]}".startswith(message)
        met.add(first)
    assert met == set(range(len(lines)))


def test_the_length_is_in_iterations_or_in_epochs_and_the_command_line_decides(tmp_path: Path) -> None:
    assert (parse(TRAIN).total_iters, parse(TRAIN).epochs) == (300_000, None)
    epochs = parse([*TRAIN, "--epochs", "2.5", "--batch-size", "8"])
    assert epochs.epochs == 2.5
    resolved = with_length(epochs, 100)
    assert (resolved.total_iters, resolved.epochs) == (31, None)
    assert with_length(parse([*TRAIN, "--epochs", "0.001"]), 100).total_iters == 1
    assert with_length(parse([*TRAIN, "--total-iters", "7"]), 100).total_iters == 7
    in_epochs = parse([*TRAIN, *config(tmp_path, "total-iters: 7"), "--epochs", "2"])
    assert (in_epochs.epochs, in_epochs.total_iters) == (2, 0)
    in_iterations = parse([*TRAIN, *config(tmp_path, "epochs: 2"), "--total-iters", "7"])
    assert (in_iterations.epochs, in_iterations.total_iters) == (None, 7)
    assert "--epochs and --total-iters" in refusal(*TRAIN, *config(tmp_path, "epochs: 2\ntotal-iters: 7"))
    # What a run writes down can be read again.
    assert parse([*TRAIN, *config(tmp_path, to_yaml(resolved))]).total_iters == 31


def test_an_experiment_is_a_folder_in_save(tmp_path: Path) -> None:
    named = parse([*TRAIN, "--experiment", "first"])
    assert Path(named.save) == Path("models/first")
    assert Path(parse([*TRAIN, "--experiment", "first", "--save", "there"]).save) == Path("there/first")
    assert Path(parse([*TRAIN, *config(tmp_path, "experiment: 7\nsave: there")]).save) == Path("there/7")
    assert Path(parse(TRAIN).save) == Path("models")
    again = parse(config(tmp_path, to_yaml(named)))  # not a folder in that folder
    assert Path(again.save) == Path(named.save)


def test_a_data_dir_stands_for_its_two_folders(tmp_path: Path) -> None:
    def folders(*given: str) -> tuple[str, str, str]:
        options = parse(given)
        return options.train_dir, options.val_dir, options.data_dir

    assert folders("--data-dir", "D") == ("D/train", "D/val", "")
    assert folders("--data-dir", "D", "--val-dir", "V") == ("D/train", "V", "")
    assert folders("--data-dir", "D", "--train-dir", "T") == ("T", "D/val", "")
    assert folders("--data-dir", "D", "--val-fraction", "0.1") == ("D/train", "", "")
    assert folders("--data-dir", "D", "--eval")[1] == "D/val"
    assert folders(*config(tmp_path, "data-dir: D")) == ("D/train", "D/val", "")
    assert folders("--dataset", "cifar10", "--data-dir", "D") == ("", "", "D")
    assert refusal("--dataset", "cifar10").startswith("--data-dir is missing")
    assert refusal("--dataset", "digits", "--data-dir", "D").startswith("--data-dir is not needed")
    assert refusal("--dataset", "cifar10", "--data-dir", "D", *TRAIN).startswith("--train-dir needs --dataset folder")
    assert refusal("--val-fraction", "0.1", *TRAIN, "--val-dir", "V").startswith("--val-fraction takes the place")
    assert refusal("--dataset-download", *TRAIN).startswith("--dataset-download needs a --dataset by name")
