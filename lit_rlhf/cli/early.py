"""What a command line shows by itself to be wrong, refused before the seconds that a command's imports take.

And what is said of a word that isn't known, and which was meant.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_rlhf.cli.commands import COMMANDS, RECIPES, TRAINING, WRITES
from lit_rlhf.cli.completion import LIKE_FIT, WORDS, options_of
from lit_rlhf.cli.other_names import by_another_name
from lit_rlhf.cli.output import refuse_output
from lit_rlhf.cli.recipes import expand
from lit_rlhf.cli.shipped import load_yaml, with_found_configs
from lit_rlhf.cli.unloaded import find_class
from lit_rlhf.errors import ConfigurationError, near

_PACKAGES = {"model": "modules", "data": "data"}
_BASES = {"LightningModule", "LightningDataModule"}
_OPTION = re.compile(r"--(model|data)\.(?:init_args\.)?([\w-]+)")
_FLAG = re.compile(r"--\w[\w-]*")
_OF_EVERY_COMMAND = ("--config", "--print_config")
_OF_EVERY_CLASS = ("class_path", "init_args", "dict_kwargs")


def with_underscores(word: str) -> str:
    """A word of a command line; dashes in the name of an option stand for underscores.

    Up to its first dot alone: behind one may be a name that somebody gave, as of a source in a mixture. Texts stay.

    Example:
        >>> [
        ...     with_underscores(each)
        ...     for each in ("--run-dir=a-b", "--data.train.my-set", "--well-made is it?")
        ... ]
        ['--run_dir=a-b', '--data.train.my-set', '--well-made is it?']
    """
    name, equals, value = word.partition("=")
    if re.fullmatch(r"--[\w.-]+", name) is None:
        return word
    own, dot, rest = name.removeprefix("--").partition(".")
    return f"--{own.replace('-', '_')}{dot}{rest}{equals}{value}"


def refuse_early(words: Sequence[str]) -> None:
    """Refuse files of `-c` that aren't there, options that a command, a module or a DataModule hasn't, and outputs.

    What is not refused here may be wrong still: the parser has the last word.

    Args:
        words: The whole command line.

    Raises:
        ConfigurationError: The message is the parser's own.
    """
    if any(word in ("-h", "--help") or word.partition("=")[0].endswith(".help") for word in words):
        return
    command = words[0]
    module = COMMANDS[command].module
    if module in (TRAINING, RECIPES) or command in LIKE_FIT:
        _refuse_parts(with_found_configs(expand(words) if module == RECIPES else words))
    elif command not in WORDS:
        _refuse_flags(command, words[1:])
    if words[:2] != ["data", "convert"]:  # whose output has a place, and no name
        _refuse_outputs(" ".join(words[: 1 + (command == "data")]), words)


def _refuse_flags(command: str, words: Sequence[str]) -> None:
    known = {flag.partition(".")[0] for flag in [*options_of(command), *_OF_EVERY_COMMAND]}
    for word in words:
        flag = _FLAG.match(word)
        if flag and " " not in word.partition("=")[0] and flag[0] not in known:
            raise ConfigurationError(no_option(word, command))


def _refuse_outputs(command: str, words: Sequence[str]) -> None:
    """Refuse places of outputs, where no file may hold options too."""
    words = words[len(command.split()) :]
    pairs = [word.partition("=") for word in words]
    named = [option for option, _, _ in pairs]
    if not {"-c", "--config", "--overwrite", "--print_config"}.isdisjoint(named):
        return
    values = [
        value if equals else word for word, (_, equals, value) in zip(words, pairs, strict=True)
    ]
    for option, written in WRITES.get(command, {}).items():
        at = max((i for i, each in enumerate(named) if each == f"--{option}"), default=None)
        if at is None or written.own:
            continue
        at += not pairs[at][1]
        if at < len(words):
            refuse_output(Path(values[at]), f"--{option}", written, values[:at] + values[at + 1 :])


def _refuse_parts(words: Sequence[str]) -> None:
    """Refuse what the class of `--model` or `--data` hasn't, where the library has it and no other is named."""
    given = list(_given(words))
    for key, package in _PACKAGES.items():
        kinds = {kind.removeprefix(f"lit_rlhf.{package}.") for at, kind, _ in given if at == key}
        kinds.discard("")
        found = find_class(f"lit_rlhf.{package}", kinds.pop()) if len(kinds) == 1 else None
        if found is None or not found.foreign & _BASES:
            continue
        known = {*found.options, *_OF_EVERY_CLASS}
        for word in (option for at, _, options in given if at == key for option in options):
            if word not in known:
                said = no_option_of(found.name, word, sorted(known), key)
                raise ConfigurationError(f"{key}: {said}")


def _given(words: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """What files and words say of `model` and `data`: which of them, a class or nothing, names of options."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option == "--config":
            yield from _given_in(Path(value))
        elif match := _OPTION.match(word):
            yield match[1], "", [match[2]]
        key = option.removeprefix("--").removesuffix(".class_path")
        if option.startswith("--") and key in _PACKAGES:
            yield key, value if equals else following, []


def _given_in(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    loaded = _loaded(path)
    for key in _PACKAGES:
        part = loaded.get(key)
        if isinstance(part, str) and part.endswith((".yaml", ".yml")):
            part = _loaded(path.parent / part)
        if isinstance(part, str):
            yield key, part, []
        elif isinstance(part, dict) and "class_path" in part:
            options = part.get("init_args")
            names = list(map(str, options)) if isinstance(options, dict) else []
            yield key, str(part["class_path"]), names


def _loaded(path: Path) -> dict[str, Any]:
    try:
        loaded = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # the parser says what is wrong with it
        return {}
    return loaded if isinstance(loaded, dict) else {}


def no_option_of(kind: str, word: str, options: Sequence[str], key: str) -> str:
    """What is said of an option that a class hasn't; `key` is where the class stands."""
    return f"{kind} has no option {word!r}.{near(word, options)} Its options: --{key}.help {kind}"


def no_option(words: str, command: str, others: Sequence[str] = ()) -> str:
    """What is said of words that belong to no option of a command; `others` it has beside those of its help."""
    option = next((each for each in words.split() if each.startswith("-")), None)
    name = "" if option is None else option.partition("=")[0]
    known = [
        each
        for each in [*options_of(command.split(maxsplit=1)[0]), *others]
        if not each.endswith(".help") and each != name  # of another subcommand
    ]
    hint = by_another_name(name, command) or near(name, known)
    said = (
        f"there is no option {name}.{hint or near(name.partition('.')[0], known)}"
        if name
        else f"{words} belongs to no option."
    )
    return f"{said} lit-rlhf {command} --help lists them"
