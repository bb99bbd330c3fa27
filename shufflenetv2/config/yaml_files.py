"""Reading YAML files that somebody else may have written: no aliases, and limits of size and depth."""

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import Node, ScalarNode

from ..errors import UserError
from ..files import TooLargeFileError, describe_error, read_regular_file

MAX_BYTES = 2**18
MAX_DEPTH = 10
MAX_DIGITS = 400
MAX_PROBLEM = 100  # characters of the parser's explanation, which may contain any part of the file


class RefusedYAMLError(yaml.MarkedYAMLError):
    """Valid YAML that a file of options has no use for."""


class _Loader(yaml.SafeLoader):
    """YAML's plain types without aliases, which can stand for any number of values, and without deep nesting."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise RefusedYAMLError(problem="aliases (*NAME) are not accepted; repeat the value", problem_mark=mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise RefusedYAMLError(problem=f"more than {MAX_DEPTH} levels are not accepted", problem_mark=mark)
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_yaml_int(self, node: ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:  # Python refuses to show integers of more than 4,300 digits
            raise ConstructorError(problem="a number with too many digits", problem_mark=node.start_mark)
        number: int = super().construct_yaml_int(node)
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """Return the mapping in a YAML file; {} for an empty file.

    Raises:
        UserError: for anything but a regular file with a YAML mapping, or for aliases, deep nesting, or more than MAX_BYTES.
    """
    text = _read_bytes(path)
    try:
        content = yaml.load(text.decode(), _Loader)
    except RefusedYAMLError as error:
        raise UserError(f"{path}{_place(error)}: {error.problem}") from None
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:  # not UTF-8, an impossible date, ...
        problem = getattr(error, "problem", None) or "it is not UTF-8 text, or a value is impossible"
        raise UserError(f"{path}{_place(error)}: this is not YAML ({problem[:MAX_PROBLEM]})") from None
    if not isinstance(content or {}, dict):
        raise UserError(f"{path} is not a list of 'option: value' lines")
    return dict(content or {})


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _read_bytes(path: str | Path) -> bytes:
    try:
        return read_regular_file(path, MAX_BYTES)
    except TooLargeFileError:
        raise UserError(f"{path} is no file of options: it has more than {MAX_BYTES:,} bytes") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {describe_error(error)}") from None
