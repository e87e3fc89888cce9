"""Commands that are a function: its arguments are the options, its docstring the help."""

import json
from argparse import ArgumentError
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from inspect import Parameter, signature
from os import PathLike
from pathlib import Path
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

from lit_rlhf.cli.commands import WRITES, overwrites
from lit_rlhf.cli.output import refuse_output
from lit_rlhf.cli.refusals import Constructor, describe, refuse_all_misfits
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.jsonargparse import read_none_as_null

Special = Mapping[str, Mapping[str, Any]]
"""Arguments that need more than a type, with `--` or with a place in the line: what `add_argument` is told of them."""
SWITCH: Mapping[str, Any] = {"type": bool, "nargs": "?", "const": True, "default": False}
"""Of an option that needs no value to be true."""
OVERWRITE = "Replace what is there already. Without it that is refused, before any work."
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
    """Call a function with the options of a command line, once what it writes has a place (see `commands.WRITES`).

    Args:
        function: What the command does.
        words: Its options.
        command: Its name, one of `WRITES`.
        special: Those that need more than a type; their help is what the docstring says.
        places: Arguments without a default have a place in the line, and no name.

    Raises:
        ConfigurationError: An option is wrong.
    """
    read_none_as_null()
    parameters = signature(function).parameters
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
    if overwrites(command):
        parser.add_argument("--overwrite", **SWITCH, help=OVERWRITE)
    constructor = Constructor()
    parser.add_instantiator(constructor, object)
    try:
        parsed = parser.parse_args(words)
        refuse_all_misfits(parsed)
        needed = {each for each in parameters if parameters[each].default is Parameter.empty}
        _place_outputs(command, parsed, needed if places else ())
        given: dict[str, Any] = parser.instantiate_classes(parsed).as_dict()
    except (ArgumentError, ValueError, TypeError) as error:
        own = constructor.error_behind(error)
        raise own or ConfigurationError(describe(str(error), command)) from error
    given.pop("config")
    del parsed["config"]
    for name, options in special.items():
        if options is REQUEST:
            given[name] = json.dumps(parsed.as_dict(), default=str, sort_keys=True)
    function(**given)


def _place_outputs(command: str, parsed: Namespace, in_place: Collection[str]) -> None:
    """Refuse outputs that can't be, with or without `--overwrite`, which the function needs no longer."""
    overwrite = parsed.pop("overwrite", False)
    for name, written in WRITES[command].items():
        if parsed[name] is not None:
            parsed[name] = Path(parsed[name]).expanduser()
            others = _places({key: each for key, each in parsed.as_dict().items() if key != name})
            if not written.own:
                option = name if name in in_place else f"--{name}"
                refuse_output(parsed[name], option, written, others, overwrite)


def _places(options: Any) -> Iterator[str]:
    """What may name files, of options within each other."""
    if isinstance(options, str | PathLike):
        yield str(options)
    elif isinstance(options, Mapping | list | tuple):
        for each in options.values() if isinstance(options, Mapping) else options:
            yield from _places(each)
