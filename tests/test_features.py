"""The table in docs/features.md and the options of the program agree."""

import re
from pathlib import Path

import pytest

from shufflenetv2.cli.command import REFUSED, parse
from shufflenetv2.config import OPTIONS
from tests.support import ROOT
from tests.test_options import refusal

DOCUMENT = (ROOT / "docs/features.md").read_text()
TABLE = [row.split("|")[1:4] for row in DOCUMENT.splitlines() if row.startswith("| ")][1:]
PROMISED = {name for _, options, _ in TABLE for name in re.findall(r"`(--[a-z0-9-]+)`", options)}
ALIASES = {alias for option in OPTIONS for alias in option.aliases}
NEGATED_SWITCHES = {f"--no-{option.key}" for option in OPTIONS if option.is_switch}


def test_the_table_lists_every_option_and_no_other() -> None:
    assert {"--" + option.key for option in OPTIONS} == PROMISED


@pytest.mark.parametrize("key", [option.key for option in OPTIONS if option.name != "config"])
def test_an_option_can_be_given_in_a_file_and_its_value_is_checked(key: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"{key}: ['']\n")  # no option accepts an empty value
    message = refusal("--config", str(tmp_path / "c.yaml"))
    assert message.startswith(f"{key} in {tmp_path / 'c.yaml'}")
    assert ": must be " in message


def test_every_other_name_in_the_document_exists() -> None:
    names = set(re.findall(r"`(--[a-z0-9_-]+)`", DOCUMENT))
    existing = PROMISED | ALIASES | NEGATED_SWITCHES | {f"--{name}" for name in REFUSED}
    assert {name.replace("_", "-") for name in names} <= existing
    assert names >= ALIASES


def test_a_file_of_every_option_gives_the_same_values_again(tmp_path: Path) -> None:
    lists = ["--freeze", "stem", "--hook", "a:B", "--cutmix-minmax", "0.1", "0.2", "--bn-eps", "1e-4"]
    config = parse(["--train-dir", "D", *lists])
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    again = parse(["--config", str(tmp_path / "c.yaml")])
    assert again.replace(config=()).values() == config.values()
