"""Options from the command line and from YAML, and what is said of wrong ones."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from shufflenetv2.config.declaration import OptionsError, flag
from shufflenetv2.config.options import Options, fields, parse, to_yaml

ROOT = Path(__file__).parent.parent


def refusal(*arguments: str) -> str:
    with pytest.raises(OptionsError) as caught:
        parse(arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_defaults_are_the_reference() -> None:
    options = parse(["--train-dir", "D"])
    assert (options.batch_size, options.total_iters, options.learning_rate) == (1024, 300_000, 0.5)
    assert (options.momentum, options.weight_decay, options.label_smooth) == (0.9, 4e-5, 0.1)
    assert (options.input_size, options.resize_size, options.scale, options.ratio) == (224, 256, (0.08, 1), (3 / 4, 4 / 3))
    assert (options.color_jitter, options.hflip, options.mean, options.std) == ((0.4,) * 3, 0.5, (0,) * 3, (1,) * 3)
    assert options.auto_continue


def test_the_learning_rate_follows_the_batch_size_unless_given() -> None:
    assert parse(["--train-dir", "D", "--batch-size", "64"]).learning_rate == 0.5 * 64 / 1024
    assert parse(["--train-dir", "D", "--batch-size", "64", "--learning-rate", "0.3"]).learning_rate == 0.3


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("batch-size: 8\nlabel_smooth: 2e-1\nscale: [0.5, 1]\ntrain-dir: D\nweight-decay:\n")
    options = parse(["-c", str(tmp_path / "c.yaml"), "--batch-size", "16"])
    assert (options.batch_size, options.label_smooth, options.scale, options.weight_decay) == (16, 0.2, (0.5, 1.0), 4e-5)
    assert options.given == {"config", "batch_size"}  # those of the command line


@pytest.mark.parametrize(
    ("arguments", "value"),
    [([], True), (["--auto-continue"], True), (["--no-auto-continue"], False), (["--auto-continue", "False"], False)],
)
def test_a_switch_has_all_its_old_spellings(arguments: list[str], value: bool) -> None:
    assert parse(["--train-dir", "D", *arguments]).auto_continue is value


def test_the_options_of_a_run_are_themselves_a_config(tmp_path: Path) -> None:
    options = parse(["--train-dir", "a: b # c é " * 20, "--scale", "0.3", "0.9", "--no-auto-continue", "--color-jitter", "0.1"])
    (tmp_path / "options.yaml").write_text(to_yaml(options))
    again = parse(["--config", str(tmp_path / "options.yaml")])
    assert dataclasses.replace(again, config="", given=frozenset()) == dataclasses.replace(options, given=frozenset())


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_parses_and_says_what_it_was_measured_to_give(path: Path) -> None:
    own = [] if "digits" in path.name else ["--train-dir", "D"]
    options = parse(["--config", str(path), *own])
    head = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert "easured" in head
    if "imagenet" in path.name:
        assert options.model_size in path.name
        reference = parse(["--train-dir", "D", "--model-size", options.model_size])
        assert {f.name: getattr(options, f.name) for f in fields() if f.name != "config"} == {
            f.name: getattr(reference, f.name) for f in fields() if f.name != "config"
        }


def test_every_option_is_in_the_help_with_a_text_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in fields():
        assert field.metadata["text"].split(";")[0].replace("  ", " ")[:30] in text
        assert flag(field.name) in text or "--no-" + flag(field.name)[2:] in text
    assert {field.name for field in fields()} == {field.name for field in dataclasses.fields(Options)} - {"given"}


def test_nothing_to_train_on_names_the_digits_as_the_thing_to_try() -> None:
    assert "--train-dir is missing" in refusal()
    assert "--config configs/digits.yaml" in refusal()
    assert "--val-dir is missing" in refusal("--eval")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--batch-size", "-3"], ["--batch-size -3", "at least 1"]),
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
        (["--scale", "0.5", "2"], ["--scale 0.5 2", "at most 1"]),
        (["--config", "absent.yaml"], ["absent.yaml", "No such file"]),
        (["--dataset", "digits"], ["--train-dir", "--dataset folder"]),
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
        ("batch-size: [1, 2]", ["batch-size in", "at least 1"]),
        ("- a\n- b", ["option: value"]),
        ("a: b: c", ["not YAML, line 1"]),
        ("config: other.yaml", ["'config'"]),
        ("lr: 0.1\nlearning-rate: 0.2", ["'learning-rate'", "again"]),
        ("save: 2024-13-45", ["not YAML"]),
    ],
)
def test_a_wrong_file_gets_one_line_that_names_the_culprit(tmp_path: Path, content: str, parts: list[str]) -> None:
    (tmp_path / "c.yaml").write_text(content)
    message = refusal("--train-dir", "D", "--config", str(tmp_path / "c.yaml"))
    assert all(part in message for part in (*parts, "c.yaml")), message


def test_an_option_that_may_stand_alone_may_be_true_in_a_file(tmp_path: Path) -> None:
    for said, meant in (("true", "inductor"), ("false", ""), ("eager", "eager")):
        (tmp_path / "c.yaml").write_text(f"torchcompile: {said}\n")
        assert parse(["--train-dir", "D", "--config", str(tmp_path / "c.yaml")]).torchcompile == meant


def test_the_file_of_options_is_plain_yaml() -> None:
    content = yaml.safe_load(to_yaml(parse(["--train-dir", "D"])))
    assert content["model-size"] == "1.5x"
    assert content["scale"] == [0.08, 1.0]
