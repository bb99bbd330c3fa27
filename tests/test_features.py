"""docs/features.md promises nothing that is not there, and leaves nothing out."""

import re
from pathlib import Path

import pytest

from shufflenetv2.config import declaration
from shufflenetv2.config.declaration import SWITCH, OptionsError, flag
from shufflenetv2.config.options import GROUPS, REFUSED, Options, fields, parse
from tests.support import ROOT

TABLE = [row.split("|")[1:4] for row in (ROOT / "docs/features.md").read_text().splitlines() if row.startswith("| ")][1:]
PROMISED = {name for _, options, _ in TABLE for name in re.findall(r"`(--[a-z0-9-]+)`", options)}
BY_FLAG = {flag(field.name): field for field in fields()}
TESTS = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py") if path != Path(__file__))


def test_every_option_is_in_the_table() -> None:
    assert set(BY_FLAG) == PROMISED


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_an_option_is_what_the_table_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    field = BY_FLAG[name]
    assert any(field.name in group.__dataclass_fields__ for group in GROUPS)
    assert hasattr(Options(), field.name)  # has a default
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert name in shown or "--no-" + name[2:] in shown
    assert len(field.metadata["text"]) > 10
    bare = f"--no-{name[2:]}" if field.metadata["kind"] is SWITCH and field.default else name
    assert re.search(rf'"{bare}[" =]', TESTS), f"no test gives {bare}"


@pytest.mark.parametrize("name", sorted(PROMISED - {"--config"}))
def test_an_option_can_be_given_in_a_file(name: str, tmp_path: Path) -> None:
    """And its value is looked at: no option takes an empty one."""
    (tmp_path / "c.yaml").write_text(f"{name[2:]}: ['']\n")
    with pytest.raises(OptionsError, match=re.escape(f"{name[2:]} in ") + ".*: must be "):
        parse(["--config", str(tmp_path / "c.yaml"), "--train-dir", "D"])


def test_every_other_name_in_the_table_is_known() -> None:
    text = (ROOT / "docs/features.md").read_text()
    aliases = {alias for field in fields() for alias in field.metadata["aliases"]}
    switches = {f"--no-{flag(field.name)[2:]}" for field in fields() if field.metadata["kind"] is SWITCH}
    known = set(BY_FLAG) | aliases | switches | {f"--{name}" for name in REFUSED}
    assert {name.replace("_", "-") for name in re.findall(r"`(--[a-z0-9_-]+)`", text)} <= known
    assert aliases <= set(re.findall(r"`(--[a-z0-9_-]+)`", text))


def test_a_file_of_every_option_gives_them_back(tmp_path: Path) -> None:
    options = parse(
        ["--train-dir", "D", "--freeze", "stem", "--hook", "a:B", "--cutmix-minmax", "0.1", "0.2", "--bn-eps", "1e-4"]
    )
    (tmp_path / "c.yaml").write_text(declaration.to_yaml(GROUPS, options))
    again = parse(["--config", str(tmp_path / "c.yaml")])
    for field in fields():
        if field.name != "config":
            assert getattr(again, field.name) == getattr(options, field.name), field.name
