"""docs/features.md names every option, and no option that does not exist; every option can be given in a YAML file."""

import re
from pathlib import Path

import pytest

from shufflenetv2.cli.command import parse
from shufflenetv2.cli.peers import ANSWERS
from shufflenetv2.config import COMMAND_GROUPS, OPTIONS, options_of
from tests.support import ROOT
from tests.test_options import refusal

DOCUMENT = (ROOT / "docs/features.md").read_text()
ROWS = [row.split("|")[1:4] for row in DOCUMENT.splitlines() if row.startswith("| ")][1:]  # capability, options, remarks
OPTIONS_COLUMN = {name for _, options, _ in ROWS for name in re.findall(r"`(--[a-z0-9-]+)`", options)}
ALIASES = {alias for option in OPTIONS for alias in option.aliases}
COMMAND_OPTIONS = {f"--{prefix}{option.key}" for option in options_of(*COMMAND_GROUPS) for prefix in ("", "no-")}
NEGATED_SWITCHES = {f"--no-{option.key}" for option in OPTIONS if option.is_switch}


def test_the_options_column_lists_exactly_the_options_of_training() -> None:
    assert {"--" + option.key for option in OPTIONS} == OPTIONS_COLUMN


@pytest.mark.parametrize("key", [option.key for option in OPTIONS if option.name != "config"])
def test_an_option_can_be_given_in_a_file_and_its_value_is_checked(key: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"{key}: ['']\n")  # no option accepts an empty value
    message = refusal("--config", str(tmp_path / "c.yaml"))
    assert message.startswith(f"{key} in {tmp_path / 'c.yaml'}")
    assert ": must be " in message


def test_the_remarks_name_every_alias_and_no_unknown_option() -> None:
    names = set(re.findall(r"`(--[a-z0-9_-]+)`", DOCUMENT))
    existing = OPTIONS_COLUMN | ALIASES | NEGATED_SWITCHES | COMMAND_OPTIONS | {f"--{name}" for name in ANSWERS}
    assert {name.replace("_", "-") for name in names} <= existing
    assert names >= ALIASES


def test_options_written_as_yaml_are_read_with_the_same_values(tmp_path: Path) -> None:
    lists_and_numbers = ["--freeze", "stem", "--hook", "a:B", "--cutmix-minmax", "0.1", "0.2", "--bn-eps", "1e-4"]
    config = parse(["--train-dir", "D", *lists_and_numbers])
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    from_yaml = parse(["--config", str(tmp_path / "c.yaml")])
    assert from_yaml.replace(config=()).values() == config.values()
