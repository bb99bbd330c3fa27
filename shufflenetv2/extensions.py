"""Code of the user that options name as `package.module:Name`: hooks, data sets, transforms, losses."""

import importlib
import inspect
import os
import sys
from typing import Any

from .errors import UserError, one_line


def is_reference(text: str) -> bool:
    """Return whether a text has the form package.module:Name."""
    module_name, _, name = text.partition(":")
    return name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))


def load_object(option: str, reference: str) -> Any:
    """Import the class or function that 'package.module:Name' names; modules are searched in the working directory, too.

    Args:
        option: name of the option, for messages.

    Raises:
        UserError: the text has another form, the module cannot be imported, or has no such name.
    """
    if not is_reference(reference):
        raise UserError(f"`{option}` {reference}: must have the form package.module:Name")
    module_name, _, name = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"`{option}` {reference}: {one_line(error)}") from error
    if not hasattr(module, name):
        raise UserError(f"`{option}` {reference}: {module_name} has no {name}")
    return getattr(module, name)


def create(option: str, reference: str, *arguments: Any) -> Any:
    """Call the class or function that 'package.module:Name' names, and return the result.

    Raises:
        UserError: see `load_object`; or it does not take these arguments.
    """
    factory = load_object(option, reference)
    try:
        inspect.signature(factory).bind(*arguments)
    except (TypeError, ValueError) as error:
        described = f"{len(arguments)} arguments" if arguments else "no arguments"
        raise UserError(f"`{option}` {reference}: {error}; it is called with {described}") from error
    return factory(*arguments)
