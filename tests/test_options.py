"""Options from the command line and from YAML files, and the messages about wrong ones."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from shufflenetv2 import UserError
from shufflenetv2.cli.command import parse, training_parser
from shufflenetv2.cli.parser import OptionParser
from shufflenetv2.cli.schema import main as print_schema
from shufflenetv2.config import OPTIONS, Config, group, option
from shufflenetv2.config.types import Count, File, Names
from tests.support import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def refusal(*arguments: str) -> str:
    """Return the message for wrong options as the user sees it."""
    parser = training_parser()
    with pytest.raises(UserError) as caught:
        parse(arguments, parser)
    assert caught.value.status == 2
    message = parser.spell(str(caught.value))
    assert "\n" not in message
    assert "`" not in message
    return message


def test_the_defaults_are_the_reference() -> None:
    config = parse(["--train-dir", "D"])
    optimization, data, augmentation = config.optimization, config.data, config.augmentation
    assert (optimization.batch_size, optimization.total_iters, optimization.learning_rate) == (1024, 300_000, 0.5)
    assert (optimization.momentum, optimization.weight_decay, optimization.label_smooth) == (0.9, 4e-5, 0.1)
    assert (data.input_size, data.resize_size, augmentation.scale, augmentation.ratio) == (224, 256, (0.08, 1), (3 / 4, 4 / 3))
    assert (augmentation.color_jitter, augmentation.hflip, data.mean, data.std) == ((0.4,) * 3, 0.5, (0,) * 3, (1,) * 3)
    assert config.run.auto_continue


def test_the_learning_rate_follows_the_batch_size_unless_given() -> None:
    assert parse(["--train-dir", "D", "--batch-size", "64"]).optimization.learning_rate == 0.5 * 64 / 1024
    assert parse(["--train-dir", "D", "--batch-size", "64", "--learning-rate", "0.3"]).optimization.learning_rate == 0.3


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("batch-size: 8\nlabel_smooth: 2e-1\nscale: [0.5, 1]\ntrain-dir: D\nweight-decay:\n")
    config = parse(["-c", str(tmp_path / "c.yaml"), "--batch-size", "16"])
    assert config.optimization.batch_size == 16
    assert (config.optimization.label_smooth, config.augmentation.scale, config.optimization.weight_decay) == (
        0.2,
        (0.5, 1.0),
        4e-5,
    )
    assert config.explicit == {"config", "batch_size"}  # those of the command line


@pytest.mark.parametrize(
    ("arguments", "value"),
    [([], True), (["--auto-continue"], True), (["--no-auto-continue"], False), (["--auto-continue", "False"], False)],
)
def test_a_switch_has_all_its_old_spellings(arguments: list[str], value: bool) -> None:
    assert parse(["--train-dir", "D", *arguments]).run.auto_continue is value


def without_source(config: Config) -> Config:
    return dataclasses.replace(config.replace(config=()), explicit=frozenset())


def test_the_options_of_a_run_are_themselves_a_config(tmp_path: Path) -> None:
    config = parse(["--train-dir", "a: b # c é " * 20, "--scale", "0.3", "0.9", "--no-auto-continue", "--color-jitter", "0.1"])
    (tmp_path / "options.yaml").write_text(config.to_yaml())
    again = parse(["--config", str(tmp_path / "options.yaml")])
    assert without_source(again) == without_source(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_accepted(path: Path) -> None:
    data = [] if "digits" in path.name else ["--train-dir", "D"]
    config = parse(["--config", str(path), *data])
    assert config.optimization.learning_rate > 0


@pytest.mark.parametrize("size", ["0.5x", "1.0x", "1.5x", "2.0x"])
def test_the_imagenet_config_is_the_reference_for_every_size(size: str) -> None:
    arguments = ["--train-dir", "D", "--model-size", size, "--experiment", "imagenet"]
    from_file = parse(["--config", str(ROOT / "configs/imagenet.yaml"), *arguments])
    assert without_source(from_file.with_length(1000)) == without_source(parse(arguments).with_length(1000))


def test_every_option_is_in_the_help_with_a_text_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "`" not in text
    for declared in OPTIONS:
        assert declared.help.split("`")[0].split(";")[0][:30] in text
        assert f"--{declared.key}" in text or f"--no-{declared.key}" in text


def test_without_images_the_digits_are_suggested() -> None:
    assert "--train-dir is missing" in refusal()
    assert "--config configs/digits.yaml" in refusal()
    assert "--val-dir is missing" in refusal("--eval")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--batch-size", "-3"], ["--batch-size -3", "at least 1"]),
        (["-b", "-3"], ["-b -3", "at least 1"]),
        (["--lr", "0"], ["--lr 0", "above 0"]),
        (["--batch-size", "2.5"], ["--batch-size 2.5", "whole number"]),
        (["--batch-size"], ["--batch-size"]),
        (["--learning-rate", "nan"], ["--learning-rate nan", "above 0"]),
        (["--label-smooth", "1"], ["--label-smooth 1"]),
        (["--model-size", "3x"], ["--model-size 3x", "0.5x, 1.0x, 1.5x, 2.0x"]),
        (["--scale", "0.9", "0.1"], ["--scale 0.9 0.1", "smaller"]),
        (["--scale", "0.9"], ["--scale"]),
        (["--color-jitter", "1", "2"], ["--color-jitter 1 2", "or three"]),
        (["--resize-size", "100"], ["--resize-size 100", "--input-size 224"]),
        (["--auto-continue", "perhaps"], ["--auto-continue perhaps", "true or false"]),
        (["--trian-dir", "D"], ["--trian-dir", "did you mean --train-dir?"]),
        (["--xyzzy"], ["--xyzzy", "--help"]),
        (["--eval-resume", "x"], ["--eval-resume", "--eval"]),
        (["--save", ""], ["--save", "folder name"]),
        (["--seed", "99999999999999999999"], ["2**63"]),
        (["--scale", "0.5", "2"], ["--scale 0.5 2", "from 0.01 to 1"]),
        (["--config", "absent.yaml"], ["absent.yaml", "No such file"]),
        (["--dataset", "digits"], ["--train-dir", "--dataset folder"]),
        (["--tta", "3"], ["--tta 3", "one of 1, 2, 5, 10"]),
        (["--sched", "cosin"], ["--sched cosin", "did you mean cosine?"]),
        (["--save-interval", "0m"], ["--save-interval 0m", "90s, 10m or 2h"]),
        (["--save-interval", "0,10m"], ["--save-interval 0,10m", "both like 10000,10m"]),
        (["--save-interval", "10m,100"], ["--save-interval 10m,100", "both like 10000,10m"]),
    ],
)
def test_wrong_use_gets_one_line_that_names_the_culprit(arguments: list[str], parts: list[str]) -> None:
    message = refusal("--train-dir", "D", *arguments)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("batchsize: 3", ["'batchsize'", "did you mean batch-size?"]),
        ("batch-size: -3", ["batch-size in", "at least 1"]),
        ("batch_size: true", ["batch_size in", "at least 1"]),
        ("lr: -3", ["lr in", "above 0"]),
        ("batch-size: [1, 2]", ["batch-size in", "at least 1"]),
        ("- a\n- b", ["option: value"]),
        ("a: b: c", ["line 1: this is not YAML (mapping values are not allowed here)"]),
        ("config: other.yaml", ["'config'", "'base'"]),
        ("lr: 0.1\nlearning-rate: 0.2", ["'learning-rate'", "second time"]),
        ("save: 2024-13-45", ["not YAML"]),
        ("base: absent.yaml", ["absent.yaml cannot be read"]),
        ("jsd: true", ["jsd in", "--aug-splits"]),
    ],
)
def test_a_wrong_file_gets_one_line_that_names_the_culprit(tmp_path: Path, content: str, parts: list[str]) -> None:
    (tmp_path / "c.yaml").write_text(content)
    message = refusal("--train-dir", "D", "--config", str(tmp_path / "c.yaml"))
    assert all(part in message for part in (*parts, str(tmp_path))), message


def test_an_option_that_may_stand_alone_may_be_true_in_a_file(tmp_path: Path) -> None:
    for value, backend in (("true", "inductor"), ("false", ""), ("eager", "eager")):
        (tmp_path / "c.yaml").write_text(f"torchcompile: {value}\n")
        config = parse(["--train-dir", "D", "--config", str(tmp_path / "c.yaml")])
        assert config.execution.torchcompile == backend


def test_the_file_of_options_is_plain_yaml() -> None:
    content = yaml.safe_load(parse(["--train-dir", "D"]).to_yaml())
    assert content["model-size"] == "1.5x"
    assert content["scale"] == [0.08, 1.0]


def test_later_files_win_and_a_file_builds_on_its_base(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text("train-dir: D\nseed: 1\nhflip: 0.1\nvflip: 0.1\nepochs: 3\n")
    (tmp_path / "sub/child.yaml").write_text("base: ../base.yaml\nseed: 2\nhflip: 0.2\ntotal-iters: 7\n")
    (tmp_path / "last.yaml").write_text("seed: 3\n")
    config = parse(["--config", str(tmp_path / "sub/child.yaml"), "--config", str(tmp_path / "last.yaml")])
    assert (config.optimization.seed, config.augmentation.hflip, config.augmentation.vflip) == (3, 0.2, 0.1)
    assert (config.optimization.total_iters, config.optimization.epochs) == (7, None)
    other_order = parse(["--config", str(tmp_path / "last.yaml"), "--config", str(tmp_path / "sub/child.yaml")])
    assert other_order.optimization.seed == 2
    assert parse(["--config", str(tmp_path / "sub/child.yaml"), "--seed", "4"]).optimization.seed == 4


def test_a_message_names_the_file_of_each_option(tmp_path: Path) -> None:
    (tmp_path / "mixes.yaml").write_text("mixup: 0.2\n")
    (tmp_path / "splits.yaml").write_text("aug-splits: 3\n")
    message = refusal("--config", str(tmp_path / "mixes.yaml"), "--config", str(tmp_path / "splits.yaml"), "--train-dir", "D")
    assert f"mixup in {tmp_path / 'mixes.yaml'}" in message
    assert f"aug-splits in {tmp_path / 'splits.yaml'}" in message


def test_a_circle_of_base_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    (tmp_path / "c.yaml").write_text("base: c.yaml\n")
    assert "a.yaml -> b.yaml -> a.yaml" in refusal("--config", str(tmp_path / "a.yaml"))
    assert "c.yaml -> c.yaml" in refusal("--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_learning_rate_of_a_config_is_scaled_to_another_batch_size(path: Path, tmp_path: Path) -> None:
    given = ["--config", str(path), *([] if "digits" in path.name else ["--train-dir", "D"])]
    original = parse(given)
    batch_size, rate = original.optimization.batch_size, original.optimization.learning_rate
    assert not original.notes
    (tmp_path / "quarter.yaml").write_text(f"batch-size: {batch_size // 4}\n")
    for change in (["--batch-size", str(batch_size // 4)], ["--config", str(tmp_path / "quarter.yaml")]):
        scaled = parse([*given, *change])
        assert scaled.optimization.learning_rate == pytest.approx(rate / 4)
        assert f"learning rate {rate / 4:g} for batch size {batch_size // 4}" in scaled.notes[0]
        assert f"{rate:g} for batch size {batch_size}" in scaled.notes[0]
    # The rate of the command line, or of a file that gives the batch size too, is for that batch size.
    explicit = parse([*given, "--batch-size", str(batch_size // 4), "--lr", "0.1"])
    assert (explicit.optimization.learning_rate, explicit.schedule.warmup_lr) == (0.1, original.schedule.warmup_lr)
    assert not any(note.startswith("learning rate") for note in explicit.notes)
    assert parse([*given, "--batch-size", str(batch_size)]).optimization.learning_rate == rate


def test_a_learning_rate_without_a_batch_size_is_not_scaled(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train-dir: D\nlearning-rate: 0.3\n")
    config = parse(["--config", str(tmp_path / "c.yaml"), "--batch-size", "16"])
    assert (config.optimization.learning_rate, config.notes) == (0.3, ())


@pytest.fixture
def schema(capsys: pytest.CaptureFixture[str]) -> jsonschema.Draft202012Validator:
    assert print_schema([]) == 0
    content = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


def as_json(text: str) -> object:
    return json.loads(json.dumps(yaml.safe_load(text)))


def test_the_schema_accepts_every_shipped_config_and_every_file_of_options(schema: jsonschema.Draft202012Validator) -> None:
    for path in CONFIGS:
        schema.validate(as_json(path.read_text()))
    everything = ["--train-dir", "D", "--freeze", "stem", "--cutmix-minmax", "0.1", "0.2", "--save-interval", "10m"]
    schema.validate(as_json(parse(everything).to_yaml()))


@pytest.mark.parametrize(
    ("content", "valid"),
    [
        ("lr: 0.1\nbase: other.yaml\nfreeze: stem", True),
        ("color-jitter: 0.4\ntorchcompile: true\nlr-noise: 0.5", True),
        ("batchsize: 3", False),
        ("batch-size: 0", False),
        ("batch-size: [1]", False),
        ("model-size: 3x", False),
        ("scale: [0.5]", False),
        ("save-interval: 10d", False),
        ("save-interval: 500, 90s", True),
        ("tta: 3", False),
        ("config: other.yaml", False),
    ],
)
def test_the_schema_refuses_unknown_names_and_values(
    schema: jsonschema.Draft202012Validator, content: str, valid: bool
) -> None:
    assert schema.is_valid(as_json(content)) is valid


@group("sample")
class SampleConfig:
    """Options of a command that exists in this test only."""

    source: File = option(..., "file to read", positional=True)
    target: File = option("", "file to write", positional=True)
    top: Count = option(5, "number of lines", short="-n", aliases=("--lines",))
    tag: Names = option((), "tags")
    fold: bool = option(True, "do not fold")
    quiet: bool = option(False, "print less")


def sample(*arguments: str) -> SampleConfig:
    parser = OptionParser("sample", SampleConfig, description="Sample.")
    try:
        return parser.parse_group(SampleConfig, arguments)
    except UserError as error:
        raise UserError(parser.spell(str(error))) from None


def test_any_command_declares_its_options_as_a_group() -> None:
    assert sample("in") == SampleConfig(source="in")
    everything = SampleConfig(source="in", target="out", top=3, tag=("a", "b"), fold=False)
    assert sample("in", "out", "--lines", "3", "--tag", "a", "--tag", "b", "--no-fold") == everything
    assert sample("-n3", "--tag=a", "--tag=b", "--no-fold", "in", "out") == everything
    assert sample("--quiet", "in") == sample("in", "--quiet") == SampleConfig(source="in", quiet=True)
    assert sample("--quiet", "false", "in") == sample("--quiet=false", "in") == SampleConfig(source="in")
    assert sample("--fold=false", "in", "-n", "3", "out", "--tag", "a", "b") == everything


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SOURCE missing; --help shows how to use the command"),
        (["in", "--tpo", "3"], "unknown option '--tpo' on the command line; did you mean --top?"),
        (["--liens", "3"], "unknown option '--liens' on the command line; did you mean --lines?"),
        (["in", "-n", "0"], "-n 0: must be a whole number of at least 1, below 2**53"),
        (["in", "--lines", "x"], "--lines x: must be a whole number of at least 1, below 2**53"),
        (["in", "out", "more"], "unexpected argument 'more' on the command line"),
        (["in", ""], "TARGET '': must be a file name"),
    ],
)
def test_any_command_refuses_wrong_use_with_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        sample(*arguments)
    assert str(caught.value) == message
