"""The command `shufflenetv2 schema`: a JSON schema for YAML files of options."""

import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from .. import terminal
from ..config import GROUPS, options_of
from .command import run_command
from .parser import OptionParser

DESCRIPTION = """\
Print a JSON schema for the YAML files that --config reads. Editors complete and check option names and values with it:

  shufflenetv2 schema > shufflenetv2.schema.json

and, as the first line of a YAML file (for editors with the YAML language server):

  # yaml-language-server: $schema=shufflenetv2.schema.json
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 schema") -> int:
    """Print the schema. Returns the exit status."""
    parser = OptionParser(prog, description=DESCRIPTION)

    def run() -> None:
        parser.parse(argv)
        terminal.write_result(json.dumps(build_schema(), indent=2))

    return run_command(parser, run)


def build_schema() -> dict[str, Any]:
    """Return the JSON schema, with one property for each name and each alias of an option."""
    properties: dict[str, Any] = {"base": {"type": "string", "description": "YAML file that this file builds on"}}
    for group in GROUPS.values():
        schemas = TypeAdapter(group).json_schema()["properties"]
        for option in options_of(group):
            if option.name == "config":
                continue
            schema = {key: value for key, value in schemas[option.name].items() if key not in ("title", "default")}
            if option.accepts.implied:  # `true` stands for the implied value
                schema = {"anyOf": [schema, {"type": "boolean"}]}
            text = re.sub("`([a-z_]+)`", lambda name: name[1].replace("_", "-"), option.help)
            # The help text of an option that is on by default describes its negation.
            schema["description"] = f"false: {text}" if option.is_switch and option.default else text
            if option.is_set_by_default:
                schema["default"] = option.default
            properties[option.key] = schema
            for alias in option.aliases:
                properties[alias[2:]] = {**schema, "description": f"same as {option.key}"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Options of shufflenetv2 train",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
