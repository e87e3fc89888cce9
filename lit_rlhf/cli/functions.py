"""Commands that are a function: its arguments are the options, its docstring the help."""

import json
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser

from lit_rlhf.cli.refusals import construct, describe, own_error, refuse_all_misfits
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.jsonargparse import read_none_as_null

Special = Mapping[str, Mapping[str, Any]]
"""Arguments that need more than a type, with `--` or with a place in the line: what `add_argument` is told of them."""
SWITCH: Mapping[str, Any] = {"type": bool, "nargs": "?", "const": True, "default": False}
"""Of an option that needs no value to be true."""
REQUEST: Mapping[str, Any] = {}
"""Of an argument that is no option, and is given all options as text."""


def call(
    function: Callable[..., None],
    words: Sequence[str],
    command: str,
    special: Special | None = None,
    *,
    places: bool = False,
) -> None:
    """Call a function with the options of a command line.

    Args:
        function: What the command does.
        words: Its options.
        command: Its name.
        special: Those that need more than a type; their help is what the docstring says.
        places: Arguments without a default have a place in the line, and no name.

    Raises:
        ConfigurationError: An option is wrong.
    """
    read_none_as_null()
    text = function.__doc__ or ""
    said = {each.arg_name: each.description for each in docstring_parser.parse(text).params}
    parser = ArgumentParser(
        prog=f"lit-rlhf {command}", description=text.split("Args:")[0], exit_on_error=False
    )
    parser.add_argument("-c", "--config", action="config", help="options in a YAML file")
    special = special or {}
    for name, options in special.items():
        if options is not REQUEST:
            parser.add_argument(name, help=said[name.removeprefix("--")], **options)
    skip: set[str | int] = {name.removeprefix("--") for name in special}
    parser.add_function_arguments(function, as_group=False, as_positional=places, skip=skip)
    parser.add_instantiator(construct, object)
    try:
        parsed = parser.parse_args(words)
        refuse_all_misfits(parsed)
        given: dict[str, Any] = parser.instantiate_classes(parsed).as_dict()
    except (ArgumentError, ValueError, TypeError) as error:
        raise own_error(error) or ConfigurationError(describe(str(error), command)) from error
    given.pop("config")
    del parsed["config"]
    for name, options in special.items():
        if options is REQUEST:
            given[name] = json.dumps(parsed.as_dict(), default=str, sort_keys=True)
    function(**given)
