"""Commands that are a function: its arguments are the options, its docstring the help."""

import json
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from lit_rlhf.cli.refusals import construct, describe, own_error, refuse_all_misfits
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.jsonargparse import read_none_as_null


def call(
    function: Callable[..., None],
    words: Sequence[str],
    command: str,
    extend: Callable[[ArgumentParser], set[str | int]] = lambda _: set(),
    told: str | None = None,
    *,
    places: bool = False,
) -> None:
    """Call a function with the options of a command line.

    Args:
        function: What the command does.
        words: Its options.
        command: Its name.
        extend: Adds arguments that need more than a type, and returns their names.
        told: The argument, no option, that is given all options as text.
        places: Arguments without a default have a place in the line, and no name.

    Raises:
        ConfigurationError: An option is wrong.
    """
    read_none_as_null()
    description = (function.__doc__ or "").split("Args:")[0]
    parser = ArgumentParser(
        prog=f"lit-rlhf {command}", description=description, exit_on_error=False
    )
    parser.add_argument("-c", "--config", action="config", help="options in a YAML file")
    skip = extend(parser) | ({told} if told else set())
    parser.add_function_arguments(function, as_group=False, as_positional=places, skip=skip)
    parser.add_instantiator(construct, object)
    try:
        parsed = parser.parse_args(words)
        refuse_all_misfits(parsed)
        options: dict[str, Any] = parser.instantiate_classes(parsed).as_dict()
    except (ArgumentError, ValueError, TypeError) as error:
        raise own_error(error) or ConfigurationError(describe(str(error), command)) from error
    options.pop("config")
    if told:
        del parsed["config"]
        options[told] = json.dumps(parsed.as_dict(), default=str, sort_keys=True)
    function(**options)
