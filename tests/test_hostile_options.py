"""Options and YAML files that are wrong on purpose: each is refused with one line, at once."""

import os
from pathlib import Path

import pytest

from shufflenetv2 import ShuffleNetV2, UserError
from shufflenetv2.cli.command import parse, training_parser
from shufflenetv2.config import Config, read_yaml
from shufflenetv2.data.policies import parse_policy
from shufflenetv2.recipe import build_schedule, parameter_groups
from shufflenetv2.recipe.optimizers import build_optimizer

DIGITS = ["--dataset", "digits"]


def refusal(*arguments: str) -> str:
    """Return the message for wrong options as the user sees it."""
    parser = training_parser()
    with pytest.raises(UserError) as caught:
        parse([*DIGITS, *arguments], parser)
    assert caught.value.status == 2
    message = parser.spell(str(caught.value))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "1e308"], "--lr 1e308: must be a number above 0, at most 1e6"),
        (["--lr", "1e400"], "--lr 1e400: must be a number above 0, at most 1e6"),
        (["--weight-decay", "inf"], "--weight-decay inf: must be a number of at least 0, at most 1e6"),
        (["--total-iters", "9" * 400], "... (400 characters): must be a whole number of at least 1, below 2**53"),
        (["--total-iters", "9" * 5000], "... (5,000 characters): must be a whole number of at least 1, below 2**53"),
        (["--epochs", "9" * 400], "... (400 characters): must be a number above 0, at most 1e6"),
        (["--warmup-iters", str(2**60)], "must be a whole number from 0 to below 2**53"),
        (["--save-interval", "9" * 400 + "h"], "must be a whole number of at least 1, a time like 90s"),
        (["--save-interval", str(2**60)], "must be a whole number of at least 1, a time like 90s"),
        (["--input-size", "1000000000"], "--input-size 1000000000: must be a whole number of pixels from 16 to 8192, or"),
        (["--input-size", "64", "9000"], "--input-size 64 9000: must be a whole number of pixels from 16 to 8192, or"),
        (["--crop-pct", "1e-300"], "--crop-pct 1e-300: must be a number from 0.01 to 1"),
        (["--input-size", "8000", "--crop-pct", "0.5"], "--input-size / --crop-pct is 16000, more than 8192 pixels"),
        (["--workers", "100000"], "--workers 100000: must be a whole number from 1 to 1024"),
        (["-b", "10000000000"], "-b 10000000000: must be a whole number of at least 1, at most 1048576, or auto"),
        (["--reprob", "1", "--recount", str(10**12)], "--recount 1000000000000: must be a whole number from 1 to 1000"),
        (["--aug-repeats", "5000"], "--aug-repeats 5000: must be a whole number from 1 to 1000"),
        (["--std", "1e-300"], "--std 1e-300: must be one number from 1e-37 to 1e6, or three"),
        (["--mean", "1e300"], "--mean 1e300: must be one number from -1e6 to 1e6, or three"),
        (["--ratio", "1e-300", "1"], "--ratio 1e-300 1: must be two numbers from 0.01 to 100"),
        (
            ["--sched", "cosine", "--lr-cycle-limit", str(10**9)],
            "--lr-cycle-limit 1000000000: must be a whole number from 1 to 300",
        ),
        (["--lr-cycle-mul", "1000"], "--lr-cycle-mul 1000: must be a number from 0.1 to 10"),
        (["--save", "a\0b"], "--save a\0b: must be a folder name"),
        (["--" + "x" * 100_000], "unknown option"),
        (["--sched", "x" * 100_000], "... (100,000 characters): must be one of linear"),
    ],
)
def test_numbers_with_which_no_run_could_end_well_are_refused_by_their_option(arguments: list[str], message: str) -> None:
    assert message in refusal(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1, 2]\nb: *x\n", "line 2: aliases (*NAME) are not accepted; repeat the value"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "line 2: aliases"),
        ("a: &a [*a]\n", "line 1: aliases"),
        ("a: " + "[" * 2000 + "]" * 2000, "line 1: more than 10 levels are not accepted"),
        ("a:\n" + "".join(" " * level + "-\n" for level in range(200)), "more than 10 levels are not accepted"),
        ("lr: 0x" + "f" * 5000, ", line 1: this is not YAML ("),
        ("lr: " + "9" * 5000, ", line 1: this is not YAML ("),
        ("lr: 1" + ":59" * 5000, ", line 1: this is not YAML ("),
        ("lr: !!timestamp x", "is not YAML"),
        ("? [a]\n: 1", "is not YAML"),
        ("lr: !!python/object/apply:os.system [ls]", ", line 1: this is not YAML ("),
        ("save: !!binary x", "is not YAML"),
        ("#" * 300_000, "has more than 262,144 bytes"),
        ("? " + "x" * 200_000 + "\n: 1", "... (200,000 characters)' in"),
        ('"a\\0b": 1', "unknown option 'a\\x00b'"),
        ('base: "a\\0b"', "is not the name of a file"),
        ('initial-checkpoint: "a\\0b"', "must be a file name"),
        ("batch-size: {a: {b: {c: d}}}", "must be a whole number of at least 1"),
        ("freeze: [[[stem]]]\nlr: [[1]]", "lr in"),
    ],
)
def test_yaml_that_multiplies_nests_or_is_no_options_is_refused_at_once(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert message in refusal("--config", str(tmp_path / "c.yaml"))


def test_only_regular_files_are_read_as_options(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # nothing writes to it, so that opening it would wait for ever
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    for name, message in (
        (tmp_path / "fifo", "it is a FIFO (named pipe), not a file"),
        ("/dev/zero", "it is a device, not a file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "absent", "No such file"),
        (tmp_path / "binary", "is not YAML"),
        ("x" * 5000, "File name too long"),
    ):
        assert message in refusal("--config", str(name))


def test_a_long_chain_of_base_files_is_refused(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml\n")
    assert "more than 20 files that build on each other" in refusal("--config", str(tmp_path / "0.yaml"))


@pytest.mark.parametrize("folder", ["a\nlr: 5", "a\x1b[31m", "a\u2028b", 'a"\\\t', "\udcff\udc80", "\u202eabc", "#a: b"])
def test_a_folder_of_any_name_survives_the_file_of_options(tmp_path: Path, folder: str) -> None:
    config = parse([*DIGITS, "--save", folder, "--experiment", folder])
    (tmp_path / "options.yaml").write_text(config.to_yaml(), encoding="utf-8")
    again = parse(["--config", str(tmp_path / "options.yaml")])
    assert again.common.save == os.path.join(folder, folder)
    assert again.optimization == config.optimization
    assert read_yaml(tmp_path / "options.yaml")["dataset"] == "digits"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("rand-m9-n100000000", "n must be a whole number from 1 to 100"),
        ("augmix-w1000000", "w must be a whole number from 1 to 100"),
        ("augmix-d1000000", "d must be a whole number from 0 to 100"),
        ("rand-m" + "9" * 400, "m must be a whole number from 0 to 1000"),
        ("v0-mstd" + "9" * 400, "mstd must be a number from 0 to 1000"),
    ],
)
def test_policies_that_would_never_end_are_refused(policy: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_policy(policy)


@pytest.mark.parametrize("value", ["9" * 400, "1e999", "(" * 5000, "-" * 100_000 + "1"])
def test_arguments_of_an_optimizer_that_are_no_usable_numbers_are_refused(value: str) -> None:
    config = parse([*DIGITS, "--opt", "adamw", "--lr", "0.1", "--opt-kwargs", f"initial_accumulator={value}"])
    with pytest.raises(UserError) as caught:
        build_optimizer(ShuffleNetV2(32, 3, "0.5x"), config.optimization, config.fine_tuning)
    assert "\n" not in str(caught.value)
    config = parse([*DIGITS, "--opt-kwargs", f"dampening={value}"])
    with pytest.raises(UserError, match="the value must be"):
        build_optimizer(ShuffleNetV2(32, 3, "0.5x"), config.optimization, config.fine_tuning)


def test_a_rate_that_grows_without_bound_is_refused() -> None:
    config = parse([*DIGITS, "--sched", "step", "--decay-rate", "10", "--decay-iters", "1", "--total-iters", "100000"])
    network = ShuffleNetV2(32, 3, "0.5x")
    optimizer = build_optimizer(network, config.optimization, config.fine_tuning)
    with pytest.raises(UserError, match="`decay_rate` 10 raises the learning rate to more than 1e"):
        build_schedule(optimizer, config.schedule, 100_000)
    assert parameter_groups(network, 0.1)


def test_python_values_are_refused_like_texts() -> None:
    nested: list[object] = []
    nested.append(nested)
    for values in ({"seed": 10**5000}, {"lr_noise": nested}, {"decay_milestones": [10**5000]}):
        with pytest.raises(UserError):
            Config.from_values({"dataset": "digits", "sched": "multistep", **values})
